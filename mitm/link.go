package mitm

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2/hpack"
)

const (
	streamWindow = 256 << 10 // bytes that a peer may send ahead on a stream
	linkWindow   = 1 << 20   // and on all of them, a client
	sharedWindow = 16 << 20  // an upstream, of what we have not read yet
	mostAhead    = 4 << 20   // on an upstream's stream that is taken as fast as it comes
	maxStreams   = 250       // that a client may have open
	// outFull is from when on data waits, and outFlooded what waits for no peer that reads
	// what it is answered.
	outFull    = 64 << 10
	outFlooded = 1 << 20
)

// link is one connection of HTTP/2, to a client or to an upstream. One goroutine reads
// it; whoever has something for the peer appends it to out. No lock of another link is
// taken under mu.
type link struct {
	proxy *Proxy
	conn  net.Conn // with TLS or without
	under *socket
	end   end

	// Of the reader.
	in      *bufio.Reader // nil while nothing is expected
	first   [1]byte
	ahead   []byte // what was read before there was a reader
	decoder *hpack.Decoder
	fields  []hpack.HeaderField // of the block that is being read
	size    int                 // of them, as RFC 9113 counts it
	most    int                 // that are kept
	block   []byte
	touched []*link // that this reader has made something to write for

	mu      sync.Mutex
	out     []byte
	spare   []byte // what out was before
	writing bool
	blocked bool // the kernel takes no more
	closed  bool
	encoder *hpack.Encoder
	encoded bytes.Buffer
	halves  map[uint32]*half // by stream
	window  int64            // what the peer takes yet
	initial int64            // of a new stream
	waiting []*half          // with something that the link does not take now
	moved   []moved          // since the lock was taken
	last    uint32           // stream that was begun
	allowed int              // streams that the peer lets us have
	leaving bool             // the peer begins no stream any more, or takes none
	idle    time.Time        // since when there is no stream
	inflow  int64            // what the peer may send yet
	owed    int64            // what has gone on of what it has sent
	shared  bool             // by clients: one that takes nothing must not stop the others
	room    int64            // what it may send at most
}

// end is what a link leads to.
type end interface {
	// headers takes the header block of a stream, which is in l.fields.
	headers(l *link, stream uint32, h *half, endStream, tooLong bool) error
	// reset is told that the peer has ended a stream.
	reset(h *half, code errorCode)
	// goAway is told that the peer takes no stream behind last.
	goAway(l *link, last uint32, code errorCode)
	// broken takes a stream's error of the peer's. Its own ends the connection.
	broken(l *link, stream uint32, h *half, e *connectionError) error
}

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

func newLink(p *Proxy, conn net.Conn, under *socket, most int, window int64) *link {
	l := &link{
		proxy: p, conn: conn, under: under, most: most, idle: time.Now(),
		halves: make(map[uint32]*half), window: defaultWindow, initial: defaultWindow, inflow: window, room: window, allowed: maxStreams,
	}
	l.encoder = hpack.NewEncoder(&l.encoded)
	l.decoder = hpack.NewDecoder(defaultTable, func(f hpack.HeaderField) {
		if l.size += len(f.Name) + len(f.Value); l.size <= l.most {
			l.fields = append(l.fields, f)
		}
	})
	l.decoder.SetMaxStringLength(2 * most)
	under.hold(l.drained)
	return l
}

// Read reads from the peer. Before it waits, all goes out that came of what was read.
func (l *link) Read(p []byte) (int, error) {
	if len(l.ahead) > 0 {
		n := copy(p, l.ahead)
		l.ahead = l.ahead[n:]
		return n, nil
	}
	l.flushTouched()
	return l.conn.Read(p)
}

// await returns when there is something to be read. A link without streams waits
// without a buffer.
func (l *link) await() error {
	if l.in != nil && l.in.Buffered() > 0 {
		return nil
	}
	l.mu.Lock()
	quiet := len(l.halves) == 0
	l.mu.Unlock()
	if quiet && len(l.ahead) == 0 {
		if l.in != nil {
			l.proxy.buffers.putReader(l.in)
			l.in = nil
		}
		n, err := l.Read(l.first[:])
		if n == 0 {
			return err
		}
		l.ahead = l.first[:]
	}
	if l.in == nil {
		l.in = l.proxy.buffers.reader(l)
	}
	_, err := l.in.Peek(1)
	return err
}

// touch notes that there is something to write for another link; first: there was
// nothing before.
func (l *link) touch(other *link, first bool) {
	if first {
		l.touched = append(l.touched, other)
	}
}

