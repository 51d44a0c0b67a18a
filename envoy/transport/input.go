package transport

import "sync"

const (
	smallBuffer = 4 << 10  // that of an idle connection, in bytes
	largeBuffer = 64 << 10 // more than a frame and its head
)

var largeBuffers = sync.Pool{New: func() any {
	b := make([]byte, largeBuffer)
	return &b
}}

// input is what a connection has received and not handled yet. It borrows a large buffer while much
// arrives.
type input struct {
	small      []byte
	large      *[]byte // nil: not borrowed
	begin, end int
	filled     bool // the last read filled the buffer, so there may be more
}

func (in *input) buffer() []byte {
	if in.large != nil {
		return *in.large
	}
	return in.small
}

func (in *input) len() int { return in.end - in.begin }

// peek returns the first n bytes, which have arrived.
func (in *input) peek(n int) []byte { return in.buffer()[in.begin : in.begin+n : in.begin+n] }

func (in *input) discard(n int) { in.begin += n }

// room returns space for the bytes that follow, so that at least n are consecutive.
func (in *input) room(n int) []byte {
	rest := in.buffer()[in.begin:in.end]
	switch {
	case in.large == nil && (n > smallBuffer || in.filled):
		in.large = largeBuffers.Get().(*[]byte)
	case len(rest) == 0 && !in.filled:
		in.giveBack()
	}
	in.begin, in.end = 0, copy(in.buffer(), rest)
	return in.buffer()[in.end:]
}

// add takes n bytes that were read into the room.
func (in *input) add(n int) {
	in.end += n
	in.filled = in.end == len(in.buffer())
}

// giveBack ends the loan of the large buffer.
func (in *input) giveBack() {
	if in.large != nil {
		largeBuffers.Put(in.large)
		in.large = nil
	}
}
