package wire

import "math/bits"

// Writer writes a message from its end to its beginning, so that the length of nested content is
// known when it has to be written: fields are written in reverse order. A field without a value is
// written as an empty one. A Writer panics if the buffer is too small.
//
// It must not be used concurrently.
type Writer struct {
	buffer []byte
	at     int // where the message begins
}

// Write returns a Writer of an empty message into buffer.
func Write(buffer []byte) Writer { return Writer{buffer: buffer, at: len(buffer)} }

// Message returns the written message: the end of the buffer.
func (w *Writer) Message() []byte { return w.buffer[w.at:] }

// Len is the length of the written message.
func (w *Writer) Len() int { return len(w.buffer) - w.at }

// Raw writes encoded bytes.
func (w *Writer) Raw(b []byte) {
	w.at -= len(b)
	copy(w.buffer[w.at:], b)
}

// Text writes a field of text or bytes.
func (w *Writer) Text(tag Tag, s string) {
	w.at -= len(s)
	copy(w.buffer[w.at:], s)
	w.head(tag, len(s))
}

// Decimal writes a field whose text is a decimal number.
func (w *Writer) Decimal(tag Tag, n int64) {
	end, rest := w.at, uint64(n)
	if n < 0 {
		rest = -rest
	}
	for {
		w.at--
		w.buffer[w.at] = '0' + byte(rest%10)
		if rest /= 10; rest == 0 {
			break
		}
	}
	if n < 0 {
		w.at--
		w.buffer[w.at] = '-'
	}
	w.head(tag, end-w.at)
}

// Uint writes a field with a whole number.
func (w *Writer) Uint(tag Tag, n uint64) {
	w.varint(n)
	w.varint(uint64(tag))
}

// Wrap turns everything written since Len was inside into one field, a nested message.
func (w *Writer) Wrap(tag Tag, inside int) { w.head(tag, w.Len()-inside) }

func (w *Writer) head(tag Tag, size int) {
	if tag < 0x80 && size < 0x80 {
		w.at -= 2
		b := w.buffer[w.at : w.at+2]
		b[0], b[1] = byte(tag), byte(size)
		return
	}
	w.varint(uint64(size))
	w.varint(uint64(tag))
}

func (w *Writer) varint(n uint64) {
	if n < 0x80 {
		w.at--
		w.buffer[w.at] = byte(n)
		return
	}
	size := (bits.Len64(n) + 6) / 7
	w.at -= size
	for i := w.at; i < w.at+size-1; i++ {
		w.buffer[i] = byte(n) | 0x80
		n >>= 7
	}
	w.buffer[w.at+size-1] = byte(n)
}
