package e2e_test

import "testing"

// The first Check of a user, whose key is not in memory and who holds no credits yet, is decided
// anew where it may wait. It is allowed, charged once, and counted once, like the next one, which
// is decided at once.
func TestTheFirstCheckOfAUser(t *testing.T) {
	t.Parallel()
	s := start(t, stackConfig{noEnvoy: true, flags: patient})
	key := s.user("ada", "small", "--credits", "10", "--rate-limit", "60")
	r := s.replicas[0]
	c := newChecker(t, r)
	for n := range 2 {
		if status, err := c.key(key); status != 200 || err != nil {
			t.Errorf("Check %d: %d, %v", n+1, status, err)
		}
		for metric, want := range map[string]float64{
			`keyporter_decisions_total{reason="allowed"}`:                 float64(n + 1),
			`keyporter_check_seconds_count`:                               float64(n + 1),
			`keyporter_credits_charged_total`:                             float64(n + 1),
			`keyporter_credits_void_total`:                                0,
			`keyporter_cache_lookups_total{cache="keys",result="miss"}`:   1,
			`keyporter_cache_lookups_total{cache="keys",result="hit"}`:    float64(n),
			`keyporter_cache_lookups_total{cache="keys",result="shared"}`: 0,
		} {
			if got := r.number(t, metric); got != want {
				t.Errorf("after Check %d: %s is %v, want %v", n+1, metric, got, want)
			}
		}
	}
}
