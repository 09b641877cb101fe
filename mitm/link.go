package mitm

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"
)

const (
	streamWindow = 256 << 10 // bytes that a peer may send ahead on a stream
	linkWindow   = 1 << 20   // and on all of them, a client
	sharedWindow = 16 << 20  // an upstream, of what we have not read yet
	mostAhead    = 4 << 20   // on an upstream's stream that is taken as fast as it comes
	mostGrown    = 16 << 20  // beyond streamWindow, on all those of a client's connection
	maxStreams   = 250       // that a client may have open
	firstStreams = 100       // that we open before an upstream has said how many; fewer is unusual
	mostTries    = 3         // new connections that are made for one stream
	manyFields   = 64        // of a head; room for more is not kept
	// outFull is from when on data waits, and outFlooded what waits for no peer that reads
	// what it is answered.
	outFull    = 64 << 10
	outFlooded = 1 << 20
	// mostTaken is what is read ahead of writing what comes of it.
	mostTaken = 32 << 10
	// outMost is what waits for a peer at most: heads, which wait for no window.
	outMost = 4 << 20
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
	taken   int    // bytes since the last flush
	ahead   []byte // what was read before there was a reader
	decoder *hpack.Decoder
	fields  []hpack.HeaderField // of the block that is being read
	size    int                 // of them, as RFC 9113 counts, section 6.5.2: 32 bytes each beside
	most    int                 // that are kept
	touched []*link             // that this reader has made something to write for

	grown atomic.Int64 // what upstreams may send ahead to the client, beyond streamWindow each

	mu       sync.Mutex
	out      []byte
	spare    []byte // what out was before
	writing  bool
	blocked  bool // the kernel takes no more
	closed   bool
	overrun  bool // because too much waits for it
	encoder  *hpack.Encoder
	encoded  bytes.Buffer
	halves   map[uint32]*half // by stream
	window   int64            // what the peer takes yet
	initial  int64            // of a new stream
	waiting  []*half          // with something that the link does not take now
	moved    []moved          // since the lock was taken
	last     uint32           // stream that was begun
	allowed  int              // streams that the peer lets us have
	greeted  bool             // it has said so, or that there is no limit
	leaving  bool             // the peer begins no stream any more, or takes none
	idle     time.Time        // since when there is no stream
	inflow   int64            // what the peer may send yet
	owed     int64            // what has gone on of what it has sent
	extended bool             // the peer takes extended CONNECT (RFC 8441)
	shared   bool             // by clients: one that takes nothing must not stop the others
	room     int64            // what it may send at most
}

// errOverrun is the end of a connection whose peer does not read.
var errOverrun = errors.New("the peer does not read what it is sent")

// end is what a link leads to. A nil half is of a stream that is over, or has not begun.
type end interface {
	// headers takes the header block of a stream, which is in link.fields.
	headers(stream uint32, h *half, endStream, tooLong bool) error
	// reset is told that the peer has ended a stream.
	reset(h *half, code errorCode)
	// goAway is told that the peer takes no stream behind last.
	goAway(last uint32, code errorCode)
	// broken takes a stream's error of the peer's. Its own ends the connection.
	broken(stream uint32, h *half, e *connectionError) error
}

