package mitm

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"agentops/audit"
	"agentops/mitm/policy"

	"golang.org/x/sys/unix"
)

const (
	maxChunkLine = 4 << 10 // bytes; size and extensions
	maxTrailer   = 4000    // bytes; net/http wants it in one buffer
	maxDrained   = 256 << 10
	// lookAfter is how often it is looked whether a client that sends no more
	// is still there.
	lookAfter = time.Second
)

// preface begins HTTP/2 without TLS (RFC 9113, section 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// malformed is what a client has sent that is no HTTP/1 in the strict reading,
// which must be the reading of everyone behind us.
type malformed struct {
	status  int
	detail  string
	request int // the how-manieth of the connection
}

func (m *malformed) Error() string { return m.detail }

func malform(detail string) *malformed {
	return &malformed{status: http.StatusBadRequest, detail: detail}
}

type part int

const (
	inHead part = iota
	inBody
	inChunkSize
	inChunk
	afterChunk
	inTrailer
	inRaw // nothing of ours: HTTP/2, or what was upgraded to
	atEnd
)

// strictConn is a client's connection as net/http reads it: HTTP/1 that is
// well-formed beyond doubt, head by head and chunk by chunk. In the place of a
// malformed head it puts a request that stands for it, so that the answer comes
// in its turn; the refusal is in the journal by then.
type strictConn struct {
	closeWriter // written to, and closed
	reader      *bufio.Reader
	flow        *flow
	maxHead     int // bytes

	// Of the goroutine that reads.
	part      part
	ready     []byte // checked, to be read
	line      []byte // what there is of the line that is being read
	lines     []byte // of the head or trailer that is being read
	left      int64  // of the body or chunk
	upgrading bool   // the last request has asked for an upgrade

	refused atomic.Pointer[malformed]

	mu           sync.Mutex
	passed, over int  // requests
	switched     bool // the server has agreed to the upgrade
	raw          bool // and the connection was taken over for it
	expired      bool // the deadline for reading is in the past
	changed      chan struct{}
}

// newStrictConn reads from reader and writes to conn.
func newStrictConn(conn closeWriter, reader *bufio.Reader, f *flow) *strictConn {
	return &strictConn{
		closeWriter: conn, reader: reader, flow: f,
		maxHead: f.proxy.config.Limits.HeaderBytes, changed: make(chan struct{}),
	}
}

// Read implements net.Conn.
func (c *strictConn) Read(p []byte) (int, error) {
	for len(c.ready) == 0 {
		var err error
		switch c.part {
		case inHead:
			if c.isRaw() {
				c.part = inRaw
				continue
			}
			err = c.readHead()
		case inBody, inChunk:
			return c.readBody(p)
		case inChunkSize:
			err = c.readChunkSize()
		case afterChunk:
			err = c.endChunk()
		case inTrailer:
			err = c.readTrailer()
		case inRaw:
			return c.reader.Read(p)
		case atEnd:
			// A connection that is closed with something unread is reset,
			// and the client may lose the answer.
			_, err = io.CopyN(io.Discard, c.reader, maxDrained)
			if err == nil {
				err = io.EOF
			}
		}
		if m, ok := errors.AsType[*malformed](err); ok {
			err = c.refuse(m)
		}
		if err != nil {
			return 0, err
		}
	}
	n := copy(p, c.ready)
	c.ready = c.ready[n:]
	return n, nil
}

// readLine returns the next line without its CRLF, which is good until the next
// call. The limit is of bytes, together with the lines before it. After a deadline it goes on where it was.
func (c *strictConn) readLine(limit int) ([]byte, error) {
	for {
		piece, err := c.reader.ReadSlice('\n')
		c.line = append(c.line, piece...)
		switch {
		case len(c.lines)+len(c.line) > limit:
			return nil, &malformed{status: http.StatusRequestHeaderFieldsTooLarge, detail: "a line or head of more than " + strconv.Itoa(limit) + " bytes"}
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			return nil, err
		}
		line := c.line
		c.line = c.line[:0]
		return checkLine(line)
	}
}

// readHead makes the next head ready.
func (c *strictConn) readHead() error {
	if len(c.lines) == 0 && len(c.line) == 0 {
		if _, err := c.reader.Peek(1); errors.Is(err, io.EOF) {
			return c.halfClosed()
		} else if err != nil {
			return err
		}
		if c.upgrading {
			// What comes is the next request, or it is none at all.
			if err := c.await(); err != nil {
				return err
			}
			c.upgrading = false
		}
		if c.requests() == 0 {
			if raw, err := c.beginsHTTP2(); raw || err != nil {
				return err
			}
		}
	}
	for {
		line, err := c.readLine(c.maxHead)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			if len(c.lines) > 0 {
				break
			}
			continue // empty lines before a request are nothing (RFC 9112, section 2.2)
		}
		c.lines = append(append(c.lines, line...), "\r\n"...)
	}
	head, err := parseHead(string(c.lines))
	if err != nil {
		return err
	}
	c.pass(append(c.lines, "\r\n"...))
	c.lines = nil
	c.upgrading = head.upgrade
	switch {
	case head.chunked:
		c.part = inChunkSize
	case head.length > 0:
		c.part, c.left = inBody, head.length
	}
	return nil
}

// beginsHTTP2 looks for the preface. Its first line is a request to net/http when
// the rest does not follow.
func (c *strictConn) beginsHTTP2() (bool, error) {
	const unmistakable = len("PRI ")
	begin, err := c.reader.Peek(unmistakable)
	if err != nil || string(begin) != preface[:unmistakable] {
		return false, ignoreEOF(err)
	}
	for n := unmistakable + 1; n <= len(preface); n++ { // a client may wait for the answer to less
		if begin, err = c.reader.Peek(n); err != nil {
			return false, err
		}
		if begin[n-1] != preface[n-1] {
			return false, malform("the method PRI is for the preface of HTTP/2")
		}
	}
	c.part = inRaw
	return true, nil
}

