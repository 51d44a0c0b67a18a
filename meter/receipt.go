package meter

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"
	"sync"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/meter/ledger"
)

// Receipt is all there is to know about a charge when it may have to be given back. It travels with the
// request, so that no row is written for a charge that stands.
type Receipt struct {
	Holder        string // the process that charged, at most [MaxHolder] bytes
	Number        uint64 // of the charge; unique in its holder
	Month         authz.Month
	Cost          int64 // in credits
	User, Account string
	Refund        authz.Refund
}

// Due reports whether the credits come back after a request that ended with e: by the rule of the
// route, unless our yes had no effect.
func Due(r Receipt, e authz.Ending) bool {
	switch {
	case e.Failure.Voids():
		return true
	case r.Refund.Never:
		return false
	case len(r.Refund.Codes) == 0:
		return e.Failure != authz.NoFailure
	case e.Failure == authz.ClientGone, e.Status == 0 && e.Failure != authz.NoFailure:
		return true // nobody got any status that could be among the codes
	}
	return slices.Contains(r.Refund.Codes, e.Status)
}

const (
	// MaxHolder is the length of the longest name of a holder, in bytes.
	MaxHolder = 16
	// MinSecret is the length of the shortest secret of a [Signer], in bytes.
	MinSecret = 32

	// maxReceipt is the length of the longest signed receipt, in characters. The longest names and all
	// codes there are take less than half.
	maxReceipt = 1 << 10
	macSize    = sha256.Size / 2
	macText    = 22 // characters
)

// ErrForged is what [Signer] says about a text that it did not make for the purpose that was asked for.
var ErrForged = errors.New("not a charge of ours")

// Signer turns receipts into text that only it can make, for two purposes: the upstream's, which may
// settle a charge, and the access log's. What was made for one is refused for the other, so that an
// upstream cannot replay what it saw as a log entry, nor who reads logs settle a charge. The facts in it
// can be read by whoever has it.
//
// A text is the facts, and 16 bytes of an HMAC-SHA-256 of them, each in base64url: the first half of it for the
// upstream, the second for the access log. Who knows the one half knows nothing of the other.
//
// A Signer is immutable and safe for concurrent use.
type Signer struct{ keys keyring }

// purpose is whom a text is for: which half of the HMAC it has.
type purpose int

const (
	forUpstream purpose = iota
	forLog
)

// Secrets are what a [Signer] signs with: the first of both sign, together, and all are accepted, so that one is
// rotated by putting the new one first. At least one of each, of [MinSecret] bytes or more.
type Secrets struct{ ID, Receipt [][]byte }

// NewSigner returns a Signer, or an error that says what is wrong with the secrets.
func NewSigner(s Secrets) (*Signer, error) {
	if err := checkSecrets(s.ID); err != nil {
		return nil, fmt.Errorf("the secrets of charge ids: %w", err)
	}
	if err := checkSecrets(s.Receipt); err != nil {
		return nil, fmt.Errorf("the secrets of receipts: %w", err)
	}
	var keys keyring
	for _, id := range s.ID {
		for _, receipt := range s.Receipt { // one may be rotated before the other
			keys = append(keys, newKey(id, receipt))
		}
	}
	return &Signer{keys}, nil
}

func checkSecrets(secrets [][]byte) error {
	if len(secrets) == 0 {
		return errors.New("there is none")
	}
	for _, secret := range secrets {
		if len(secret) < MinSecret {
			return fmt.Errorf("one has at least %d bytes, not %d", MinSecret, len(secret))
		}
	}
	return nil
}

// Sign returns r as the upstream gets it, and as the access log does: about a hundred
// characters each. Both are empty where r is not a receipt that can be signed, such as one with the name
// of a holder that is too long; such a charge stands.
func (s *Signer) Sign(r Receipt) (id, receipt string) {
	scratch := scratches.Get().(*scratch)
	defer scratches.Put(scratch)
	facts, ok := appendReceipt(scratch.raw[:0], &r)
	if scratch.raw = facts; !ok {
		return "", ""
	}
	sum := sum(s.keys[0], scratch, facts)
	text := encoding.AppendEncode(scratch.text[:0], facts)
	size := len(text) + macText
	text = encoding.AppendEncode(text, forUpstream.mac(sum))
	text = append(text, text[:size-macText]...)
	text = encoding.AppendEncode(text, forLog.mac(sum))
	scratch.text = text
	both := string(text)
	return both[:size], both[size:]
}

// ParseID reads what the upstream got, or returns [ErrForged].
func (s *Signer) ParseID(id string) (Receipt, error) { return s.open(id, forUpstream) }

// ParseReceipt reads what the access log got, or returns [ErrForged].
func (s *Signer) ParseReceipt(receipt string) (Receipt, error) { return s.open(receipt, forLog) }

// keyring signs with its first key and accepts all. Each is a pool of keyed hashes, since to key one
// costs as much as to use it.
type keyring []*sync.Pool

// newKey returns the key of two secrets.
func newKey(id, receipt []byte) *sync.Pool {
	derive := hmac.New(sha256.New, id)
	derive.Write([]byte("keyporter charge, 2\x00"))
	derive.Write(receipt)
	key := derive.Sum(nil)
	return &sync.Pool{New: func() any { return hmac.New(sha256.New, key) }}
}

// scratch is what one call works in; kept for the next one, so that it allocates only what it returns.
type scratch struct {
	raw  []byte // of a receipt
	text []byte // of receipts in base64url
	sum  [sha256.Size]byte
}

