package portal

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/keyporter/keyporter/apikey"
)

// regenerateTimeout bounds a regeneration, which continues if the browser leaves. It is longer than
// the longest possible lease of an unreachable replica.
const regenerateTimeout = 45 * time.Second

// confirmPage is the data of the confirmation: the usage that a regeneration will break.
type confirmPage struct {
	Unknown, Unused bool
	Usage, Sources  string
	Last            template.HTML
	Replaces        string // the ID of the key that the form replaces; several forms may be open
	IdempotencyKey  string // a repeated form makes one key
}

// confirm answers GET /api/-/regenerate.
func (p *page) confirm(r *request) (answer, error) {
	user := r.login.Principal.User
	key, found, err := p.config.Directory.LiveKey(r.Context(), user)
	if err != nil {
		return answer{}, err
	}
	if !found {
		return p.problem(r, http.StatusConflict, "no_key", "There is no key to replace.", r.text.NothingToReplace), nil
	}
	c := confirmPage{IdempotencyKey: rand.Text(), Replaces: key.ID}
	usage, err := p.config.Meter.KeyUsage(r.Context(), user, key.ID)
	cleanKeyUsage(&usage)
	switch t := r.text; {
	case err != nil:
		p.log.Warn("a part of the page is left out", "part", "key usage", "user", user, "error", err)
		c.Unknown = true
	case usage.Last.IsZero():
		c.Unused = true
	default:
		c.Usage = t.Format(t.ConfirmUsage, t.Number(usage.LastHour), t.Number(usage.LastDay))
		c.Sources = t.Format(t.ConfirmSources, t.Number(usage.Addresses), t.Number(usage.Agents))
		c.Last = t.FormatHTML(t.ConfirmLast, t.At(usage.Last), cmp.Or(usage.Address, "?"), cmp.Or(usage.Agent, "?"))
	}
	if !r.html {
		return answer{status: http.StatusOK, json: struct {
			Success   bool       `json:"success"`
			LastHour  int64      `json:"requests_last_hour"`
			LastDay   int64      `json:"requests_last_day"`
			Addresses int64      `json:"addresses_last_day"`
			Agents    int64      `json:"user_agents_last_day"`
			LastUsed  *time.Time `json:"last_used_at"`
		}{true, usage.LastHour, usage.LastDay, usage.Addresses, usage.Agents, moment(usage.Last)}}, err
	}
	return answer{status: http.StatusOK, template: "confirm", data: p.view(r, r.text.ConfirmTitle, c)}, nil
}

// regenerate answers POST /api/regenerate. It continues if the browser leaves, so that no
// regeneration ends halfway.
func (p *page) regenerate(r *request) (answer, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), regenerateTimeout)
	defer cancel()
	began, user := time.Now(), r.login.Principal.User
	// An unreadable body may name another key.
	if !r.readForm() || slices.Equal(r.PostForm["replaces"], []string{""}) {
		return p.problem(r, http.StatusBadRequest, "bad_request", "The request body cannot be read: send none, a form, or a JSON object of texts.", r.text.BadIdempotencyKey), nil
	}
	form := Regeneration{User: user, Replaces: r.PostFormValue("replaces"), IdempotencyKey: r.Header.Get("Idempotency-Key")}
	if r.html {
		form.IdempotencyKey = r.PostFormValue("idempotency_key")
	}
	made, err := p.config.Directory.Regenerate(ctx, form)
	tooOften, replaced := TooOftenError{}, ReplacedError{}
	switch {
	case errors.As(err, &replaced):
		return p.problem(r, http.StatusConflict, "replaced",
			fmt.Sprintf("Another key is live than the one to be replaced: it was made at %s. Nothing was done.", replaced.At.UTC().Format(time.RFC3339)),
			r.text.Format(r.text.Replaced, r.text.At(replaced.At))), nil
	case errors.Is(err, ErrNoKey):
		return p.problem(r, http.StatusConflict, "no_key", "There is no key to replace.", r.text.NothingToReplace), nil
	case errors.Is(err, ErrIdempotencyKey):
		return p.problem(r, http.StatusBadRequest, "bad_request", "The Idempotency-Key cannot be used.", r.text.BadIdempotencyKey), nil
	case errors.As(err, &tooOften):
		return p.tooOften(r, tooOften), nil
	case err != nil:
		return answer{}, err
	}
	if !made.Key.IsZero() { // repeated calls write no more lines
		p.log.Info("key regenerated", "user", user, "key", made.KeyID, "confirmed", made.Confirmed)
	}
	took := time.Since(began).Milliseconds()
	if r.html {
		return p.regenerated(ctx, r, made, form, took), nil
	}
	body := struct {
		Success   bool     `json:"success"`
		Key       *string  `json:"key"`
		Code      string   `json:"code,omitempty"`
		Confirmed bool     `json:"confirmed"`
		Replicas  Replicas `json:"replicas"`
		TookMS    int64    `json:"took_ms"`
	}{true, nil, "key_shown_once", made.Confirmed, made.Replicas, took}
	if !made.Key.IsZero() {
		key := made.Key.Reveal()
		body.Key, body.Code = &key, ""
	}
	return answer{status: http.StatusOK, json: body}, nil
}

