// Package receipt signs the names of charges, so that an access log and an upstream can name a
// charge and nobody can invent one.
package receipt

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

	"github.com/keyporter/keyporter/usage"
)

// Receipt holds everything about a charge that a refund needs. It travels with the request, so that
// no row is written for a charge that stands.
type Receipt struct {
	Holder        string // the process that charged, at most [MaxHolder] bytes
	Number        uint64 // of the charge; unique in its holder
	Month         usage.Month
	Cost          int64 // in credits
	User, Account string
	Refund        usage.RefundRule
}

// ShouldRefund reports whether the credits come back after a completed request: by the rule of the
// route, or because the request never passed.
func (r *Receipt) ShouldRefund(c usage.Completion) bool {
	switch {
	case c.Failure.Voids():
		return true
	case r.Refund.Never:
		return false
	case len(r.Refund.Codes) == 0:
		return c.Failure != usage.NoFailure
	case c.Failure == usage.ClientGone, c.Status == 0 && c.Failure != usage.NoFailure:
		return true // nobody received a status that could be among the codes
	}
	return slices.Contains(r.Refund.Codes, c.Status)
}

const (
	// MaxHolder is the maximum length of a holder's name, in bytes.
	MaxHolder = 16
	// MinSecret is the minimum length of a secret of a [Signer], in bytes.
	MinSecret = 32

	// maxReceipt is the maximum length of a signed receipt, in characters. One with the longest
	// names and all codes takes less than half of it.
	maxReceipt = 1 << 10
	macSize    = sha256.Size / 2
	macText    = 22 // characters
)

// ErrForged is returned for a text that the [Signer] did not make for the requested purpose.
var ErrForged = errors.New("not a charge of ours")

// Signer turns receipts into text that nobody else can make, for two purposes: for the upstream,
// which may settle a charge, and for the access log. A text for one purpose is refused for the
// other, so that an upstream cannot replay its text as a log entry, and a reader of logs cannot
// settle a charge. The facts in a text are readable to anyone who has it.
//
// A text is the facts, and 16 bytes of an HMAC-SHA-256 of them, each in base64url: the first half
// of the HMAC for the upstream, the second half for the access log. Neither half reveals the other.
//
// A Signer is immutable and safe for concurrent use.
type Signer struct{ keys keyring }

// purpose is the receiver of a text: it selects the half of the HMAC.
type purpose int

const (
	forUpstream purpose = iota
	forLog
)

// Secrets are the secrets of a [Signer]: the first of both together sign, and all are accepted. To
// rotate a secret, put the new one first. Each list needs at least one secret, and each secret at
// least [MinSecret] bytes.
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

// Sign returns r as a text for the upstream, and as one for the access log: about a hundred
// characters each. Both are empty if r cannot be signed, for example because the name of its holder
// is too long; such a charge stands.
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

// ParseID reads the upstream's text, or returns [ErrForged].
func (s *Signer) ParseID(id string) (Receipt, error) { return s.open(id, forUpstream) }

// ParseReceipt reads the access log's text, or returns [ErrForged].
func (s *Signer) ParseReceipt(receipt string) (Receipt, error) { return s.open(receipt, forLog) }

// keyring signs with its first key and accepts all. Each key is a pool of keyed hashes, because
// keying a hash costs as much as using it.
type keyring []*sync.Pool

// newKey derives a key from two secrets.
func newKey(id, receipt []byte) *sync.Pool {
	derive := hmac.New(sha256.New, id)
	derive.Write([]byte("keyporter charge, 2\x00"))
	derive.Write(receipt)
	key := derive.Sum(nil)
	return &sync.Pool{New: func() any { return hmac.New(sha256.New, key) }}
}

// scratch is the working memory of one call. It is reused, so that a call allocates only its
// result.
type scratch struct {
	raw  []byte // of a receipt
	text []byte // of receipts in base64url
	sum  [sha256.Size]byte
}

var scratches = sync.Pool{New: func() any {
	return &scratch{raw: make([]byte, 0, 256), text: make([]byte, 0, 512)}
}}

// encoding accepts exactly one text for given bytes.
var encoding = base64.RawURLEncoding.Strict()

func (s *Signer) open(text string, p purpose) (Receipt, error) {
	// The decoder skips line breaks, which would give a receipt many texts.
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

// signed reports whether one of the keys made signature. It tries all of them, so that its timing
// reveals nothing.
func (s *Signer) signed(scratch *scratch, facts, signature []byte, p purpose) bool {
	found := 0
	for _, key := range s.keys {
		found |= subtle.ConstantTimeCompare(p.mac(sum(key, scratch, facts)), signature)
	}
	return found == 1
}

// sum returns the HMAC of facts. The result is valid until the next call with the same scratch.
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

// form is the first byte of a receipt. A changed form gets another value.
const form = 2

// The encodings of a refund rule.
const (
	refundOnFailure = iota
	refundNever
	refundOnCodes // each as one byte, counted from 400
)

// appendReceipt appends r in its only encoding, or reports that r has none.
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

// parseReceipt reads what appendReceipt wrote. It gets signed input only, so an error means another
// version of Keyporter.
func parseReceipt(b []byte) (Receipt, error) {
	p := parser{rest: b}
	if p.byte() != form {
		return Receipt{}, ErrForged
	}
	r := Receipt{
		Holder: p.text(), Number: p.number(),
		Month: usage.Month(p.number()), Cost: int64(p.number()),
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

// parser reads from the front. Once it runs out of input, it is broken and returns zeros.
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
