package receipt

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyporter/keyporter/usage"
)

func secret(b byte) []byte { return bytes.Repeat([]byte{b}, MinSecret) }

func newSigner(t testing.TB, id, receipt [][]byte) *Signer {
	t.Helper()
	s, err := NewSigner(Secrets{ID: id, Receipt: receipt})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func someSigner(t testing.TB) *Signer { return newSigner(t, [][]byte{secret(1)}, [][]byte{secret(2)}) }

var someReceipt = Receipt{
	Holder: "0123456789abcdef", Number: 1 << 40, Month: usage.MonthOf(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)),
	Cost: 25, User: "ada", Account: "acme", Refund: usage.RefundRule{Codes: []int{500, 503}},
}

var receipts = rapid.Custom(func(t *rapid.T) Receipt {
	r := Receipt{
		Holder:  rapid.StringN(0, -1, MaxHolder).Draw(t, "holder"),
		Number:  rapid.Uint64().Draw(t, "number"),
		Month:   usage.Month(rapid.Int32Min(0).Draw(t, "month")),
		Cost:    rapid.Int64Min(0).Draw(t, "cost"),
		User:    rapid.StringN(0, -1, 128).Draw(t, "user"),
		Account: rapid.StringN(0, -1, 128).Draw(t, "account"),
	}
	if r.Refund.Never = rapid.Bool().Draw(t, "never"); !r.Refund.Never {
		r.Refund.Codes = rapid.SliceOfNDistinct(rapid.IntRange(400, 599), 0, 200, rapid.ID[int]).Draw(t, "codes")
		if len(r.Refund.Codes) == 0 {
			r.Refund.Codes = nil
		}
	}
	return r
})

// A signed receipt is read back unchanged, for any receipt, and only for its own purpose.
func TestReceiptsComeBackAsTheyWere(t *testing.T) {
	s := someSigner(t)
	rapid.Check(t, func(t *rapid.T) {
		r := receipts.Draw(t, "receipt")
		id, receipt := s.Sign(r)
		for what, try := range map[string]func() (Receipt, error){
			"id":      func() (Receipt, error) { return s.ParseID(id) },
			"receipt": func() (Receipt, error) { return s.ParseReceipt(receipt) },
		} {
			got, err := try()
			if diff := cmp.Diff(r, got); err != nil || diff != "" {
				t.Fatalf("%s: %v (-want +got):\n%s", what, err, diff)
			}
		}
		if _, err := s.ParseReceipt(id); !errors.Is(err, ErrForged) {
			t.Fatalf("the upstream's id is taken from the access log: %v", err)
		}
		if _, err := s.ParseID(receipt); !errors.Is(err, ErrForged) {
			t.Fatalf("the access log's receipt is taken from the upstream: %v", err)
		}
	})
}

// A text matches the documents: anybody with the secrets can make it.
func TestAReceiptIsWhatTheDocumentsSay(t *testing.T) {
	id, receipt := someSigner(t).Sign(someReceipt)
	facts, ok := appendReceipt(nil, &someReceipt)
	key := hmac.New(sha256.New, secret(1))
	key.Write(append([]byte("keyporter charge, 2\x00"), secret(2)...))
	mac := hmac.New(sha256.New, key.Sum(nil))
	mac.Write(facts)
	sum, encode := mac.Sum(nil), base64.RawURLEncoding.EncodeToString
	if want := encode(facts) + encode(sum[:16]); !ok || id != want {
		t.Errorf("the upstream's id is %s, want %s", id, want)
	}
	if want := encode(facts) + encode(sum[16:]); receipt != want {
		t.Errorf("the access log's receipt is %s, want %s", receipt, want)
	}
}

// The purposes differ even if both have the same secret.
func TestOneSecretDoesNotMakeTwoPurposesOne(t *testing.T) {
	s := newSigner(t, [][]byte{secret(1)}, [][]byte{secret(1)})
	id, receipt := s.Sign(someReceipt)
	if _, err := s.ParseReceipt(id); !errors.Is(err, ErrForged) {
		t.Errorf("the upstream's id is taken from the access log: %v", err)
	}
	if _, err := s.ParseID(receipt); !errors.Is(err, ErrForged) {
		t.Errorf("the access log's receipt is taken from the upstream: %v", err)
	}
}

