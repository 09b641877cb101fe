package mitm

import (
	"time"

	"golang.org/x/net/http2/hpack"
)

// half is what goes to one peer of a stream.
type half struct {
	stream *stream
	link   *link
	id     uint32

	// Guarded by link.mu.
	window   int64 // what the peer takes yet
	inflow   int64 // what the peer may send yet
	owed     int64 // what has gone on of what it has sent
	ahead    int64 // what it may send at most
	pending  []byte
	trailer  []hpack.HeaderField
	ending   bool // nothing comes behind pending
	ended    bool // the peer has it all
	dead     bool // the peer is to have nothing more
	queued   bool // in link.waiting
	received bool // the peer has sent all
}

// moved says that something of a half went out.
type moved struct {
	half    *half
	n       int64
	dropped bool
	ended   bool
}

// send sends a head of a stream.
func (l *link) send(h *half, fields []hpack.HeaderField, end bool) (first bool) {
	l.mu.Lock()
	first = len(l.out) == 0
	if !h.dead {
		l.append(h, fields, end)
	}
	l.unlock()
	return first
}

// append encodes a head.
func (l *link) append(h *half, fields []hpack.HeaderField, end bool) {
	l.encoded.Reset()
	for i := range fields {
		_ = l.encoder.WriteField(fields[i]) // into memory
	}
	l.out = appendBlock(l.out, h.id, l.encoded.Bytes(), end)
	if end {
		l.sentAll(h)
	}
	if len(l.out) > outMost && !l.closed {
		l.closed, l.overrun = true, true
		_ = l.under.Close() // who reads learns of it
	}
}

// why is what has ended the link.
func (l *link) why(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.overrun {
		return errOverrun
	}
	return err
}

func (l *link) sentAll(h *half) {
	h.ended = true
	l.moved = append(l.moved, moved{half: h, ended: true})
}

// write sends data of a stream, as much of it as may go, and keeps the rest.
func (l *link) write(h *half, p []byte, trailer []hpack.HeaderField, end bool) (first bool) {
	l.mu.Lock()
	first = len(l.out) == 0
	if h.dead || h.ended || l.closed {
		l.moved = append(l.moved, moved{half: h, n: int64(len(p)), dropped: true})
		l.unlock()
		return first
	}
	if len(h.pending) == 0 && len(l.out) < outFull {
		n := l.fits(h, p)
		whole := n == len(p) && end && trailer == nil
		if n > 0 || whole {
			l.appendData(h, p[:n], whole)
		}
		p = p[n:]
	}
	h.pending = append(h.pending, p...)
	h.trailer, h.ending = trailer, end
	l.queue(h)
	l.pump()
	l.unlock()
	return first
}

// fits is how much of something the windows let go. They may be below nothing.
func (l *link) fits(h *half, p []byte) int {
	return int(max(0, min(int64(len(p)), h.window, l.window)))
}

func (l *link) appendData(h *half, p []byte, end bool) {
	flags := uint8(0)
	if end {
		flags = flagEndStream
	}
	l.out = append(appendFrame(l.out, len(p), frameData, flags, h.id), p...)
	h.window -= int64(len(p))
	l.window -= int64(len(p))
	if len(p) > 0 {
		l.moved = append(l.moved, moved{half: h, n: int64(len(p))})
	}
	if end {
		l.sentAll(h)
	}
}

// queue notes a half that has something to send which its own window lets go.
func (l *link) queue(h *half) {
	if !h.queued && !h.dead && !h.ended && (len(h.pending) > 0 && h.window > 0 || len(h.pending) == 0 && h.ending) {
		h.queued = true
		l.waiting = append(l.waiting, h)
	}
}

// pump moves what waits into out, a frame of each stream in turn.
func (l *link) pump() {
	for len(l.waiting) > 0 && len(l.out) < outFull {
		h := l.waiting[0]
		if l.window <= 0 && len(h.pending) > 0 {
			return
		}
		l.waiting = l.waiting[1:]
		h.queued = false
		if h.dead || h.ended {
			continue
		}
		n := min(l.fits(h, h.pending), maxFrame)
		whole := n == len(h.pending) && h.ending && h.trailer == nil
		if n > 0 || whole {
			l.appendData(h, h.pending[:n], whole)
			h.pending = h.pending[n:]
		}
		if len(h.pending) == 0 {
			h.pending = nil
			if h.ending && h.trailer != nil {
				l.append(h, h.trailer, true)
			}
		}
		l.queue(h)
	}
	if len(l.waiting) == 0 {
		l.waiting = nil
	}
}