func (p *page) tooOften(r *request, e TooOftenError) answer {
	a := p.problem(r, http.StatusTooManyRequests, "too_often",
		fmt.Sprintf("Too often in a short time. It can be done again at %s.", e.Until.UTC().Format(time.RFC3339)),
		r.text.Format(r.text.TooOften, r.text.At(e.Until)))
	wait := max(1, int64(time.Until(e.Until)/time.Second)+1)
	a.header = map[string]string{"Retry-After": strconv.FormatInt(wait, 10)}
	return a
}

// regeneratedPage is the data of the page that shows the new key once.
type regeneratedPage struct {
	Key       string
	ShownOnce bool
	Copy      copyButton
	Confirmed bool
	Revoked   string       // on how many replicas, and how fast
	Form      Regeneration // for another attempt
}

func (p *page) regenerated(ctx context.Context, r *request, made Regenerated, form Regeneration, took int64) answer {
	token := made.Key
	if token.IsZero() { // the form was repeated
		token = p.shownAgain(ctx, r.login.Principal.User)
	}
	data := regeneratedPage{
		Copy: copyButton{r.text, "copy-new", "new-key"}, Confirmed: made.Confirmed, Form: form, ShownOnce: p.config.Unseal == nil,
		Revoked: r.text.Format(r.text.Revoked, r.text.Number(int64(made.Replicas.Acknowledged+made.Replicas.Expired)), r.text.Number(int64(made.Replicas.Total)), r.text.Number(took)),
	}
	if !token.IsZero() {
		data.Key = token.Reveal()
	}
	return answer{status: http.StatusOK, template: "regenerated", data: p.view(r, r.text.NewTitle, data)}
}

// shownAgain returns the key of a user if it can be shown again, else the zero Token.
func (p *page) shownAgain(ctx context.Context, user string) apikey.Token {
	token, _, err := p.unseal(ctx, user)
	if err != nil && !errors.Is(err, errNotKept) && !errors.Is(err, ErrNoKey) {
		p.log.Error("a key cannot be shown", "user", user, "error", err)
	}
	return token
}

// The reasons, besides ErrNoKey, why a key cannot be shown.
var (
	errNotKept  = errors.New("no sealed copy of the key is kept, or there is no seal key to open it")
	errUnsealed = errors.New("the sealed copy of the key does not open: does --seal-key-file belong to this database?")
)

// unseal returns the key of a user, after recording in the audit that they are about to see it.
func (p *page) unseal(ctx context.Context, user string) (apikey.Token, Key, error) {
	key, found, err := p.config.Directory.LiveKey(ctx, user)
	switch {
	case err != nil:
		return apikey.Token{}, key, err
	case !found:
		return apikey.Token{}, key, ErrNoKey
	case !p.canBeShown(&key):
		return apikey.Token{}, key, errNotKept
	}
	token, err := p.config.Unseal(key.Sealed, key.ID)
	if err != nil {
		return apikey.Token{}, key, fmt.Errorf("%w (%w)", errUnsealed, err)
	}
	if err := p.config.Directory.RecordReveal(ctx, user, key.ID); err != nil {
		return apikey.Token{}, key, err
	}
	return token, key, nil
}

// reveal answers POST /api/-/reveal.
func (p *page) reveal(r *request) (answer, error) {
	user := r.login.Principal.User
	token, key, err := p.unseal(r.Context(), user)
	tooOften := TooOftenError{}
	switch {
	case errors.As(err, &tooOften):
		return p.tooOften(r, tooOften), nil
	case errors.Is(err, ErrNoKey):
		return p.problem(r, http.StatusConflict, "no_key", "There is no key.", r.text.NoKey), nil
	case errors.Is(err, errNotKept) && key.Imported && key.Sealed == nil:
		return p.problem(r, http.StatusConflict, "key_not_kept", "The key was imported, and only its SHA-256 is known. Regenerate it to get a new one.", r.text.ImportedNotKept), nil
	case errors.Is(err, errNotKept):
		return p.problem(r, http.StatusConflict, "key_not_kept", "The key was shown once, when it was made. Regenerate it to get a new one.", r.text.NotKept), nil
	case errors.Is(err, errUnsealed):
		p.log.Error("a key cannot be shown", "user", user, "key", key.ID, "error", err)
		return p.problem(r, http.StatusServiceUnavailable, "key_unreadable", "The key cannot be shown right now.", r.text.CannotBeShown), nil
	case err != nil:
		return answer{}, err
	}
	p.log.Info("key shown to its user", "user", user, "key", key.ID)
	if !r.html {
		return answer{status: http.StatusOK, json: struct {
			Success bool   `json:"success"`
			Key     string `json:"key"`
		}{true, token.Reveal()}}, nil
	}
	o, err := p.gather(r)
	if err != nil {
		return answer{}, err
	}
	if o.key == nil || o.key.ID != key.ID { // replaced meanwhile
		token = apikey.Token{}
	}
	return answer{status: http.StatusOK, template: "overview", data: p.view(r, r.text.Title, p.overviewPage(r, o, token))}, nil
}
