package service

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyporter/keyporter/internal/config"
)

// Of a repeated warning, some lines are logged at once and then one a second, with the number of
// suppressed ones, regardless of attributes. Other texts and lower levels are not delayed.
func TestRepeatedWarningsDoNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := NewLogger(config.Config{LogFormat: "text"}, &out)
		count := func(word string) int { return strings.Count(out.String(), word) }
		for i := range 1000 {
			log.With("n", i).Warn("repeated", "error", i)
		}
		log.Error("another")
		for range 100 {
			log.Info("told")
		}
		if count("msg=repeated") != 20 || count("msg=another") != 1 || count("msg=told") != 100 {
			t.Errorf("%d repeated, %d other and %d told lines; want 20, 1 and 100", count("msg=repeated"), count("msg=another"), count("msg=told"))
		}
		time.Sleep(time.Second)
		log.Warn("repeated")
		log.Warn("repeated")
		if count("msg=repeated") != 21 || count("suppressed=980") != 1 {
			t.Errorf("a second later there are %d lines:\n%s", count("msg=repeated"), out.String()[max(0, out.Len()-200):])
		}
		out.Reset()
		for i := range 5000 {
			log.Warn(fmt.Sprint("made up ", i))
		}
		if n := strings.Count(out.String(), "\n"); n > maxTexts+linesAtOnce {
			t.Errorf("%d lines of as many texts", n)
		}
	})
}

// A line that was already limited by its cause is not limited by its text as well, and reports once
// how many lines were suppressed.
func TestOtherLimitsAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := NewLogger(config.Config{LogFormat: "text"}, &out)
		const seconds = 60
		for range seconds {
			for _, cause := range causeNames() {
				log.Error("check not decided", "cause", cause, suppressedKey, 7)
			}
			time.Sleep(time.Second)
		}
		for _, cause := range causeNames() {
			if n := strings.Count(out.String(), "cause="+cause+" suppressed=7\n"); n != seconds {
				t.Errorf("%d lines of the cause %s, want %d", n, cause, seconds)
			}
		}
	})
}