func (l *link) flushTouched() {
	for i, other := range l.touched {
		other.flush()
		l.touched[i] = nil
	}
	l.touched = l.touched[:0]
}

// serve reads frames until the connection ends.
func (l *link) serve() error {
	for {
		if err := l.await(); err != nil {
			return err
		}
		head, err := l.in.Peek(frameHead)
		if err != nil {
			return err
		}
		f := parseFrame(head)
		_, _ = l.in.Discard(frameHead)
		if f.length > maxFrame {
			return &connectionError{codeFrameSize, "a frame of more than 16,384 bytes"}
		}
		if err := l.frame(f); err != nil {
			return err
		}
		l.mu.Lock()
		flooded := len(l.out) > outFlooded
		l.mu.Unlock()
		if flooded {
			return &connectionError{codeCalm, "it does not read what it is answered"}
		}
	}
}

// payload returns all of a short frame's, which is good until the next read.
func (l *link) payload(f frame) ([]byte, error) {
	p, err := l.in.Peek(f.length)
	if err == nil {
		_, err = l.in.Discard(f.length)
	}
	return p, err
}

func (l *link) frame(f frame) error {
	switch f.kind {
	case frameData:
		return l.data(f)
	case frameHeaders:
		return l.header(f)
	}
	p, err := l.payload(f)
	if err != nil {
		return err
	}
	whole := func(n int) error {
		if len(p) != n {
			return &connectionError{codeFrameSize, fmt.Sprintf("a frame of kind %d with %d bytes", f.kind, len(p))}
		}
		return nil
	}
	ofStream := func(is bool) error {
		if (f.stream != 0) != is {
			return &connectionError{codeProtocol, fmt.Sprintf("a frame of kind %d on stream %d", f.kind, f.stream)}
		}
		return nil
	}
	switch f.kind {
	case framePriority:
		if err := ofStream(true); err != nil {
			return err
		}
		if len(p) != sizeOfPriority {
			l.reset(f.stream, codeFrameSize)
		} else if binary.BigEndian.Uint32(p)&maxStreamID == f.stream {
			l.reset(f.stream, codeProtocol)
		}
		return nil
	case frameReset:
		if err := errors.Join(whole(sizeOfReset), ofStream(true)); err != nil {
			return first(err)
		}
		h, err := l.half(f)
		if h != nil {
			l.end.reset(h, errorCode(binary.BigEndian.Uint32(p)))
		}
		return err
	case frameSettings:
		if err := ofStream(false); err != nil {
			return err
		}
		return l.settings(f, p)
	case framePing:
		if err := errors.Join(whole(sizeOfPing), ofStream(false)); err != nil {
			return first(err)
		}
		if f.has(flagAck) {
			return nil
		}
		l.mu.Lock()
		l.touch(l, len(l.out) == 0)
		l.out = append(appendFrame(l.out, sizeOfPing, framePing, flagAck, 0), p...)
		l.mu.Unlock()
		return nil
	case frameGoAway:
		if err := ofStream(false); err != nil {
			return err
		}
		if len(p) < sizeOfGoAway {
			return whole(sizeOfGoAway)
		}
		l.end.goAway(l, binary.BigEndian.Uint32(p)&maxStreamID, errorCode(binary.BigEndian.Uint32(p[4:])))
		return nil
	case frameWindow:
		if err := whole(sizeOfWindowPayload); err != nil {
			return err
		}
		return l.update(f, int64(binary.BigEndian.Uint32(p)&maxStreamID))
	case framePromise, frameContinuation:
		return &connectionError{codeProtocol, fmt.Sprintf("a frame of kind %d that may not be here", f.kind)}
	}
	return nil // RFC 9113, section 4.1
}

// first is the first of errors that were joined.
func first(err error) error {
	e, _ := errors.AsType[*connectionError](err)
	return e
}

// half finds the stream of a frame; nil: it is over.
func (l *link) half(f frame) (*half, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.halves[f.stream]; h != nil {
		return h, nil
	}
	if f.stream == 0 || !l.begun(f.stream) {
		return nil, &connectionError{codeProtocol, fmt.Sprintf("a frame of kind %d on stream %d, which is idle", f.kind, f.stream)}
	}
	return nil, nil
}

func (l *link) begun(stream uint32) bool { return stream%2 == 1 && stream <= l.last }

