package usage

// Failure is the reason why a request gave its client no result. The zero Failure means success.
type Failure uint8

// The failures.
const (
	NoFailure       Failure = iota
	Answered5xx             // the upstream answered 5xx, or an equivalent gRPC status
	NoAnswer                // the upstream did not answer: refused, reset, too slow
	NotAsked                // no upstream was healthy, or Envoy itself refused after our allow
	ClientGone              // the client left before the upstream was asked
	HeadersTooLarge         // our headers did not fit beside the client's
	InvalidAnswer           // Envoy could not apply our answer, for another reason
	failureCount
)

var failureNames = [failureCount]string{"none", "answered_5xx", "no_answer", "not_asked", "client_gone", "headers_too_large", "invalid_answer"}

// String returns the name of f in metrics and in the ledger.
func (f Failure) String() string {
	if f >= failureCount {
		f = NoFailure
	}
	return failureNames[f]
}

// Failures returns all failures but NoFailure.
func Failures() []Failure {
	return []Failure{Answered5xx, NoAnswer, NotAsked, ClientGone, HeadersTooLarge, InvalidAnswer}
}

// Voids reports whether the charge is undone regardless of the route's rule: our allow had no
// effect.
func (f Failure) Voids() bool { return f == HeadersTooLarge || f == InvalidAnswer }

// Completion reports how a request with a key ended, from Envoy's access log.
type Completion struct {
	Receipt string // of the charge, from the request's metadata; empty: no charge
	Status  int    // sent to the client; 0: none
	Failure Failure
	Record  Record // for the user's page, without the cost
}
