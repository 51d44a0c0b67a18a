package ratelimit

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// rights returns the rights for a Valkey user that the document lists.
func rights(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../docs/rate-limits.md")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^ACL SETUSER keyporter (.*)$`).FindSubmatch(text)
	if line == nil {
		t.Fatal("docs/rate-limits.md has no ACL SETUSER line")
	}
	return strings.Fields(string(line[1]))
}

// A user with the rights that the document lists can do everything that Keyporter needs. If any one
// of them is missing, its name is reported before a request is counted, and Valkey is down
// meanwhile, which is logged once.
func TestTheRightsThatValkeyNeeds(t *testing.T) {
	server := partstest.Valkey(t)
	admin, err := dial(t, server.Addr()).connect()
	if err != nil {
		t.Fatal(err)
	}
	set := func(rights ...string) {
		t.Helper()
		command := admin.B().Arbitrary("ACL", "SETUSER", "keyporter").Args(append([]string{"reset"}, rights...)...).Build()
		if err := admin.Do(t.Context(), command).Error(); err != nil {
			t.Fatal(err)
		}
	}
	all := rights(t)
	set(all...)
	address := strings.Replace(server.Addr(), "127", "keyporter:secret@127", 1)
	if warnings, err := CheckValkey(t.Context(), "redis://"+address+"/1"); err != nil || len(warnings) > 0 {
		t.Errorf("with all rights: %q, %v", warnings, err)
	}
	set(append(all, "-info")...)
	if warnings, err := CheckValkey(t.Context(), "redis://"+address); err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "INFO") {
		t.Errorf("without info: %q, %v", warnings, err)
	}
	set(all...)
	counts(t, share(t, address, SharedConfig{Strict: true, Timeout: time.Second}), "ann")
	for i, right := range all {
		command, ok := strings.CutPrefix(right, "+")
		if !ok || command == "hello" || command == "auth" || command == "ping" || command == "select" || command == "info" || command == "client|setinfo" {
			continue // of the connection, or only needed for warnings
		}
		fewer := append(append([]string{}, all[:i]...), all[i+1:]...)
		set(fewer...)
		if _, err := CheckValkey(t.Context(), "redis://"+address); err == nil || !strings.Contains(strings.ToLower(err.Error()), command) || !strings.Contains(err.Error(), "docs/rate-limits.md") {
			t.Errorf("without %s: %v", command, err)
		}
	}

	set(append(all, "-zadd")...)
	logs := &partstest.Buffer{}
	s := NewShared(SharedConfig{Valkey: dial(t, address), Strict: true, Timeout: time.Second, Log: slog.New(slog.NewTextHandler(logs, nil))})
	s.check(t.Context())
	for range 3 {
		if _, err := s.Admit(t.Context(), Attempt{User: "ann", ID: "1", Limit: 60, Window: time.Minute}); err == nil {
			t.Error("a strict limiter decides without a right to count")
		}
		s.check(t.Context())
	}
	if !s.down.Load() || strings.Count(logs.String(), "Valkey answers, and cannot be used") != 1 || !strings.Contains(logs.String(), "ZADD") || strings.Contains(logs.String(), "answers again") {
		t.Errorf("away %v, and the log says\n%s", s.down.Load(), logs)
	}
	set(all...)
	s.check(t.Context())
	counts(t, s, "bob")
}

// counts checks that a limiter counts in Valkey, by all its scripts.
func counts(t *testing.T, s *Shared, user string) {
	t.Helper()
	a := Attempt{User: user, ID: "1", Limit: 60, Window: time.Minute}
	if v, err := s.Admit(t.Context(), a); err != nil || !v.Admitted || s.down.Load() {
		t.Errorf("Admit: %+v, %v", v, err)
	}
	v, err := s.config.Valkey.Peek(t.Context(), a)
	if err != nil || v.Remaining != 59 {
		t.Errorf("Look: %+v, %v", v, err)
	}
	if _, err := s.Release(t.Context(), a.User, a.ID); err != nil {
		t.Error(err)
	}
	if err := s.config.Valkey.Add(t.Context(), time.Second, map[string][]admission{user: {{at: time.Second, window: time.Minute, request: "2"}}}); err != nil {
		t.Error(err)
	}
}