// data takes DATA, in pieces as they come.
func (l *link) data(f frame) error {
	h, err := l.half(f)
	if err != nil {
		return err
	}
	padding, left := 0, f.length
	if f.has(flagPadded) {
		b, err := l.in.ReadByte()
		if err != nil {
			return err
		}
		left--
		if padding = int(b); f.length == 0 || padding > left {
			return &connectionError{codeProtocol, "more padding than there is frame"}
		}
		left -= padding
	}
	l.mu.Lock()
	l.inflow -= int64(f.length)
	over := l.inflow < 0
	late := h == nil || h.received
	if !late {
		h.inflow -= int64(f.length)
		over = over || h.inflow < 0
	}
	l.mu.Unlock()
	if over {
		return &connectionError{codeFlowControl, "more data than its window takes"}
	}
	if l.shared {
		l.credit(nil, int64(f.length))
	}
	if h != nil || !l.shared {
		l.credit(h, int64(f.length-left))
	}
	if late {
		if !l.shared {
			l.credit(nil, int64(left))
		}
		if _, err := l.in.Discard(left + padding); err != nil {
			return err
		}
		e := &connectionError{codeStreamClosed, "data behind the end of its stream"}
		if h != nil {
			return l.end.broken(l, f.stream, h, e)
		}
		l.reset(f.stream, codeStreamClosed)
		return nil
	}
	for {
		if left > 0 {
			if _, err := l.in.Peek(1); err != nil {
				return err
			}
		}
		p, _ := l.in.Peek(min(left, l.in.Buffered()))
		left -= len(p)
		last := left == 0 && f.has(flagEndStream)
		if len(p) > 0 || last {
			if last {
				l.mu.Lock()
				h.received = true
				l.mu.Unlock()
			}
			if err := h.stream.data(l, h, p, last); err != nil {
				return err
			}
		}
		_, _ = l.in.Discard(len(p))
		if left == 0 {
			_, err := l.in.Discard(padding)
			return err
		}
	}
}

// header takes HEADERS and what continues it.
func (l *link) header(f frame) error {
	if f.stream == 0 {
		return &connectionError{codeProtocol, "HEADERS on stream 0"}
	}
	begin, rest := f, 0
	if f.has(flagPadded) {
		b, err := l.in.ReadByte()
		if err != nil {
			return err
		}
		f.length--
		rest = int(b)
	}
	itself := false
	if f.has(flagPriority) {
		p, err := l.in.Peek(sizeOfPriority)
		if err != nil {
			return err
		}
		itself = binary.BigEndian.Uint32(p)&maxStreamID == f.stream
		_, _ = l.in.Discard(sizeOfPriority)
		f.length -= sizeOfPriority
	}
	if f.length -= rest; f.length < 0 {
		return &connectionError{codeProtocol, "more padding than there is frame"}
	}
	l.fields, l.size, l.block = l.fields[:0], 0, l.block[:0]
	for n := 0; ; n++ {
		for f.length > 0 {
			if l.in.Buffered() == 0 {
				if err := l.conn.SetReadDeadline(time.Now().Add(l.proxy.config.Limits.HeaderTimeout)); err != nil {
					return err
				}
			}
			if _, err := l.in.Peek(1); err != nil {
				return err
			}
			p, _ := l.in.Peek(min(f.length, l.in.Buffered()))
			if _, err := l.decoder.Write(p); err != nil {
				return l.notDecoded(err)
			}
			f.length -= len(p)
			_, _ = l.in.Discard(len(p))
		}
		if _, err := l.in.Discard(rest); err != nil {
			return err
		}
		if l.size > 2*l.most || n > l.most/maxFrame+64 {
			return &connectionError{codeCalm, fmt.Sprintf("a head of more than %d bytes", 2*l.most)}
		}
		if f.has(flagEndHeaders) {
			break
		}
		if err := l.conn.SetReadDeadline(time.Now().Add(l.proxy.config.Limits.HeaderTimeout)); err != nil {
			return err
		}
		p, err := l.in.Peek(frameHead)
		if err != nil {
			return err
		}
		f, rest = parseFrame(p), 0
		_, _ = l.in.Discard(frameHead)
		if f.kind != frameContinuation || f.stream != begin.stream {
			return &connectionError{codeProtocol, "a header block is not continued"}
		}
		if f.length > maxFrame {
			return &connectionError{codeFrameSize, "a frame of more than 16,384 bytes"}
		}
	}
	if err := l.decoder.Close(); err != nil {
		return l.notDecoded(err)
	}
	if err := l.conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	l.mu.Lock()
	h := l.halves[begin.stream]
	late := h != nil && h.received
	if h != nil && begin.has(flagEndStream) {
		h.received = true
	}
	l.mu.Unlock()
	switch {
	case itself:
		return l.end.broken(l, begin.stream, h, &connectionError{codeProtocol, "a stream that depends on itself"})
	case late:
		return l.end.broken(l, begin.stream, h, &connectionError{codeStreamClosed, "a head behind the end of its stream"})
	}
	return l.end.headers(l, begin.stream, h, begin.has(flagEndStream), l.size > l.most)
}