// A receipt has one text: no bit can be changed, and nothing left out, added or inserted.
func TestAChangedReceiptIsRefused(t *testing.T) {
	s := someSigner(t)
	_, signed := s.Sign(someReceipt)
	refused := func(what, text string) {
		t.Helper()
		if r, err := s.ParseReceipt(text); !errors.Is(err, ErrForged) || !cmp.Equal(r, Receipt{}) {
			t.Errorf("%s: %+v, %v", what, r, err)
		}
	}
	for i := range len(signed) {
		for bit := range 8 {
			b := []byte(signed)
			b[i] ^= 1 << bit
			refused("a flipped bit of the text", string(b))
		}
		refused("cut off", signed[:i])
		refused("without its begin", signed[i+1:])
		for _, more := range []string{"\n", "\r", "=", "A", " ", "\x00"} {
			refused("with something between", signed[:i]+more+signed[i:])
		}
	}
	facts, err := base64.RawURLEncoding.DecodeString(signed[:len(signed)-macText])
	mac, err2 := base64.RawURLEncoding.DecodeString(signed[len(signed)-macText:])
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	raw := append(facts, mac...)
	text := func(b []byte) string {
		at := len(b) - macSize
		return base64.RawURLEncoding.EncodeToString(b[:at]) + base64.RawURLEncoding.EncodeToString(b[at:])
	}
	if text(raw) != signed {
		t.Fatalf("%s, want %s", text(raw), signed)
	}
	for i := range len(raw) * 8 {
		b := bytes.Clone(raw)
		b[i/8] ^= 1 << (i % 8)
		refused("a flipped bit", text(b))
	}
	for _, more := range []string{"\n", "\r\n", "\n\n\n\n", "=", "==", "AAAA"} {
		refused("with something behind", signed+more)
	}
	refused("twice", signed+signed)
	refused("with other letters", base64.RawStdEncoding.EncodeToString(append(raw, 0xff, 0xff)))
}

// Unsigned texts of any length or form are refused, and so are texts signed with another secret.
func FuzzReceiptsOfOthers(f *testing.F) {
	s, other := someSigner(f), newSigner(f, [][]byte{secret(3)}, [][]byte{secret(4)})
	id, receipt := other.Sign(someReceipt)
	for _, seed := range []string{"", "A", "====", id, receipt, strings.Repeat("A", 22), strings.Repeat("A", 1<<16), strings.Repeat("\n", 1<<10), "\xff\xfe", "Ag" + strings.Repeat("_", 200)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, parse := range []func(string) (Receipt, error){s.ParseID, s.ParseReceipt} {
			if r, err := parse(text); !errors.Is(err, ErrForged) {
				t.Errorf("%q: %+v, %v", text, r, err)
			}
		}
	})
}

// Any bytes, even signed ones of another version, yield a receipt or an error, and a parsed receipt
// is written again as the same bytes.
func FuzzReceiptBytes(f *testing.F) {
	b, _ := appendReceipt(nil, &someReceipt)
	f.Add(b)
	f.Add([]byte{form})
	f.Add([]byte{form, 0, 0, 0, 0, 0, 0, refundOnCodes})
	f.Add([]byte{form, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxReceipt {
			return
		}
		r, err := parseReceipt(b)
		if err != nil {
			return
		}
		again, ok := appendReceipt(nil, &r)
		if !ok {
			return // a version that allows more
		}
		if back, err := parseReceipt(again); err != nil || !cmp.Equal(r, back) {
			t.Errorf("%x is %+v, and then %+v, %v", b, r, back, err)
		}
	})
}

// While secrets are rotated, texts signed with the old one are still accepted; once it is gone,
// they are not.
func TestSecretsOfReceiptsRotate(t *testing.T) {
	old, both, gone := someSigner(t),
		newSigner(t, [][]byte{secret(3), secret(1)}, [][]byte{secret(4), secret(2)}),
		newSigner(t, [][]byte{secret(3)}, [][]byte{secret(4)})
	for _, row := range []struct {
		name     string
		by, with *Signer
		accepted bool
	}{
		{"the old secret's, while there are two", old, both, true},
		{"the newest signs", both, gone, true},
		{"and the old one no more", both, old, false},
		{"the old secret's, when it is gone", old, gone, false},
	} {
		id, receipt := row.by.Sign(someReceipt)
		_, err := row.with.ParseID(id)
		_, err2 := row.with.ParseReceipt(receipt)
		if (err == nil) != row.accepted || (err2 == nil) != row.accepted {
			t.Errorf("%s: %v, %v", row.name, err, err2)
		}
	}
}

// Missing or short secrets are refused, and reported by their purpose.
func TestSecretsOfReceiptsAreChecked(t *testing.T) {
	good, short := [][]byte{secret(1)}, [][]byte{secret(1), secret(2)[1:]}
	for _, row := range []struct {
		secrets Secrets
		want    string
	}{
		{Secrets{}, "the secrets of charge ids: there is none"},
		{Secrets{ID: good}, "the secrets of receipts: there is none"},
		{Secrets{ID: short, Receipt: good}, "the secrets of charge ids: one has at least 32 bytes, not 31"},
		{Secrets{ID: good, Receipt: short}, "the secrets of receipts: one has at least 32 bytes, not 31"},
	} {
		if _, err := NewSigner(row.secrets); err == nil || err.Error() != row.want {
			t.Errorf("%v, want %s", err, row.want)
		}
	}
}

