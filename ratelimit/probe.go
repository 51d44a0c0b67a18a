package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/valkey-io/valkey-go"
)

// probeKeys are the keys that the probe writes and deletes.
var probeKeys = []string{"keyporter:probe:hash", "keyporter:probe:set", "keyporter:probe:text"}

// probe returns an error that names the commands that the server does not let this user run.
func (v *Valkey) probe(ctx context.Context) error {
	client, err := v.connected()
	if err != nil {
		return err
	}
	for _, command := range []valkey.Completed{
		// The first call tries EVAL, because EVALSHA alone is tried if the server knows the script.
		client.B().Eval().Script("return 1").Numkeys(0).Build(),
		client.B().ScriptLoad().Script("return 1").Build(),
	} {
		if err := client.Do(ctx, command).Error(); err != nil {
			return fmt.Errorf("asking Valkey: %w", err)
		}
	}
	answer, err := v.probing.Exec(ctx, client, probeKeys, nil).ToArray()
	if err != nil {
		return fmt.Errorf("asking Valkey: %w", err)
	}
	if len(answer) != 2 {
		return fmt.Errorf("asking Valkey: %d values in the answer, want 2", len(answer))
	}
	commands, err1 := answer[0].AsStrSlice()
	why, err2 := answer[1].ToString()
	if err := errors.Join(err1, err2); err != nil || len(commands) == 0 {
		return err
	}
	return refusedError{fmt.Sprintf("%s: %s", strings.Join(commands, ", "), why)}
}

// refusedError is the answer of a server that answers, but refuses a command that counting needs.
type refusedError struct{ said string }

func (e refusedError) Error() string {
	text := "Valkey refuses what is needed: " + e.said
	if strings.Contains(text, "NOPERM") || strings.Contains(text, "ACL") {
		text += ": give its user the rights that docs/rate-limits.md lists"
	}
	return text
}

// passing are the answers of a server that temporarily cannot count. The probe gets them as well.
var passing = []string{"READONLY", "OOM", "MISCONF", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "BUSY", "NOSCRIPT", "UNKILLABLE"}

// refusal returns the server's error, and whether it is a refusal to count that does not pass by
// itself.
func refusal(err error) (said string, refused bool) {
	answer := (*valkey.ValkeyError)(nil)
	if !errors.As(err, &answer) {
		return "", false
	}
	said = answer.Error()
	return said, !slices.ContainsFunc(passing, func(code string) bool { return strings.HasPrefix(said, code) })
}

// evicts returns the server's eviction policy, or "" if it evicts nothing.
func (v *Valkey) evicts(ctx context.Context) (policy string, err error) {
	client, err := v.connected()
	if err != nil {
		return "", err
	}
	info, err := client.Do(ctx, client.B().Info().Section("memory").Build()).ToString()
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(info) {
		if policy, ok := strings.CutPrefix(strings.TrimSpace(line), "maxmemory_policy:"); ok && policy != "noeviction" {
			return policy, nil
		}
	}
	return "", nil
}

func evictionWarning(policy string) string {
	return "Valkey has the policy " + policy + ": where its memory is full it forgets requests that still count, and admits too many: set maxmemory-policy to noeviction"
}

// CheckValkey connects to the Valkey of a URL and tries everything that Keyporter needs. A warning
// is about something that works, but not as it should.
func CheckValkey(ctx context.Context, address string) (warnings []string, err error) {
	v, err := NewValkey(address)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	if _, err := v.connect(); err != nil {
		return nil, fmt.Errorf("connecting to Valkey: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := v.probe(ctx); err != nil {
		if said, refused := refusal(err); refused {
			err = refusedError{said}
		}
		return nil, err
	}
	switch policy, err := v.evicts(ctx); {
	case err != nil:
		warnings = append(warnings, fmt.Sprintf("Valkey does not tell what INFO would (%v): whether it evicts, and whether it was started again with an older memory, is not noticed", err))
	case policy != "":
		warnings = append(warnings, evictionWarning(policy))
	}
	return warnings, nil
}
