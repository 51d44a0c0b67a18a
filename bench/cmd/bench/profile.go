package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime/pprof"
	"time"

	"golang.org/x/sync/errgroup"
)

// profileTime is the duration of each profile.
const profileTime = 10 * time.Second

// profiledRows are the rows that have profiles, and the names of these.
var profiledRows = map[string]string{
	"straight, keyporter":                              "straight",
	"through Envoy, keyporter":                         "envoy",
	"through Envoy, keyporter, without the access log": "envoy-nolog",
}

// writeProfiles writes CPU profiles of Keyporter during answers from memory into a folder, one for
// each way, and that of the load itself as load.pprof and Keyporter's allocations as
// keyporter.allocs.pprof.
func (l *lab) writeProfiles(ctx context.Context, folder string) error {
	load, err := os.Create(filepath.Join(folder, "load.pprof"))
	if err != nil {
		return err
	}
	defer load.Close()
	if err := pprof.StartCPUProfile(load); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	for _, r := range l.rows() {
		if name := profiledRows[r.way+", "+r.server]; name != "" && r.answer == allowed {
			if err := l.writeProfile(ctx, r, filepath.Join(folder, "keyporter."+name+".pprof")); err != nil {
				return err
			}
		}
	}
	return download(ctx, l.keyporter.ops, "allocs", filepath.Join(folder, "keyporter.allocs.pprof"))
}

// writeProfile writes the profile of one row.
func (l *lab) writeProfile(ctx context.Context, r *row, file string) error {
	both, running := errgroup.WithContext(ctx)
	both.Go(func() error {
		return download(running, l.keyporter.ops, fmt.Sprintf("profile?seconds=%d", int(profileTime.Seconds())), file)
	})
	both.Go(func() error {
		return r.with(running, false, func(a asker) error { _, err := a.Ask(running, profileTime); return err })
	})
	return both.Wait()
}

func download(ctx context.Context, addr, what, file string) error {
	url := "http://" + addr + "/debug/pprof/" + what
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("asking for a profile: %w", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return fmt.Errorf("asking for a profile: %s: %w", response.Status, err)
	}
	return os.WriteFile(file, body, 0o644)
}
