package events

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/keyporter/keyporter/store/outbox"
)

const (
	// attemptTime bounds an attempt, from the dial to the answer.
	attemptTime = 15 * time.Second
	// maxAnswer is how much of an answer is read, and dropped, in bytes.
	maxAnswer = 4 << 10
	// maxProblem bounds the text of a problem, in bytes.
	maxProblem = 200
)

// Envelope is the body of an event.
type Envelope struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"` // of the change
	// OutOfOrder is set if an earlier event of the same user or account was not delivered, or a
	// later one was.
	OutOfOrder bool            `json:"out_of_order,omitempty"`
	Data       json.RawMessage `json:"data"`
}

// body returns the body of an event.
func body(e outbox.Event) ([]byte, error) {
	text, err := json.Marshal(Envelope{Type: e.Type, Timestamp: e.At.UTC(), OutOfOrder: e.OutOfOrder, Data: json.RawMessage(e.Data)})
	if err != nil {
		return nil, fmt.Errorf("event %s has no JSON: %w", e.ID, err)
	}
	return text, nil
}

// attempt sends an event once and returns its outcome. The text of a problem holds neither the URL
// nor anything of the answer but its status.
func attempt(ctx context.Context, client *http.Client, to Endpoint, e outbox.Event) outbox.Outcome {
	status, asked, err := send(ctx, client, to, e)
	switch {
	case err == nil && status >= 200 && status < 300:
		return outbox.Outcome{Event: e, State: outbox.Delivered}
	case err == nil:
		err = fmt.Errorf("answered %d %s", status, http.StatusText(status))
	}
	out := outbox.Outcome{Event: e, State: outbox.Pending, Wait: nextWait(e.Attempts+1, asked), Problem: short(err), Gone: status == http.StatusGone}
	if e.Trying >= givenUpAfter && !out.Gone {
		out.State, out.Wait = outbox.Aside, 0
	}
	return out
}

func send(ctx context.Context, client *http.Client, to Endpoint, e outbox.Event) (status int, asked time.Duration, err error) {
	text, err := body(e)
	if err != nil {
		return 0, 0, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to.URL, bytes.NewReader(text))
	if err != nil {
		return 0, 0, errors.New("the URL is invalid")
	}
	now := time.Now()
	request.Header = http.Header{
		"Content-Type": {"application/json"}, "User-Agent": {"Keyporter"},
		"Webhook-Id": {e.ID}, "Webhook-Timestamp": {strconv.FormatInt(now.Unix(), 10)}, "Webhook-Signature": {sign(to.Secrets, e.ID, now, text)},
	}
	answer, err := client.Do(request)
	if err != nil {
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err // without the URL
		}
		return 0, 0, err
	}
	defer answer.Body.Close()
	_, _ = io.CopyN(io.Discard, answer.Body, maxAnswer) // the status is the answer
	seconds, err := strconv.Atoi(answer.Header.Get("Retry-After"))
	if err == nil && seconds > 0 && seconds <= int(longestWait/time.Second) {
		asked = time.Duration(seconds) * time.Second
	}
	return answer.StatusCode, asked, nil
}

// short returns the text of an error, with an upper limit.
func short(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer within %v", attemptTime)
	}
	text := err.Error()
	return text[:min(len(text), maxProblem)]
}
