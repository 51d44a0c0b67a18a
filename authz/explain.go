package authz

import (
	"fmt"

	"github.com/keyporter/keyporter/usage"
)

// Step is one step of a decision, in words.
type Step struct {
	Step   string `json:"step"`
	Result string `json:"result"`
}

// KeyWellFormed is the result of the key format step for a key with the right tag.
const KeyWellFormed = "well formed, tag right"

// KeyImported is the result of the key format step for a key of another system.
const KeyImported = "of a form in key_formats, known by its SHA-256 alone"

// Explain lists the steps that led to d, in the order of [Authorizer.Authorize], up to the one that
// decided. The err is the one that Authorize returned with d. No step holds any part of a
// credential.
func Explain(d Decision, err error) []Step {
	e := explanation{reason: d.Reason, why: d.Why}
	e.add("path", "canonical, no disguised api_key", BadPath, BadQuery, DisguisedKey, BadHeader)
	if d.Problem != NoProblem {
		e.steps[0].Result += ": " + d.Problem.String()
	}
	if d.Rule != nil {
		e.add("route", fmt.Sprintf("rule %s (%s)", d.Rule.Path+d.Rule.Name, d.Rule.Kind), NoRoute, OtherSpelling)
		if d.CrossOrigin.Vary || d.Rule.CORS == CORSUpstream {
			e.add("cross-origin", d.CrossOrigin.summary(), Preflight, TooManyPreflights)
		}
		e.add("method", "permitted", MethodNotAllowed)
		e.identity(&d)
	} else {
		e.add("route", "", NoRoute, UnknownRule)
	}
	if err != nil {
		e.steps = append(e.steps, Step{"store", err.Error()})
	}
	e.steps = append(e.steps, Step{"decision", d.Reason.summary()})
	return e.steps
}

// explanation collects steps until one of them decides.
type explanation struct {
	reason  Reason
	why     error // detail of the reason; nil: none
	decided bool
	steps   []Step
}

// add appends a step: the refusal if its reason is one of the step's own, else the text for
// success.
func (e *explanation) add(step, well string, own ...Reason) {
	if e.decided {
		return
	}
	for _, reason := range own {
		if e.reason == reason {
			e.decided = true
			well = "refused: " + reason.String()
			if reason == Preflight {
				well = "answered: " + reason.String()
			}
			if e.why != nil {
				well += ": " + e.why.Error()
			}
		}
	}
	e.steps = append(e.steps, Step{step, well})
}

func (e *explanation) identity(d *Decision) {
	if e.decided {
		return
	}
	switch d.Rule.Kind {
	case KindPublic:
		e.add("credential", "none needed")
	case KindSession:
		e.add("session", "one cookie or token, well formed", MissingSession, BadSession)
		e.add("session look-up", "user "+d.Principal.User, UnknownSession, RevokedSession, Undecided)
	case KindAPIKey:
		e.add("key", "found in the "+d.Place.String(), MissingKey, AmbiguousKey)
		wellFormed := KeyWellFormed
		if d.Imported {
			wellFormed = KeyImported
		}
		e.add("key format", wellFormed, MalformedKey, ForgedKey)
		p := d.Principal
		e.add("key look-up", fmt.Sprintf("key %s of user %s, account %s, plan %s", p.KeyID, p.User, p.Account, p.Plan),
			UnknownKey, RevokedKey, Undecided)
		e.add("user", "active", UserDisabled)
		e.add("account", "active", AccountInactive)
		e.add("plan", "includes API access", NoAPIAccess)
		e.add("rate limit", usage.Rate{Limit: p.RateLimit, Window: p.RateWindow}.String(), RateLimited)
		e.add("credits", fmt.Sprintf("%v per month, of the %v", p.Credits, p.Pool), CreditsExhausted)
	}
}

func (c CrossOrigin) summary() string {
	switch {
	case !c.Vary:
		return "the upstream says what pages of other origins may do"
	case c.Origin == "":
		return "cors is on, and the request is from no origin that it names"
	}
	return "pages of " + c.Origin + " may read the answer"
}

func (r Reason) summary() string {
	if r == Allowed {
		return "allowed"
	}
	o := r.Outcome()
	return fmt.Sprintf("%d %s", o.Status, o.Code)
}