func newLink(p *Proxy, conn net.Conn, under *socket, most int, window int64) *link {
	l := &link{
		proxy: p, conn: conn, under: under, most: most, idle: time.Now(),
		halves: make(map[uint32]*half), window: defaultWindow, initial: defaultWindow, inflow: window, room: window, allowed: maxStreams,
	}
	l.encoder = hpack.NewEncoder(&l.encoded)
	l.decoder = hpack.NewDecoder(defaultTable, func(f hpack.HeaderField) {
		if l.size += int(f.Size()); l.size <= l.most {
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
	// What has come already is taken with it, so that it is written at once.
	if len(l.touched) > 0 && l.taken < mostTaken {
		l.under.in.look = true
		n, err := l.conn.Read(p)
		l.under.in.look = false
		if l.taken += n; !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
	}
	l.taken = 0
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
		l.stopReading()
		n, err := l.Read(l.first[:])
		if n == 0 {
			return err
		}
		l.ahead = l.first[:]
	}
	l.startReading()
	_, err := l.in.Peek(1)
	return err
}

// startReading takes the buffers that stopReading lets go of.
func (l *link) startReading() {
	if l.in == nil {
		l.in = l.proxy.buffers.reader(l)
	}
	l.under.readAhead(&l.proxy.buffers)
}

func (l *link) stopReading() {
	if l.in != nil {
		l.proxy.buffers.putReader(l.in)
		l.in = nil
	}
	l.under.stopAhead(&l.proxy.buffers)
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

// firstSettings looks that the first frame is what it must be (RFC 9113, section 3.4).
func (l *link) firstSettings() error {
	l.startReading()
	p, err := l.in.Peek(frameHead)
	if err != nil {
		return err
	}
	if f := parseFrame(p); f.kind != frameSettings || f.has(flagAck) {
		return &connectionError{codeProtocol, "the first frame is not SETTINGS"}
	}
	return nil
}

// serve reads frames until the connection ends.
func (l *link) serve() error {
	for {
		if err := l.next(); err != nil {
			return err
		}
	}
}

// next reads a frame.
func (l *link) next() error {
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
	return nil
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
	switch f.kind {
	case framePriority:
		if err := f.check(f.length, true); err != nil {
			return err
		}
		if len(p) != sizeOfPriority {
			return l.misplaced(f, &connectionError{codeFrameSize, "a priority that is not of 5 bytes"})
		} else if binary.BigEndian.Uint32(p)&maxStreamID == f.stream {
			return l.misplaced(f, &connectionError{codeProtocol, "a stream that depends on itself"})
		}
	case frameReset:
		if err := f.check(sizeOfReset, true); err != nil {
			return err
		}
		h, err := l.half(f)
		if h != nil {
			l.end.reset(h, errorCode(binary.BigEndian.Uint32(p)))
		}
		return err
	case frameSettings:
		if err := f.check(f.length, false); err != nil {
			return err
		}
		return l.settings(f, p)
	case framePing:
		if err := f.check(sizeOfPing, false); err != nil || f.has(flagAck) {
			return err
		}
		l.mu.Lock()
		l.touch(l, len(l.out) == 0)
		l.out = append(appendFrame(l.out, sizeOfPing, framePing, flagAck, 0), p...)
		l.mu.Unlock()
	case frameGoAway:
		if err := f.check(max(f.length, sizeOfGoAway), false); err != nil {
			return err
		}
		l.end.goAway(binary.BigEndian.Uint32(p)&maxStreamID, errorCode(binary.BigEndian.Uint32(p[4:])))
	case frameWindow:
		if err := f.check(sizeOfWindowPayload, f.stream != 0); err != nil {
			return err
		}
		return l.update(f, int64(binary.BigEndian.Uint32(p)&maxStreamID))
	case framePromise, frameContinuation:
		return &connectionError{codeProtocol, fmt.Sprintf("a frame of kind %d that may not be here", f.kind)}
	}
	return nil // others are nothing (RFC 9113, section 4.1)
}

// misplaced ends the stream of a frame that may come on any, be it over or not begun.
func (l *link) misplaced(f frame, e *connectionError) error {
	l.mu.Lock()
	h := l.halves[f.stream]
	l.mu.Unlock()
	if h != nil {
		return l.end.broken(f.stream, h, e)
	}
	l.reset(f.stream, e.code)
	return nil
}

// half finds the stream of a frame; nil: it is over.
func (l *link) half(f frame) (*half, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.halves[f.stream]; h != nil {
		return h, nil
	}
	if f.stream%2 == 0 || f.stream > l.last {
		return nil, &connectionError{codeProtocol, fmt.Sprintf("a frame of kind %d on stream %d, which is idle", f.kind, f.stream)}
	}
	return nil, nil
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
	if !l.greeted {
		l.greeted, l.allowed = true, maxStreams
	}
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
			l.extended = value == 1
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
		return l.end.broken(f.stream, h, &connectionError{codeProtocol, "a window that grows by nothing"})
	case over:
		return l.end.broken(f.stream, h, &connectionError{codeFlowControl, "a stream's window grows too large"})
	}
	return nil
}

// hasRoom reports whether a stream may begin, to who has the lock.
func (l *link) hasRoom() bool {
	return !l.leaving && !l.closed && len(l.halves) < l.allowed && l.last < maxStreamID-2
}

// sleepy reports, once, whether there was no stream for too long. None begins any more then.
func (l *link) sleepy(now time.Time, most time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	sleepy := !l.leaving && len(l.halves) == 0 && now.Sub(l.idle) > most
	l.leaving = l.leaving || sleepy
	return sleepy
}

// until bounds what is read from now on: by no time at all, if there is nothing to come.
func (l *link) until(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leaving && len(l.halves) == 0 {
		t = past
	}
	return l.conn.SetReadDeadline(t)
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
