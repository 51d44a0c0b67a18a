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

// profileTime is the duration of each part of a profile: direct, and through Envoy.
const profileTime = 10 * time.Second

// writeProfiles writes CPU profiles of Keyporter and of the load itself, during answers from
// memory, into a folder, as keyporter.pprof and load.pprof, and Keyporter's allocations as
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
	both, running := errgroup.WithContext(ctx)
	both.Go(func() error {
		what := fmt.Sprintf("profile?seconds=%d", int(2*profileTime.Seconds()))
		return download(running, l.keyporter.ops, what, filepath.Join(folder, "keyporter.pprof"))
	})
	both.Go(func() error {
		for _, r := range l.rows() {
			if r.authorizer != l.keyporter || r.answer != allowed {
				continue
			}
			err := r.with(running, false, func(a asker) error { _, err := a.Ask(running, profileTime); return err })
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err := both.Wait(); err != nil {
		return err
	}
	return download(ctx, l.keyporter.ops, "allocs", filepath.Join(folder, "keyporter.allocs.pprof"))
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
