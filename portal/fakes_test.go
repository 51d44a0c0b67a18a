package portal_test

import (
	"cmp"
	"context"
	"testing"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/portal"
	"github.com/keyporter/keyporter/usage"
)

// fakeDirectory is a strict [Directory] in which ada has the key key_1 and a login link, and
// bob has nothing. Any other user or key fails the test.
type fakeDirectory struct {
	imported     bool // the key is one of another system
	t            *testing.T
	session, key *apikey.Format // of new sessions and keys

	sealed   []byte // the sealed copy of the live key
	keyErr   error
	revealed []string // user and ID of the keys recorded as shown
	auditErr error

	during    context.Context // of the last regeneration
	once      []string        // the idempotency keys of the calls
	replaces  []string        // the IDs of the keys to replace
	made      []string        // the new keys
	confirmed bool
	repeated  bool // the key was returned by an earlier call
	regenErr  error

	link   apikey.Token // a valid link
	spent  bool
	ended  []apikey.Digest // logged-out sessions
	endErr error
}

// keyCreated is when key_1 was made.
var keyCreated = time.Unix(0, 0).UTC()

func (d *fakeDirectory) LiveKey(_ context.Context, user string) (portal.Key, bool, error) {
	if user != "ada" && user != "bob" {
		d.t.Errorf("the live key of %q is asked for", user)
	}
	return portal.Key{ID: "key_1", CreatedAt: keyCreated, Sealed: d.sealed, Imported: d.imported}, user == "ada", d.keyErr
}

func (d *fakeDirectory) RecordReveal(_ context.Context, user, keyID string) error {
	d.revealed = append(d.revealed, user+" "+keyID)
	return d.auditErr
}

func (d *fakeDirectory) Regenerate(ctx context.Context, r portal.Regeneration) (portal.Regenerated, error) {
	if r.User != "ada" {
		d.t.Errorf("the key of %q is replaced", r.User)
	}
	d.during = ctx
	d.once = append(d.once, r.IdempotencyKey)
	d.replaces = append(d.replaces, r.Replaces)
	if d.regenErr != nil {
		return portal.Regenerated{}, d.regenErr
	}
	if d.repeated {
		return portal.Regenerated{KeyID: "key_2", Confirmed: true, Replicas: portal.Replicas{Total: 3, Acknowledged: 2, Expired: 1}}, nil
	}
	token := d.key.Generate()
	d.made = append(d.made, token.Reveal())
	return portal.Regenerated{KeyID: "key_2", Key: token, Confirmed: d.confirmed}, ctx.Err()
}

func (d *fakeDirectory) FindLink(_ context.Context, link apikey.Digest) (string, error) {
	if link != d.link.Digest() {
		return "", portal.ErrLink
	}
	return "ada", nil
}

func (d *fakeDirectory) UseLink(_ context.Context, link, previous apikey.Digest) (apikey.Token, time.Time, error) {
	if link != d.link.Digest() || d.spent {
		return apikey.Token{}, time.Time{}, portal.ErrLink
	}
	if previous != (apikey.Digest{}) {
		if d.endErr != nil {
			return apikey.Token{}, time.Time{}, d.endErr
		}
		d.ended = append(d.ended, previous)
	}
	d.spent = true
	return d.session.Generate(), time.Now().Add(time.Hour), nil
}

func (d *fakeDirectory) EndSession(_ context.Context, session apikey.Digest) error {
	d.ended = append(d.ended, session)
	return d.endErr
}

// fakeMeter is a strict [Meter] of ada and bob, who have used the same. A key other than
// ada's, or another user, fails the test.
type fakeMeter struct {
	t        *testing.T
	rate     usage.Rate
	credits  usage.Credits
	days     []usage.Day
	requests []usage.Record
	next     string
	keyUsage usage.KeyUsage // of the key
	oldKeys  usage.KeyUsage // of revoked ones
	partErr  error          // of all methods
	listErr  error          // of Requests alone
}

// check fails the test if the user is unknown.
func (m *fakeMeter) check(method, user string) {
	if user != "ada" && user != "bob" {
		m.t.Errorf("%s is called for %q", method, user)
	}
}

func (m *fakeMeter) Usage(_ context.Context, user authz.Principal) (usage.Rate, usage.Credits, error) {
	m.check("Usage", user.User)
	return m.rate, m.credits, m.partErr
}

func (m *fakeMeter) Days(_ context.Context, user string) ([]usage.Day, error) {
	m.check("Days", user)
	return m.days, m.partErr
}

func (m *fakeMeter) Requests(_ context.Context, user, before string, n int) ([]usage.Record, string, error) {
	m.check("Requests", user)
	if n < 1 {
		m.t.Errorf("%d requests are asked for", n)
	}
	if m.partErr != nil || m.listErr != nil {
		return nil, "", cmp.Or(m.listErr, m.partErr)
	}
	if before != "" {
		return nil, "", nil
	}
	return m.requests, m.next, nil
}

func (m *fakeMeter) KeyUsage(_ context.Context, user, keyID string) (usage.KeyUsage, error) {
	if user != "ada" || keyID != "key_1" {
		m.t.Errorf("KeyUsage is called for %q of %q", keyID, user)
	}
	return m.keyUsage, m.partErr
}

func (m *fakeMeter) EndedKeyUsage(_ context.Context, user string, since time.Time) (usage.KeyUsage, error) {
	if user != "ada" || !since.Equal(keyCreated) {
		m.t.Errorf("EndedKeyUsage is called for %q since %s", user, since)
	}
	return m.oldKeys, m.partErr
}
