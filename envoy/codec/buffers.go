package codec

import (
	"sync"

	"google.golang.org/grpc/mem"
)

// bufferSize is the length of the buffers of a [BufferPool], in bytes: enough for nearly all Checks
// and answers, and more than the kilobyte up to which gRPC does not reuse buffers.
const bufferSize = 2 << 10

// BufferPool is a pool of buffers for messages of the usual size. gRPC's own pool has buffers of 4
// KiB, which it clears before each use: a Check and its answer would touch 8 KiB of memory for less
// than two. Here a buffer keeps its old content beyond the requested length.
type BufferPool struct {
	others mem.BufferPool
	pool   sync.Pool
}

// NewBufferPool returns an empty pool.
func NewBufferPool() *BufferPool {
	return &BufferPool{others: mem.DefaultBufferPool(), pool: sync.Pool{New: func() any {
		b := make([]byte, bufferSize)
		return &b
	}}}
}

// Get implements [mem.BufferPool].
func (p *BufferPool) Get(length int) *[]byte {
	if length > bufferSize {
		return p.others.Get(length)
	}
	b := p.pool.Get().(*[]byte)
	*b = (*b)[:length]
	return b
}

// Put implements [mem.BufferPool].
func (p *BufferPool) Put(b *[]byte) {
	if cap(*b) != bufferSize {
		p.others.Put(b)
		return
	}
	p.pool.Put(b)
}