var scratches = sync.Pool{New: func() any {
	return &scratch{raw: make([]byte, 0, 256), text: make([]byte, 0, 512)}
}}

// encoding has one text for any bytes.
var encoding = base64.RawURLEncoding.Strict()

func (s *Signer) open(text string, p purpose) (Receipt, error) {
	// The decoder skips line breaks, and then a receipt had many texts.
	if len(text) > maxReceipt || len(text) < macText || strings.ContainsAny(text, "\r\n") {
		return Receipt{}, ErrForged
	}
	scratch := scratches.Get().(*scratch)
	defer scratches.Put(scratch)
	scratch.text = append(scratch.text[:0], text...)
	split := len(text) - macText
	raw, err := encoding.AppendDecode(scratch.raw[:0], scratch.text[:split])
	facts := len(raw)
	if err == nil {
		raw, err = encoding.AppendDecode(raw, scratch.text[split:])
	}
	if scratch.raw = raw; err != nil || !s.signed(scratch, raw[:facts], raw[facts:], p) {
		return Receipt{}, ErrForged
	}
	return parseReceipt(raw[:facts])
}

// signed reports whether one of the keys made signature. It tries all of them, so that how long it takes
// says nothing.
func (s *Signer) signed(scratch *scratch, facts, signature []byte, p purpose) bool {
	found := 0
	for _, key := range s.keys {
		found |= subtle.ConstantTimeCompare(p.mac(sum(key, scratch, facts)), signature)
	}
	return found == 1
}

// sum returns the HMAC of facts, which is good until the next call with the same scratch.
func sum(key *sync.Pool, s *scratch, facts []byte) *[sha256.Size]byte {
	h := key.Get().(hash.Hash)
	defer key.Put(h)
	h.Reset()
	h.Write(facts)
	h.Sum(s.sum[:0])
	return &s.sum
}

// mac returns the part of an HMAC for a purpose.
func (p purpose) mac(sum *[sha256.Size]byte) []byte { return sum[int(p)*macSize : int(p+1)*macSize] }

// The first byte of a receipt: its form. A new form gets a new one.
const form = 2

// How the rule for refunds is written down.
const (
	refundOnFailure = iota
	refundNever
	refundOnCodes // each as one byte, counted from 400
)

// appendReceipt appends r in a form that has one text for each receipt, or reports that r has none.
func appendReceipt(b []byte, r *Receipt) ([]byte, bool) {
	if len(r.Holder) > MaxHolder || r.Month < 0 || r.Cost < 0 || r.Refund.Never && len(r.Refund.Codes) > 0 {
		return b, false
	}
	b = append(b, form)
	b = appendText(b, r.Holder)
	b = binary.AppendUvarint(b, r.Number)
	b = binary.AppendUvarint(b, uint64(r.Month))
	b = binary.AppendUvarint(b, uint64(r.Cost))
	b = appendText(b, r.User)
	b = appendText(b, r.Account)
	switch {
	case r.Refund.Never:
		b = append(b, refundNever)
	case len(r.Refund.Codes) == 0:
		b = append(b, refundOnFailure)
	default:
		b = append(b, refundOnCodes)
	}
	for _, code := range r.Refund.Codes {
		if code < 400 || code > 599 {
			return b, false
		}
		b = append(b, byte(code-400))
	}
	return b, encoding.EncodedLen(len(b))+macText <= maxReceipt
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// parseReceipt reads what appendReceipt wrote. Only what was signed gets here, so an error means another
// version of Keyporter.
func parseReceipt(b []byte) (Receipt, error) {
	p := parser{rest: b}
	if p.byte() != form {
		return Receipt{}, ErrForged
	}
	r := Receipt{
		Holder: p.text(), Number: p.number(),
		Month: authz.Month(p.number()), Cost: int64(p.number()),
		User: p.text(), Account: p.text(),
	}
	switch p.byte() {
	case refundOnFailure:
	case refundNever:
		r.Refund.Never = true
	case refundOnCodes:
		for len(p.rest) > 0 {
			r.Refund.Codes = append(r.Refund.Codes, 400+int(p.byte()))
		}
	default:
		p.broken = true
	}
	if p.broken || len(p.rest) > 0 {
		return Receipt{}, ErrForged
	}
	return r, nil
}

// parser reads from the front. Once something was missing, it returns zeros.
type parser struct {
	rest   []byte
	broken bool
}

func (p *parser) take(n uint64) []byte {
	if n > uint64(len(p.rest)) {
		p.rest, p.broken = nil, true
		return nil
	}
	taken := p.rest[:n]
	p.rest = p.rest[n:]
	return taken
}

func (p *parser) byte() byte {
	if b := p.take(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (p *parser) number() uint64 {
	n, size := binary.Uvarint(p.rest)
	if size <= 0 {
		p.rest, p.broken = nil, true
		return 0
	}
	p.take(uint64(size))
	return n
}

func (p *parser) text() string { return string(p.take(p.number())) }

// outcome returns what the ledger is told of the charge, whose credits come back for a cause, or
// stay charged ("").
func (r *Receipt) outcome(cause string) ledger.Outcome {
	return ledger.Outcome{
		ChargeID: ledger.ChargeID{Holder: r.Holder, Number: r.Number},
		Month:    r.Month, User: r.User, Account: r.Account, Credits: r.Cost, Cause: cause,
	}
}
