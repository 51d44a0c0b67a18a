package service

import (
	"testing"

	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/ratelimit"
)

// A silent Valkey delays no answer: the waits for the connection and for the reply end well before
// the time limit of a decision.
func TestAQuestionToValkeyFitsIntoADecision(t *testing.T) {
	if longest := 2 * ratelimit.DefaultTimeout; longest > envoy.DefaultTimeout*3/4 {
		t.Errorf("Valkey may take %v of the %v for a decision", longest, envoy.DefaultTimeout)
	}
}
