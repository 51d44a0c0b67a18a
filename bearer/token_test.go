package bearer_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/bearer"
)

// A token has a fixed form, and no way of printing shows one.
func TestParseToken(t *testing.T) {
	for _, bad := range []string{"", "short", "has a blank in the middle", "per%cent%per%cent%", "line\nbreak-line-break", strings.Repeat("a", 600)} {
		if _, err := bearer.Parse(bad); err == nil {
			t.Errorf("token %q is accepted", bad)
		} else if bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("the error shows the token: %v", err)
		}
	}
	type holder struct{ Token bearer.Token }
	const secret = "YWxhZGRpbjpvcGVuc2VzYW1l=="
	token, err := bearer.Parse(secret)
	if err != nil {
		t.Fatal(err)
	}
	var logs bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&logs, nil))
	log.Info("token", "token", token, "config", holder{token})
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		logs.WriteString(strings.Join([]string{fmt.Sprintf(verb, token), fmt.Sprintf(verb, &token), fmt.Sprintf(verb, holder{token})}, "\n"))
	}
	if strings.Contains(logs.String(), secret) || strings.Contains(logs.String(), "59577868") {
		t.Errorf("the token is shown: %s", logs.String())
	}
}
