package main

import (
	"testing"

	"github.com/keyporter/keyporter/envoy"
	"github.com/keyporter/keyporter/meter"
)

// A Valkey that is silent takes nobody's answer: the wait until it is asked, and that for what it says, end well
// before a decision has to.
func TestAQuestionToValkeyFitsIntoADecision(t *testing.T) {
	if longest := 2 * meter.DefaultTimeout; longest > envoy.DefaultTimeout*3/4 {
		t.Errorf("Valkey may take %v of the %v for a decision", longest, envoy.DefaultTimeout)
	}
}