func (c *strictConn) readBody(p []byte) (int, error) {
	n, err := c.reader.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if c.left == 0 {
		if c.part == inChunk {
			c.part = afterChunk
		} else {
			c.part = inHead
		}
	}
	return n, err
}

// readChunkSize makes a chunk's first line ready. Its extensions are for us, who
// know none.
func (c *strictConn) readChunkSize() error {
	line, err := c.readLine(maxChunkLine)
	if err != nil {
		return err
	}
	if c.left, err = parseChunkSize(string(line)); err != nil {
		return err
	}
	c.part = inChunk
	if c.left == 0 {
		c.part = inTrailer
	}
	c.ready = append(strconv.AppendInt(nil, c.left, 16), "\r\n"...)
	return nil
}

func (c *strictConn) endChunk() error {
	line, err := c.readLine(maxChunkLine)
	if err != nil {
		return err
	}
	if len(line) > 0 {
		return malform("a chunk is longer than it says")
	}
	c.part, c.ready = inChunkSize, []byte("\r\n")
	return nil
}

func (c *strictConn) readTrailer() error {
	for {
		line, err := c.readLine(maxTrailer)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			c.lines = append(c.lines, "\r\n"...)
			c.ready, c.lines, c.part = c.lines, nil, inHead
			return nil
		}
		name, _, err := parseField(string(line))
		if err == nil && forbiddenTrailers[name] {
			err = malform("the field " + name + " in a trailer")
		}
		if err != nil {
			return err
		}
		c.lines = append(append(c.lines, line...), "\r\n"...)
	}
}

// refuse records what is malformed and lets a request stand for it. Within a body
// there is one already: it is what fails.
func (c *strictConn) refuse(m *malformed) error {
	within := c.part != inHead
	m.request = c.requests()
	if !within {
		m.request++
	}
	f := c.flow
	e := audit.Refused{
		Flow:        f.id,
		Protocol:    "http",
		Destination: f.destination.String(),
		Host:        f.host(),
		Port:        f.destination.Port(),
		Reason:      string(policy.Malformed),
		Detail:      m.detail,
		Process:     f.process,
	}
	err := f.opened("http")
	if err == nil {
		err = f.proxy.config.Recorder.Append(e)
	}
	c.part, c.line, c.lines = atEnd, nil, nil
	if err != nil {
		return err
	}
	f.refused.Store(true)
	c.refused.Store(m)
	if within {
		return m
	}
	c.pass([]byte("GET / HTTP/1.1\r\nHost: malformed.invalid\r\nConnection: close\r\n\r\n"))
	return nil
}

func (c *strictConn) pass(head []byte) {
	c.ready = head
	c.mu.Lock()
	defer c.mu.Unlock()
	c.passed++
}

func (c *strictConn) requests() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.passed
}

// malformed is what is wrong with the request that is being served, if anything.
func (c *strictConn) malformed() *malformed {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.refused.Load(); m != nil && m.request == c.over+1 {
		return m
	}
	return nil
}

// finish says that a request was served.
func (c *strictConn) finish() { c.change(func() { c.over++ }) }

// switchProtocols says that the server has agreed to an upgrade.
func (c *strictConn) switchProtocols() { c.change(func() { c.switched = true }) }

// SetReadDeadline implements net.Conn. Who waits here and not for the connection
// is woken as well.
func (c *strictConn) SetReadDeadline(t time.Time) error {
	err := c.closeWriter.SetReadDeadline(t)
	c.change(func() { c.expired = !t.IsZero() && !t.After(time.Now()) })
	return err
}

// SetDeadline implements net.Conn. net/http calls it on a connection that it
// gives away, when it does not read from it any more.
func (c *strictConn) SetDeadline(t time.Time) error {
	err := c.closeWriter.SetDeadline(t)
	c.change(func() { c.expired, c.raw = false, c.switched })
	return err
}

func (c *strictConn) isRaw() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.raw
}

func (c *strictConn) change(what func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	what()
	close(c.changed)
	c.changed = make(chan struct{})
}

// halfClosed keeps the end of what the client sends from net/http, which would
// give up the request that is being served. The client may still listen.
func (c *strictConn) halfClosed() error {
	if err := c.await(); err != nil {
		return err
	}
	return io.EOF
}

// await returns when every request that was passed on is served. When the
// connection is to be switched to another protocol, it is for net/http to end the
// wait: what it reads until it has given the connection away would be lost.
func (c *strictConn) await() error {
	ticker := time.NewTicker(lookAfter)
	defer ticker.Stop()
	for {
		c.mu.Lock()
		served, expired, changed := c.over == c.passed && !c.switched, c.expired, c.changed
		c.mu.Unlock()
		switch {
		case expired:
			return os.ErrDeadlineExceeded
		case served:
			return nil
		}
		select {
		case <-changed:
		case <-c.flow.cut:
			return net.ErrClosed
		case <-ticker.C:
			if c.flow.clientIsGone() {
				return syscall.ECONNRESET
			}
		}
	}
}

// clientIsGone reports whether the connection is wholly closed. A client that
// exits looks like one that sends no more, until the kernel's probes are
// answered with a reset.
func (f *flow) clientIsGone() bool {
	conn, ok := f.conn.closeWriter.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	const closed = 7 // TCP_CLOSE
	gone := false
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		gone = err != nil || info.State == closed
	})
	return gone || err != nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