// A receipt without an encoding is not signed, rather than signed as something else.
func TestWhatIsNoReceiptIsNotSigned(t *testing.T) {
	s := someSigner(t)
	for name, r := range map[string]Receipt{
		"a long holder":       {Holder: "0123456789abcdefg"},
		"a negative cost":     {Cost: -1},
		"a negative month":    {Month: -1},
		"a code of a success": {Refund: usage.RefundRule{Codes: []int{399}}},
		"a code beyond all":   {Refund: usage.RefundRule{Codes: []int{600}}},
		"never, with codes":   {Refund: usage.RefundRule{Never: true, Codes: []int{500}}},
		"a user without end":  {User: strings.Repeat("a", maxReceipt)},
	} {
		if id, receipt := s.Sign(r); id != "" || receipt != "" {
			t.Errorf("%s: %q %q", name, id, receipt)
		}
	}
	if _, err := s.ParseID(""); !errors.Is(err, ErrForged) {
		t.Errorf("the empty id: %v", err)
	}
}

// A receipt fits into a header, and one with short names is about a hundred characters.
func TestReceiptsAreShort(t *testing.T) {
	s := someSigner(t)
	if id, _ := s.Sign(someReceipt); len(id) > 100 {
		t.Errorf("a short one has %d characters", len(id))
	}
	longest := Receipt{
		Holder: strings.Repeat("h", MaxHolder), Number: math.MaxUint64, Month: math.MaxInt32, Cost: math.MaxInt64,
		User: strings.Repeat("u", 128), Account: strings.Repeat("a", 128),
	}
	for code := 400; code < 600; code++ {
		longest.Refund.Codes = append(longest.Refund.Codes, code)
	}
	id, _ := s.Sign(longest)
	if _, err := s.ParseID(id); err != nil || len(id) > maxReceipt*3/4 {
		t.Errorf("the longest has %d characters: %v", len(id), err)
	}
}

// Many goroutines sign and read concurrently, and each reads what it signed.
func TestASignerIsSharedByAll(t *testing.T) {
	s := someSigner(t)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for n := range 200 {
				r := someReceipt
				r.Holder, r.Number = string(rune('a'+worker)), uint64(n)
				id, receipt := s.Sign(r)
				a, err := s.ParseID(id)
				b, err2 := s.ParseReceipt(receipt)
				if err != nil || err2 != nil || !cmp.Equal(a, r) || !cmp.Equal(b, r) {
					t.Errorf("%+v: %+v, %v; %+v, %v", r, a, err, b, err2)
				}
			}
		})
	}
	wg.Wait()
}

// Each refund rule, combined with each way in which a request ends.
func TestWhenCreditsComeBack(t *testing.T) {
	failure, never, codes := usage.RefundRule{}, usage.RefundRule{Never: true}, usage.RefundRule{Codes: []int{404, 503}}
	for _, row := range []struct {
		name    string
		status  int
		failure usage.Failure
		want    map[string]bool // rule → whether they do; left out: no
	}{
		{"a success", 200, usage.NoFailure, nil},
		{"a 404 of the upstream", 404, usage.NoFailure, map[string]bool{"codes": true}},
		{"a 503 of the upstream", 503, usage.Answered5xx, map[string]bool{"failure": true, "codes": true}},
		{"a 500 of the upstream", 500, usage.Answered5xx, map[string]bool{"failure": true}},
		{"gRPC's unavailable, with status 200", 200, usage.Answered5xx, map[string]bool{"failure": true}},
		{"a reset, which is 503 to the client", 503, usage.NoAnswer, map[string]bool{"failure": true, "codes": true}},
		{"too slow, which is 504 to the client", 504, usage.NoAnswer, map[string]bool{"failure": true}},
		{"no answer at all", 0, usage.NoAnswer, map[string]bool{"failure": true, "codes": true}},
		{"nobody asked, which is 503 to the client", 503, usage.NotAsked, map[string]bool{"failure": true, "codes": true}},
		{"nobody asked, which is 500 to the client", 500, usage.NotAsked, map[string]bool{"failure": true}},
		{"the client gone before", 0, usage.ClientGone, map[string]bool{"failure": true, "codes": true}},
		{"the client gone after", 0, usage.NoFailure, nil},
		{"no room for our headers", 431, usage.HeadersTooLarge, map[string]bool{"failure": true, "codes": true, "never": true}},
		{"an answer of ours that Envoy refuses", 500, usage.InvalidAnswer, map[string]bool{"failure": true, "codes": true, "never": true}},
	} {
		for name, rule := range map[string]usage.RefundRule{"failure": failure, "never": never, "codes": codes} {
			got := (&Receipt{Refund: rule}).ShouldRefund(usage.Completion{Status: row.status, Failure: row.failure})
			if got != row.want[name] {
				t.Errorf("%s, refund %s: %v", row.name, name, got)
			}
		}
	}
}

func BenchmarkReceipt(b *testing.B) {
	s := newSigner(b, [][]byte{secret(3), secret(1)}, [][]byte{secret(4), secret(2)})
	r := someReceipt
	r.Refund = usage.RefundRule{}
	id, _ := s.Sign(r)
	b.Run("sign", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.Sign(r)
		}
	})
	b.Run("parse", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.ParseID(id)
		}
	})
}