// unlock lets go of the link and then does what has come of what was sent meanwhile.
func (l *link) unlock() {
	done := l.moved
	l.moved = nil
	l.mu.Unlock()
	for _, m := range done {
		if m.n > 0 {
			m.half.stream.passed(m.half, m.n, m.dropped)
		}
		if m.ended {
			m.half.stream.ended(m.half)
		}
	}
}

// credit lets the peer send n more bytes, on a stream if there is one, and tells it so
// when it is worth it.
func (l *link) credit(h *half, n int64) {
	if n == 0 {
		return
	}
	l.mu.Lock()
	before := len(l.out)
	if h == nil || !l.shared {
		l.owed += n
	}
	if l.owed >= l.room/2 {
		l.out = appendWindow(l.out, 0, uint32(l.owed))
		l.inflow += l.owed
		l.owed = 0
	}
	if h != nil && !h.received && !h.dead {
		h.owed += n
		if h.owed >= h.ahead/2 {
			if l.shared && h.ahead < mostAhead && h.inflow < h.ahead/2+h.ahead/4 && h.stream.toClient.link.mayGrow(h.ahead) {
				h.owed += h.ahead
				h.ahead *= 2
			}
			l.out = appendWindow(l.out, h.id, uint32(h.owed))
			h.inflow += h.owed
			h.owed = 0
		}
	}
	more := len(l.out) > before
	l.mu.Unlock()
	if more {
		l.flush()
	}
}

// mayGrow takes room for n bytes more that upstreams may send ahead to a client.
func (l *link) mayGrow(n int64) bool {
	if l.grown.Add(n) <= mostGrown {
		return true
	}
	l.grown.Add(-n)
	return false
}

// reset ends a stream by a word to the peer.
func (l *link) reset(stream uint32, code errorCode) {
	l.mu.Lock()
	if h := l.halves[stream]; h != nil {
		h.dead = true
	}
	l.out = appendReset(l.out, stream, code)
	l.mu.Unlock()
	l.flush()
}

// forget takes a stream out of the books.
func (l *link) forget(h *half) {
	l.mu.Lock()
	h.dead = true
	delete(l.halves, h.id)
	if l.shared {
		h.stream.toClient.link.grown.Add(streamWindow - h.ahead)
		h.ahead = streamWindow
	}
	if h.owed = 0; len(l.halves) == 0 {
		l.idle = time.Now()
	}
	// What was kept is not wanted; the peer may send as much again.
	dropped := int64(len(h.pending))
	h.pending = nil
	last := l.leaving && len(l.halves) == 0
	l.mu.Unlock()
	if last {
		_ = l.conn.SetReadDeadline(past) // there is nothing more to come
	}
	if dropped > 0 {
		h.stream.passed(h, dropped, true)
	}
}

// flush writes what there is, and does not wait: what the kernel does not take goes
// out later, and with it what comes meanwhile.
func (l *link) flush() {
	l.mu.Lock()
	if l.writing || l.blocked || l.closed {
		l.unlock()
		return
	}
	l.writing = true
	for {
		l.pump()
		if len(l.out) == 0 || l.blocked || l.closed {
			break
		}
		out := l.out
		l.out, l.spare = l.spare[:0], nil
		l.unlock()
		_, err := l.conn.Write(out)
		l.mu.Lock()
		if cap(out) <= 2*outFull {
			l.spare = out[:0]
		}
		l.blocked = l.under.holding()
		if err != nil {
			l.closed = true // who reads learns of it
		}
	}
	l.writing = false
	if len(l.halves) == 0 && len(l.out) == 0 {
		l.out, l.spare = nil, nil
	}
	l.unlock()
}

// drained is called when the kernel has taken what it had not.
func (l *link) drained() {
	l.mu.Lock()
	l.blocked = false
	l.mu.Unlock()
	l.flush()
}
