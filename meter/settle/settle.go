// Package settle is the port where an upstream closes a charge: its credits come back, or stay
// charged.
package settle

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/keyporter/keyporter/credits/ledger"
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
	// Settle records that the credits of a charge come back for a cause, or stay charged (""), and
	// reports whether this call brought them back. Once it returns without an error, the outcome is
	// durable.
	Settle func(ctx context.Context, r receipt.Receipt, cause string) (refunded bool, err error)

	Log *slog.Logger // nil: slog.Default()
}

// New returns the handler of POST /v1/charges/{id}/settle. With it an upstream itself says
// whether a request was worth its charge, where no access log arrives, or where a failure does not
// show in the status. A call may be repeated.
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
	refund, err := readOutcome(http.MaxBytesReader(w, r.Body, maxSettleBody))
	if tooLong := (*http.MaxBytesError)(nil); errors.As(err, &tooLong) {
		refuse(w, http.StatusRequestEntityTooLarge, "too_large", "The body is too long.")
		return
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "bad_request", `Want the body {"outcome": "charge"} or {"outcome": "refund"}.`)
		return
	}
	refunded, err := s.apply(r.Context(), receipt, refund)
	if err != nil {
		s.Log.Error("charge not settled, answered 503", "error", err)
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusServiceUnavailable, "unavailable", "Service temporarily unavailable. Please retry.")
		return
	}
	answer(w, http.StatusOK, struct {
		Success  bool `json:"success"`
		Refunded bool `json:"refunded"`
	}{true, refunded})
}

// apply settles a charge. A charge of a route without refunds always stays charged.
func (s handler) apply(ctx context.Context, r receipt.Receipt, refund bool) (refunded bool, err error) {
	cause := ""
	if refund && !r.Refund.Never {
		cause = ledger.CauseSettled
	}
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return s.Settle(ctx, r, cause)
}

// readOutcome reads whether to refund the charge. It reads the tokens itself, because a decoder of
// structs accepts "OUTCOME" for the name, and the last of two values.
func readOutcome(body io.Reader) (refund bool, err error) {
	decoder := json.NewDecoder(body)
	var parts [4]json.Token
	for i := range parts {
		if parts[i], err = decoder.Token(); err != nil {
			return false, err
		}
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return false, errors.Join(errors.New("there is more than one outcome"), err)
	}
	for _, outcome := range []string{"charge", "refund"} {
		if parts == [4]json.Token{json.Delim('{'), "outcome", outcome, json.Delim('}')} {
			return outcome == "refund", nil
		}
	}
	return false, errors.New("there is no such outcome")
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