func (l *link) notDecoded(err error) error {
	if errors.Is(err, hpack.ErrStringLength) {
		return &connectionError{codeCalm, fmt.Sprintf("a field of more than %d bytes", 2*l.most)}
	}
	return &connectionError{codeCompression, "a header block that cannot be read: " + err.Error()}
}

// settings takes what the peer wants.
func (l *link) settings(f frame, p []byte) error {
	if f.has(flagAck) {
		if len(p) > 0 {
			return &connectionError{codeFrameSize, "an acknowledgement with something in it"}
		}
		return nil
	}
	if len(p)%sizeOfSetting != 0 {
		return &connectionError{codeFrameSize, "half a setting"}
	}
	l.mu.Lock()
	for ; len(p) > 0; p = p[sizeOfSetting:] {
		value := binary.BigEndian.Uint32(p[2:])
		var wrong *connectionError
		switch binary.BigEndian.Uint16(p) {
		case settingTableSize:
			l.encoder.SetMaxDynamicTableSizeLimit(value)
		case settingPush:
			if value > 1 {
				wrong = &connectionError{codeProtocol, "ENABLE_PUSH is neither 0 nor 1"}
			}
		case settingStreams:
			l.allowed = int(min(value, maxStreams))
		case settingWindow:
			if value > maxWindow {
				wrong = &connectionError{codeFlowControl, "INITIAL_WINDOW_SIZE is too large"}
				break
			}
			more := int64(value) - l.initial
			l.initial = int64(value)
			for _, h := range l.halves {
				if h.window += more; h.window > maxWindow {
					wrong = &connectionError{codeFlowControl, "a window grows too large"}
				}
				l.queue(h)
			}
		case settingFrameSize:
			if value < maxFrame || value > mostFrameSize {
				wrong = &connectionError{codeProtocol, "MAX_FRAME_SIZE is out of its range"}
			}
		case settingConnect:
			if value > 1 {
				wrong = &connectionError{codeProtocol, "ENABLE_CONNECT_PROTOCOL is neither 0 nor 1"}
			}
		}
		if wrong != nil {
			l.unlock()
			return wrong
		}
	}
	l.touch(l, len(l.out) == 0)
	l.out = appendFrame(l.out, 0, frameSettings, flagAck, 0)
	l.pump()
	l.unlock()
	return nil
}

// update takes WINDOW_UPDATE.
func (l *link) update(f frame, n int64) error {
	if f.stream == 0 {
		if n == 0 {
			return &connectionError{codeProtocol, "a window that grows by nothing"}
		}
		l.mu.Lock()
		l.window += n
		over := l.window > maxWindow
		l.touch(l, len(l.out) == 0)
		l.pump()
		l.unlock()
		if over {
			return &connectionError{codeFlowControl, "the window grows too large"}
		}
		return nil
	}
	h, err := l.half(f)
	if h == nil || err != nil {
		return err
	}
	l.mu.Lock()
	h.window += n
	over := h.window > maxWindow
	l.touch(l, len(l.out) == 0)
	l.queue(h)
	l.pump()
	l.unlock()
	switch {
	case n == 0:
		return l.end.broken(l, f.stream, h, &connectionError{codeProtocol, "a window that grows by nothing"})
	case over:
		return l.end.broken(l, f.stream, h, &connectionError{codeFlowControl, "a stream's window grows too large"})
	}
	return nil
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
			if _, upstream := l.end.(*h2Upstream); upstream && h.ahead < mostAhead && h.inflow < h.ahead/2+h.ahead/4 {
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

// all are the streams that are open; none begins any more.
func (l *link) all() []*half {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed, l.leaving = true, true
	halves := make([]*half, 0, len(l.halves))
	for _, h := range l.halves {
		halves = append(halves, h)
	}
	return halves
}

// sayGoAway tells the peer that no more streams are taken, and why.
func (l *link) sayGoAway(code errorCode) {
	l.mu.Lock()
	l.leaving = true
	l.out = appendGoAway(l.out, l.last, code)
	l.mu.Unlock()
	l.flush()
}
