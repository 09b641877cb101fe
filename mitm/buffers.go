package mitm

import (
	"bufio"
	"io"
	"sync"
)

// buffers lends what a connection reads and writes through while it is in use. An idle
// one has none.
type buffers struct{ readers, writers, blocks sync.Pool }

// blockSize is how much of an opaque flow is copied at once; when more of it comes at
// once, the kernel copies it.
const blockSize = 4 << 10

func (b *buffers) block() *[blockSize]byte {
	if block, ok := b.blocks.Get().(*[blockSize]byte); ok {
		return block
	}
	return new([blockSize]byte)
}

func (b *buffers) putBlock(block *[blockSize]byte) { b.blocks.Put(block) }

func (b *buffers) reader(from io.Reader) *bufio.Reader {
	if r, ok := b.readers.Get().(*bufio.Reader); ok {
		r.Reset(from)
		return r
	}
	return bufio.NewReaderSize(from, bufferSize)
}

func (b *buffers) putReader(r *bufio.Reader) {
	r.Reset(nil)
	b.readers.Put(r)
}

func (b *buffers) writer(to io.Writer) *bufio.Writer {
	if w, ok := b.writers.Get().(*bufio.Writer); ok {
		w.Reset(to)
		return w
	}
	return bufio.NewWriterSize(to, bufferSize)
}

// putWriter takes a writer back, if there is one, and returns nil.
func (b *buffers) putWriter(w *bufio.Writer) *bufio.Writer {
	if w != nil {
		w.Reset(nil)
		b.writers.Put(w)
	}
	return nil
}
