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
	"strconv"
	"strings"
	"sync"

	"github.com/keyporter/keyporter/authz"
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

// Due reports whether the credits come back, by the rule of the route, after a request that ended with e.
func Due(r Receipt, e authz.Ending) bool {
	switch {
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
	macSize    = 16
)

// ErrForged is what [Signer] says about a text that it did not make for the purpose that was asked for.
var ErrForged = errors.New("not a charge of ours")

// Signer turns receipts into text that only it can make, for two purposes: the upstream's, which may
// settle a charge, and the access log's. What was made for one is refused for the other, so that an
// upstream cannot replay what it saw as a log entry, nor who reads logs settle a charge. The facts in it
// can be read by whoever has it.
//
// A Signer is immutable and safe for concurrent use.
type Signer struct{ id, receipt keyring }

// Secrets are what a [Signer] signs with: the first of a purpose signs, all are accepted, so that one is
// rotated by putting the new one first. At least one for each purpose, of [MinSecret] bytes or more.
type Secrets struct{ ID, Receipt [][]byte }

// NewSigner returns a Signer, or an error that says what is wrong with the secrets.
func NewSigner(s Secrets) (*Signer, error) {
	id, err := newKeyring("keyporter charge for the upstream, 1", s.ID)
	if err != nil {
		return nil, fmt.Errorf("the secrets of charge ids: %w", err)
	}
	receipt, err := newKeyring("keyporter charge for the access log, 1", s.Receipt)
	if err != nil {
		return nil, fmt.Errorf("the secrets of receipts: %w", err)
	}
	return &Signer{id: id, receipt: receipt}, nil
}

// Sign returns r as the upstream gets it, and as the access log does: base64url, about a hundred
// characters each. Both are empty where r is not a receipt that can be signed, such as one with the name
// of a holder that is too long; such a charge stands.
func (s *Signer) Sign(r Receipt) (id, receipt string) {
	scratch := scratches.Get().(*scratch)
	defer scratches.Put(scratch)
	facts, ok := appendReceipt(scratch.raw[:0], &r)
	if scratch.raw = facts; !ok {
		return "", ""
	}
	return s.id.seal(scratch, facts), s.receipt.seal(scratch, facts)
}

// ParseID reads what the upstream got, or returns [ErrForged].
func (s *Signer) ParseID(id string) (Receipt, error) { return s.id.open(id) }

// ParseReceipt reads what the access log got, or returns [ErrForged].
func (s *Signer) ParseReceipt(receipt string) (Receipt, error) { return s.receipt.open(receipt) }

// keyring signs with its first key and accepts all. Each is a pool of keyed hashes, since to key one
// costs as much as to use it.
type keyring []*sync.Pool

// newKeyring returns the keyring of one purpose. The purpose is part of the key, so that two purposes
// differ even if somebody gives them one secret.
func newKeyring(purpose string, secrets [][]byte) (keyring, error) {
	if len(secrets) == 0 {
		return nil, errors.New("there is none")
	}
	var all keyring
	for _, secret := range secrets {
		if len(secret) < MinSecret {
			return nil, fmt.Errorf("one has at least %d bytes, not %d", MinSecret, len(secret))
		}
		derive := hmac.New(sha256.New, secret)
		derive.Write([]byte(purpose))
		key := derive.Sum(nil)
		all = append(all, &sync.Pool{New: func() any { return hmac.New(sha256.New, key) }})
	}
	return all, nil
}

// scratch is what one call works in; kept for the next one, so that it allocates only what it returns.
type scratch struct {
	raw  []byte // of a receipt, with its MAC
	text []byte // of the same in base64url
	sum  [sha256.Size]byte
}

var scratches = sync.Pool{New: func() any {
	return &scratch{raw: make([]byte, 0, 256), text: make([]byte, 0, 256)}
}}

// encoding has one text for any bytes.
var encoding = base64.RawURLEncoding.Strict()

func (k keyring) seal(s *scratch, facts []byte) string {
	s.raw = append(facts, mac(k[0], s, facts)...)
	s.text = encoding.AppendEncode(s.text[:0], s.raw)
	return string(s.text)
}

func (k keyring) open(text string) (Receipt, error) {
	// The decoder skips line breaks, and then a receipt had many texts.
	if len(text) > maxReceipt || strings.ContainsAny(text, "\r\n") {
		return Receipt{}, ErrForged
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	s.text = append(s.text[:0], text...)
	raw, err := encoding.AppendDecode(s.raw[:0], s.text)
	if s.raw = raw; err != nil || len(raw) < macSize {
		return Receipt{}, ErrForged
	}
	facts, signature := raw[:len(raw)-macSize], raw[len(raw)-macSize:]
	if !k.signed(s, facts, signature) {
		return Receipt{}, ErrForged
	}
	return parseReceipt(facts)
}

// signed reports whether one of the keys made signature. It tries all of them, so that how long it takes
// says nothing.
func (k keyring) signed(s *scratch, facts, signature []byte) bool {
	found := 0
	for _, key := range k {
		found |= subtle.ConstantTimeCompare(mac(key, s, facts), signature)
	}
	return found == 1
}

// mac returns the MAC of facts, which is good until the next call with s.
func mac(key *sync.Pool, s *scratch, facts []byte) []byte {
	h := key.Get().(hash.Hash)
	defer key.Put(h)
	h.Reset()
	h.Write(facts)
	return h.Sum(s.sum[:0])[:macSize]
}

// The first byte of a receipt: its form. A new form gets a new one.
const form = 1

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
	return b, encoding.EncodedLen(len(b)+macSize) <= maxReceipt
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

// Charge returns the name of the charge in the ledger, by which it is given back at most once.
func (r *Receipt) Charge() string { return r.Holder + "-" + strconv.FormatUint(r.Number, 10) }