// A user whose log cannot be counted, because other data has its name, does not make Valkey
// alternate with each request: Valkey is down, and asked again after a pause.
func TestAValkeyThatRefusesToCountStaysDown(t *testing.T) {
	server := partstest.Valkey(t)
	admin, err := dial(t, server.Addr()).connect()
	if err != nil {
		t.Fatal(err)
	}
	if err := admin.Do(t.Context(), admin.B().Set().Key(logKey("eve")).Value("x").Build()).Error(); err != nil {
		t.Fatal(err)
	}
	logs := &partstest.Buffer{}
	s := NewShared(SharedConfig{Valkey: dial(t, server.Addr()), Strict: true, Timeout: time.Second, Log: slog.New(slog.NewTextHandler(logs, nil))})
	for range 3 {
		s.check(t.Context())
		_, _ = s.Admit(t.Context(), Attempt{User: "eve", ID: "1", Limit: 60, Window: time.Minute})
	}
	if s.check(t.Context()); !s.down.Load() || strings.Count(logs.String(), "WRONGTYPE") != 1 || strings.Contains(logs.String(), "answers again") {
		t.Errorf("away %v, and the log says\n%s", s.down.Load(), logs)
	}
	was := *s.denied.Load()
	was.at = was.at.Add(-was.pause)
	s.denied.Store(&was)
	if s.check(t.Context()); s.down.Load() {
		t.Error("it is not asked again after the pause")
	}
	_, _ = s.Admit(t.Context(), Attempt{User: "eve", ID: "2", Limit: 60, Window: time.Minute})
	if again := s.denied.Load(); again.pause != 2*minPause {
		t.Errorf("the next pause is %v, want twice as long", again.pause)
	}
}

// A Valkey that answers and cannot count is down, with its own error in the log once, and is used
// again as soon as it can count: whether it is out of memory, a standby, or has other data at its
// identity's key.
func TestAValkeyThatCannotCountIsDown(t *testing.T) {
	server := partstest.Valkey(t)
	admin, err := dial(t, server.Addr()).connect()
	if err != nil {
		t.Fatal(err)
	}
	do := func(line string) {
		t.Helper()
		words := strings.Fields(line)
		if err := admin.Do(t.Context(), admin.B().Arbitrary(words[0]).Args(words[1:]...).Build()).Error(); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	for _, row := range []struct{ breaks, mends, says string }{
		{"CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "OOM"},
		{"REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "READONLY"},
		{"SET " + identityKey + " x", "DEL " + identityKey, "WRONGTYPE"},
	} {
		logs := &partstest.Buffer{}
		s := NewShared(SharedConfig{Valkey: dial(t, server.Addr()), Strict: true, Timeout: time.Second, Log: slog.New(slog.NewTextHandler(logs, nil))})
		s.Connect(t.Context())
		do(row.breaks)
		for range 3 {
			if s.check(t.Context()); !s.down.Load() {
				t.Errorf("%s: it is up", row.breaks)
			}
			if _, err := s.Admit(t.Context(), Attempt{User: "ann", Limit: 60, Window: time.Minute}); err == nil {
				t.Errorf("%s: a strict limiter decides", row.breaks)
			}
		}
		if strings.Count(logs.String(), row.says) != 1 || strings.Contains(logs.String(), "answers again") {
			t.Errorf("%s: the log says\n%s", row.breaks, logs)
		}
		if do(row.mends); row.says == "WRONGTYPE" {
			continue // it is asked again after a pause
		}
		if s.check(t.Context()); s.down.Load() {
			t.Errorf("%s: it is down afterwards:\n%s", row.mends, logs)
		}
	}
}

// The service and CheckValkey both warn of a Valkey that would evict requests that count.
func TestAValkeyThatEvictsIsPointedOut(t *testing.T) {
	server := partstest.Valkey(t)
	admin, err := dial(t, server.Addr()).connect()
	if err != nil {
		t.Fatal(err)
	}
	policy := func(name string) error {
		return admin.Do(context.Background(), admin.B().ConfigSet().ParameterValue().ParameterValue("maxmemory-policy", name).Build()).Error()
	}
	if err := policy("allkeys-lru"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = policy("noeviction") })
	logs := &bytes.Buffer{}
	s := NewShared(SharedConfig{Valkey: dial(t, server.Addr()), Log: slog.New(slog.NewTextHandler(logs, nil))})
	s.Connect(t.Context())
	s.check(t.Context())
	if strings.Count(logs.String(), "allkeys-lru") != 1 {
		t.Errorf("the log says\n%s", logs)
	}
	warnings, err := CheckValkey(t.Context(), "redis://"+server.Addr())
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "noeviction") {
		t.Errorf("%q, %v", warnings, err)
	}
}
