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

// profileTime is how long a profile is taken.
const profileTime = 10 * time.Second

// writeProfiles puts the CPU profiles of Keyporter and of the load itself, while it answers the hit path,
// into a folder: keyporter.pprof and load.pprof, and what Keyporter allocates: keyporter.allocs.pprof.
func (l *lab) writeProfiles(ctx context.Context, folder string, p plan) error {
	row := l.rows()[1]
	return row.with(ctx, false, func(a asker) error {
		if _, err := a.Ask(ctx, p.warm); err != nil {
			return err
		}
		load, err := os.Create(filepath.Join(folder, "load.pprof"))
		if err != nil {
			return err
		}
		defer load.Close()
		if err := pprof.StartCPUProfile(load); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
		both, ctx := errgroup.WithContext(ctx)
		both.Go(func() error { return download(ctx, l.profile, fmt.Sprintf("profile?seconds=%d", int(profileTime.Seconds())), filepath.Join(folder, "keyporter.pprof")) })
		both.Go(func() error { _, err := a.Ask(ctx, profileTime+time.Second/2); return err })
		if err := both.Wait(); err != nil {
			return err
		}
		return download(context.WithoutCancel(ctx), l.profile, "allocs", filepath.Join(folder, "keyporter.allocs.pprof"))
	})
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
