// Package settle is the port where an upstream closes a charge: its credits come back, or stay
// charged.
package settle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/keyporter/keyporter/receipt"
)

const (
	maxSettleBody = 1 << 10 // bytes; a meaningful one has about 25
	settleTimeout = 5 * time.Second
)

// Config configures the settle port. All fields but Log are required.
type Config struct {
	// Opens reports whether one of a call's Authorization values is the token.
	Opens func(authorization []string) bool
	// Parse reads the charge id that the upstream received with the request:
	// [receipt.Signer.ParseID].
	Parse func(id string) (receipt.Receipt, error)
	// Settle closes a charge: refund is the number of its credits that come back in total, 0 to
	// r.Cost. It returns those that came back by this call. Once it returns without an error, the
	// outcome is durable.
	Settle func(ctx context.Context, r receipt.Receipt, refund int64) (refunded int64, err error)

	Log *slog.Logger // nil: slog.Default()
}

// New returns the handler of POST /v1/charges/{id}/settle. With it an upstream itself says how much
// of its charge a request was worth, where no access log arrives, where a failure does not show in
// the status, or where the cost is known only afterwards. A call may be repeated.
func New(c Config) http.Handler {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := handler{c}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/charges/{id}/settle", s.handle)
	mux.HandleFunc("/v1/charges/{id}/settle", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", "Method not allowed.")
	})
	mux.HandleFunc("/", notCharged)
	return s.guard(mux)
}

type handler struct{ Config }

// guard answers callers without the token with 401.
func (s handler) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.Opens(r.Header.Values("Authorization")) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="keyporter settle"`)
			refuse(w, http.StatusUnauthorized, "unauthorized", "This port wants the settle token as Authorization: Bearer TOKEN.")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s handler) handle(w http.ResponseWriter, r *http.Request) {
	receipt, err := s.Parse(r.PathValue("id"))
	if err != nil {
		notCharged(w, r)
		return
	}
	outcome, err := readOutcome(http.MaxBytesReader(w, r.Body, maxSettleBody))
	if tooLong := (*http.MaxBytesError)(nil); errors.As(err, &tooLong) {
		refuse(w, http.StatusRequestEntityTooLarge, "too_large", "The body is too long.")
		return
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "bad_request",
			`Want the body {"outcome": "charge"}, {"outcome": "refund"}, or {"outcome": "refund", "credits": N} for a part.`)
		return
	}
	if outcome.credits > receipt.Cost {
		refuse(w, http.StatusBadRequest, "bad_request", fmt.Sprintf("The charge is %d credits; %d cannot come back.", receipt.Cost, outcome.credits))
		return
	}
	refunded, err := s.apply(r.Context(), receipt, outcome)
	if err != nil {
		s.Log.Error("charge not settled, answered 503", "error", err)
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusServiceUnavailable, "unavailable", "Service temporarily unavailable. Please retry.")
		return
	}
	answer(w, http.StatusOK, struct {
		Success  bool `json:"success"`
		Refunded bool `json:"refunded"`
	}{true, refunded > 0})
}

// apply settles a charge. A charge of a route without refunds always stays charged.
func (s handler) apply(ctx context.Context, r receipt.Receipt, o outcome) (refunded int64, err error) {
	refund := int64(0)
	switch {
	case !o.refund || r.Refund.Never:
	case o.credits > 0:
		refund = o.credits
	default:
		refund = r.Cost
	}
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return s.Settle(ctx, r, refund)
}

// outcome is the body of a call.
type outcome struct {
	refund  bool
	credits int64 // of the charge that come back in total; 0: all
}

// readOutcome reads the body of a call. It reads the tokens itself, because a decoder of structs
// accepts "OUTCOME" for the name, and the last of two values.
func readOutcome(body io.Reader) (o outcome, err error) {
	decoder := json.NewDecoder(body)
	decoder.UseNumber()
	if first, err := decoder.Token(); err != nil || first != json.Delim('{') {
		return o, errors.Join(errInvalid, err)
	}
	said := map[json.Token]json.Token{}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return o, err
		}
		value, err := decoder.Token()
		if _, twice := said[name]; err != nil || twice {
			return o, errors.Join(errInvalid, err)
		}
		said[name] = value
	}
	if _, err := decoder.Token(); err != nil { // the end of the object
		return o, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return o, errors.Join(errInvalid, err)
	}
	return parseOutcome(said)
}

var errInvalid = errors.New("there is no such outcome")

// parseOutcome returns the outcome of the fields of a body.
func parseOutcome(fields map[json.Token]json.Token) (o outcome, err error) {
	switch fields["outcome"] {
	case "charge":
	case "refund":
		o.refund = true
	default:
		return o, errInvalid
	}
	credits, partly := fields["credits"]
	if partly {
		number, _ := credits.(json.Number)
		o.credits, err = strconv.ParseInt(number.String(), 10, 64)
	}
	if err != nil || partly && (!o.refund || o.credits < 1) || len(fields) > 2 || len(fields) == 2 && !partly {
		return outcome{}, errInvalid
	}
	return o, nil
}

// notCharged answers for an unknown charge or path.
func notCharged(w http.ResponseWriter, _ *http.Request) {
	refuse(w, http.StatusNotFound, "not_found", "There is no such charge.")
}

func refuse(w http.ResponseWriter, status int, code, text string) {
	answer(w, status, struct {
		Success bool   `json:"success"`
		Error   string `json:"error"`
		Code    string `json:"code"`
	}{false, text, code})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the caller has left, or the status says enough
}
