package credits

import (
	"testing"
	"time"

	"github.com/keyporter/keyporter/credits/ledger"
	"github.com/keyporter/keyporter/usage"
)

// The moment of all events, on the process's clock.
const walletNow = time.Hour

// plan100 is a user with 100 credits, as decided by epoch 1.
var plan100 = Spender{User: "ada", Account: "acme", Limit: 100, Epoch: 1}

// granted returns the ledger's answer after which the wallet may use that many credits in total.
func granted(taken, free, elsewhere int64) ledger.Grant {
	return ledger.Grant{Taken: taken, Sells: true, Plan: 100, Limit: 100, Used: taken, Free: free, Elsewhere: elsewhere}
}

// report makes a report and applies the answer.
func report(w *wallet, g ledger.Grant) {
	w.request(walletNow)
	w.applyGrant(g, 1, walletNow)
}

// walletIn returns a wallet in a state.
func walletIn(state string) *wallet {
	switch state {
	case "unlimited":
		w := walletIn("unknown")
		report(w, ledger.Grant{Sells: true, Plan: usage.Unlimited, Limit: usage.Unlimited})
		return w
	case "stocked":
		w := walletIn("unknown")
		report(w, granted(10, 90, 0))
		return w
	case "short":
		w := walletIn("stocked")
		w.spend(&plan100, 10, walletNow)
		return w
	case "empty":
		w := walletIn("short")
		w.next.need = 1
		report(w, granted(10, 0, 0))
		w.next.need = 0
		return w
	case "giving back":
		w := walletIn("stocked")
		w.recall(walletNow)
		return w
	}
	w := &wallet{}
	w.payers = w.first[:0]
	return w
}

// stateOf names the state of a wallet.
func stateOf(w *wallet) string {
	switch {
	case !w.answer.known:
		return "unknown"
	case w.next.giveBack:
		return "giving back"
	case w.answer.plan == usage.Unlimited:
		return "unlimited"
	case w.used < w.taken:
		return "stocked"
	case w.shortage.empty:
		return "empty"
	}
	return "short"
}

// A wallet moves from state to state as its comment says, and answers requests by its state alone.
func TestStatesOfAWallet(t *testing.T) {
	request := func(p Spender, cost int64) func(*wallet) Result {
		return func(w *wallet) Result { return w.spend(&p, cost, walletNow) }
	}
	answer := func(g ledger.Grant) func(*wallet) Result {
		return func(w *wallet) Result { report(w, g); return Unknown }
	}
	earlier, changed, boundless := plan100, plan100, plan100
	earlier.Epoch = 0
	changed.Epoch, changed.Limit = 2, 50
	boundless.Limit = usage.Unlimited
	results := map[Result]string{Unknown: "asks", Spent: "spent", Exhausted: "rejected"}
	for _, row := range []struct {
		state, event string
		do           func(*wallet) Result
		result       string // of a request; "": the event is none
		then         string
	}{
		{"unknown", "a request", request(plan100, 1), "asks", "unknown"},
		{"unknown", "a request without a limit", request(boundless, 1), "spent", "unknown"},
		{"unknown", "a grant", answer(granted(10, 90, 0)), "", "stocked"},
		{"unknown", "no grant, and nobody has any", answer(granted(0, 0, 0)), "", "short"},

		{"stocked", "a request", request(plan100, 1), "spent", "stocked"},
		{"stocked", "a request for the last credits", request(plan100, 10), "spent", "short"},
		{"stocked", "a request for more", request(plan100, 11), "asks", "stocked"},
		{"stocked", "a request decided earlier", request(earlier, 1), "spent", "stocked"},
		{"stocked", "a request with another plan", request(changed, 1), "asks", "giving back"},
		{"stocked", "a recall", func(w *wallet) Result { w.recall(walletNow); return Unknown }, "", "giving back"},

		{"short", "a request", request(plan100, 1), "asks", "short"},
		{"short", "a grant", answer(granted(20, 80, 0)), "", "stocked"},
		{"short", "no grant, while others hold some", func(w *wallet) Result {
			w.next.need = 1
			report(w, granted(10, 0, 90))
			return Unknown
		}, "", "short"},
		{"short", "no grant, and nobody has any", func(w *wallet) Result {
			w.next.need = 1
			report(w, granted(10, 0, 0))
			return Unknown
		}, "", "empty"},

		{"empty", "a request", request(plan100, 1), "rejected", "empty"},
		{"empty", "a request by a newer state, with the same plan", request(Spender{Limit: 100, Epoch: 2}, 1), "asks", "empty"},
		{"empty", "a request with another plan", request(changed, 1), "asks", "giving back"},
		{"empty", "a grant", answer(granted(20, 0, 0)), "", "stocked"},
		{"empty", "a refund", func(w *wallet) Result { w.applyRefund(1); return Unknown }, "", "short"},

		{"giving back", "a report", answer(granted(0, 100, 0)), "", "short"},
		{"giving back", "a request", request(plan100, 1), "spent", "giving back"},

		{"unlimited", "a request", request(boundless, 1000), "spent", "unlimited"},
		{"unlimited", "a request with a limit", request(changed, 1), "asks", "giving back"},
	} {
		w := walletIn(row.state)
		if got := stateOf(w); got != row.state {
			t.Fatalf("a wallet made as %s is %s", row.state, got)
		}
		result := row.do(w)
		if row.result != "" && results[result] != row.result || stateOf(w) != row.then {
			t.Errorf("%s, %s: %s, then %s; want %s, then %s", row.state, row.event, results[result], stateOf(w), row.result, row.then)
		}
		sum := int64(0)
		for _, p := range w.payers {
			sum += p.used
		}
		if w.used < 0 || w.used > w.taken || sum != w.used {
			t.Errorf("%s, %s: used %d of %d, by its users %d", row.state, row.event, w.used, w.taken, sum)
		}
	}
}

// An empty pool is asked about again after a second, by the next report, and not before.
func TestAnEmptyPoolIsAskedAboutAgain(t *testing.T) {
	w := walletIn("empty")
	w.spend(&plan100, 1, walletNow+recheckPause)
	if w.changed() {
		t.Error("it is asked about within the second")
	}
	if result := w.spend(&plan100, 1, walletNow+recheckPause+1); result != Exhausted || !w.next.recheck {
		t.Errorf("after the second: %v, asked about again: %v", result, w.next.recheck)
	}
	if ask := w.request(walletNow + 2*recheckPause); ask.Need != 1 {
		t.Errorf("the report needs %d credits, want 1", ask.Need)
	}
}

// A charge is undone in the wallet until it is reported.
func TestAReportedUseIsNotUndone(t *testing.T) {
	w, ada := walletIn("stocked"), user{"ada", "acme"}
	w.spend(&plan100, 3, walletNow)
	if !w.unspend(ada, 1) || w.used != 2 {
		t.Errorf("before the report %d are used, want 2", w.used)
	}
	w.request(walletNow)
	w.payers[0].sent = w.payers[0].used // as the reporter does
	if w.unspend(ada, 1) || w.used != 2 {
		t.Errorf("after the report %d are used, want 2", w.used)
	}
}

// A recall leaves a wallet alone for which requests wait: its next report is due anyway.
func TestARecallOfAWalletThatIsWaitedFor(t *testing.T) {
	w := walletIn("stocked")
	waited := &round{}
	if w.next.round = waited; w.recall(walletNow) || w.next.giveBack || w.next.round != waited {
		t.Errorf("it is recalled: %+v", w.next)
	}
}
