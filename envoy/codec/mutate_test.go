package codec_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// rounds is the number of messages that a plain generator makes: KEYPORTER_FUZZ_ROUNDS, or a few.
func rounds(t *testing.T) int {
	text := os.Getenv("KEYPORTER_FUZZ_ROUNDS")
	if text == "" {
		return 20_000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("KEYPORTER_FUZZ_ROUNDS: %v", err)
	}
	return n
}

// mutated returns one of the messages, changed in up to four places. Mostly it corrects the lengths
// around a change, so that the nested content is read.
func mutated(random *rand.Rand, messages [][]byte) []byte {
	message := bytes.Clone(messages[random.IntN(len(messages))])
	for range random.IntN(4) + 1 {
		if random.IntN(8) == 0 {
			message = bytesChanged(random, message)
			continue
		}
		message = fieldChanged(random, message, 6)
	}
	return message
}

func bytesChanged(random *rand.Rand, b []byte) []byte {
	if len(b) == 0 {
		return []byte{byte(random.Uint32())}
	}
	at := random.IntN(len(b))
	switch random.IntN(4) {
	case 0:
		b[at] ^= 1 << random.IntN(8)
	case 1:
		b = b[:at]
	case 2:
		b = slices.Delete(b, at, min(len(b), at+1+random.IntN(4)))
	default:
		b = slices.Insert(b, at, byte(random.Uint32()))
	}
	return b
}

// fieldChanged changes one field of a message, or one inside it. If b is no message, it changes
// bytes.
func fieldChanged(random *rand.Rand, b []byte, depth int) []byte {
	fields := fieldsOf(b)
	if len(fields) == 0 || depth == 0 {
		return bytesChanged(random, b)
	}
	i := random.IntN(len(fields))
	f := fields[i]
	switch random.IntN(12) {
	case 0: // again, perhaps to be merged
		fields = slices.Insert(fields, random.IntN(len(fields)+1), f)
	case 1:
		fields = slices.Delete(fields, i, i+1)
	case 2: // another place
		j := random.IntN(len(fields))
		fields[i], fields[j] = fields[j], fields[i]
	case 3: // an unknown field, or a known one with another type
		fields = slices.Insert(fields, i, unknown(random))
	case 4: // a number that is longer than necessary
		fields[i] = longer(random, f)
	default:
		if f.typ == protowire.BytesType {
			fields[i].value = fieldChanged(random, bytes.Clone(f.value), depth-1)
		} else {
			fields[i].raw = bytesChanged(random, bytes.Clone(f.raw))
		}
	}
	var out []byte
	for _, f := range fields {
		out = append(out, f.encoded()...)
	}
	return out
}

type field struct {
	typ        protowire.Type
	tag        []byte
	value, raw []byte // of a field of bytes; of any other
	long       int    // surplus bytes of its length
}

func (f field) encoded() []byte {
	out := slices.Clone(f.tag)
	if f.typ != protowire.BytesType {
		return append(out, f.raw...)
	}
	return append(append(out, padded(uint64(len(f.value)), f.long)...), f.value...)
}

// padded encodes a number in more bytes than necessary.
func padded(n uint64, by int) []byte {
	b := binary.AppendUvarint(nil, n)
	for range by {
		b[len(b)-1] |= 0x80
		b = append(b, 0)
	}
	return b
}

func longer(random *rand.Rand, f field) field {
	if random.IntN(2) == 0 {
		tag, _ := binary.Uvarint(f.tag)
		f.tag = padded(tag, 1+random.IntN(4))
		return f
	}
	if f.typ == protowire.VarintType {
		n, _ := binary.Uvarint(f.raw)
		f.raw = padded(n, 1+random.IntN(9))
	}
	f.long = random.IntN(10)
	return f
}

func unknown(random *rand.Rand) field {
	number := protowire.Number(1 + random.IntN(40))
	if random.IntN(8) == 0 {
		number = protowire.Number(1 + random.IntN(1<<29-1))
	}
	typ := protowire.Type(random.IntN(6))
	f := field{typ: typ, tag: protowire.AppendTag(nil, number, typ)}
	switch typ {
	case protowire.VarintType:
		f.raw = protowire.AppendVarint(nil, random.Uint64()>>random.IntN(64))
	case protowire.Fixed64Type:
		f.raw = make([]byte, 8)
	case protowire.Fixed32Type:
		f.raw = make([]byte, 4)
	case protowire.BytesType:
		f.value = []byte([]string{"", "x", "x-api-key", "\xff", "\x0a\x00"}[random.IntN(5)])
	case protowire.StartGroupType:
		f.raw = protowire.AppendTag(nil, number, protowire.EndGroupType)
	}
	return f
}

func fieldsOf(b []byte) (fields []field) {
	for len(b) > 0 {
		_, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil
		}
		f := field{typ: typ, tag: b[:n]}
		size := protowire.ConsumeFieldValue(1, typ, b[n:])
		if size < 0 || typ == protowire.StartGroupType {
			return nil
		}
		f.raw = b[n : n+size]
		if typ == protowire.BytesType {
			f.value, _ = protowire.ConsumeBytes(f.raw)
		}
		fields, b = append(fields, f), b[n+size:]
	}
	return fields
}
