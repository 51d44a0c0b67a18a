// Package wire reads and writes messages of Protocol Buffers in place, for callers that need a few
// fields of many and cannot afford to decode the rest. A [Reader] goes through the fields of one
// message; a [Schema] says whether the generated code would accept the other fields; a [Writer]
// makes a message.
//
// Unusual messages are left to the generated code: a Reader and a Schema reject every message that
// they do not fully understand, and the caller decodes it again.
package wire

import "encoding/binary"

// Tag is the number of a field and the encoding of its value.
type Tag uint32

// The encodings in Envoy's messages. The tag of field n is n<<3 | one of them. Groups are unusual.
const (
	Varint  Tag = 0 // a whole number, a bool or an enum
	fixed64 Tag = 1
	Bytes   Tag = 2 // a text, a message or plain bytes
	fixed32 Tag = 5
)

// Reader goes through the fields of one message:
//
//	r := wire.Read(b)
//	for r.Next() {
//		switch r.Tag { … }
//	}
//	return r.Done()
//
// It must not be used concurrently.
type Reader struct {
	// Tag is the tag of the field that Next has found. Value is the value of one with [Bytes],
	// which aliases the message; Number is that of any other.
	Tag    Tag
	Value  []byte
	Number uint64

	rest    []byte
	unusual bool
}

// Read returns a Reader of message.
func Read(message []byte) Reader { return Reader{rest: message} }

// Next finds the next field. It returns false at the end, or if a field is broken or unusual.
func (r *Reader) Next() bool {
	// Nearly all fields: a tag of one byte, bytes as value, and at most 127 of them.
	if b := r.rest; len(b) >= 2 && b[0] >= 1<<3 && b[0]&^0x78 == byte(Bytes) && b[1] < 0x80 {
		if end := 2 + int(b[1]); end <= len(b) {
			r.Tag, r.Value, r.rest = Tag(b[0]), b[2:end], b[end:]
			return true
		}
	}
	return r.next()
}

func (r *Reader) next() bool {
	b := r.rest
	if len(b) == 0 {
		return false
	}
	tag, n := uint64(b[0]), 1
	if tag >= 0x80 {
		tag, n = binary.Uvarint(b)
	}
	if n <= 0 || tag>>3 == 0 || tag>>3 > maxNumber {
		return r.stop()
	}
	b = b[n:]
	r.Tag = Tag(tag)
	switch r.Tag & 7 {
	case Bytes:
		return r.bytes(b)
	case Varint:
		return r.varint(b)
	case fixed64:
		return r.fixed(b, 8)
	case fixed32:
		return r.fixed(b, 4)
	}
	return r.stop()
}

// maxNumber is the highest field number that is read here. None of Envoy's messages has a higher
// one.
const maxNumber = 1 << 16

func (r *Reader) stop() bool {
	r.unusual, r.rest = true, nil
	return false
}

func (r *Reader) bytes(b []byte) bool {
	if len(b) == 0 {
		return r.stop()
	}
	size, n := uint64(b[0]), 1
	if size >= 0x80 {
		size, n = binary.Uvarint(b)
	}
	if n <= 0 || size > uint64(len(b)-n) {
		return r.stop()
	}
	r.Value, r.rest = b[n:n+int(size)], b[n+int(size):]
	return true
}

func (r *Reader) varint(b []byte) bool {
	number, n := binary.Uvarint(b)
	if n <= 0 {
		return r.stop()
	}
	r.Number, r.rest = number, b[n:]
	return true
}

func (r *Reader) fixed(b []byte, size int) bool {
	if len(b) < size {
		return r.stop()
	}
	r.Number, r.rest = 0, b[size:] // no caller needs its value
	return true
}

// Done reports whether the message was read to its end. If not, or if the caller has found
// something unexpected, the generated code has to decode it.
func (r *Reader) Done() bool { return !r.unusual && len(r.rest) == 0 }
