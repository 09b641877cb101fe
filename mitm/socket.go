package mitm

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// tcpConn is what there is of *net.TCPConn in here.
type tcpConn interface {
	closeWriter
	syscall.Conn
	SetLinger(seconds int) error
}

// socket is a TCP connection, of which one goroutine reads and one writes. Its calls do
// not block, so the runtime is not told of them: it would take one in which the kernel
// moves a packet, which may need some 20 µs, for one that blocks, and wake a thread for
// the work that waits meanwhile.
type socket struct {
	tcpConn
	raw     syscall.RawConn
	in, out transfer
	ahead   *bufio.Reader // of more than is asked for; nil: nothing is
	held    *held         // nil: a write waits until the kernel has taken all
}

func newSocket(conn tcpConn) (*socket, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{tcpConn: conn, raw: raw}
	s.in.attempt, s.out.attempt = s.in.read, s.out.write
	return s, nil
}

// transfer is a read or a write. It is kept so that none has to be made for each.
type transfer struct {
	attempt func(fd uintptr) bool // false: wait until the socket is ready
	p       []byte
	n       int
	err     error
	look    bool // do not wait
}

// Read implements net.Conn.
func (s *socket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if s.ahead != nil {
		return s.ahead.Read(p)
	}
	return s.read(p)
}

func (s *socket) read(p []byte) (int, error) {
	s.in.p, s.in.n, s.in.err = p, 0, nil
	err := s.raw.Read(s.in.attempt)
	s.in.p = nil
	switch {
	case err != nil:
		return 0, err
	case errors.Is(s.in.err, os.ErrDeadlineExceeded): // of a look
		return 0, s.in.err
	case s.in.err != nil:
		return 0, s.failed("read", s.in.err)
	case s.in.n == 0:
		return 0, io.EOF
	}
	return s.in.n, nil
}

// Write implements net.Conn.
func (s *socket) Write(p []byte) (int, error) {
	if s.held != nil {
		if kept, most := s.held.keep(p); most {
			_ = s.Close()
			return 0, errOverrun
		} else if kept {
			return len(p), nil
		}
	}
	s.out.p, s.out.n, s.out.err = p, 0, nil
	err := s.raw.Write(s.out.attempt)
	s.out.p = nil
	if err == nil && s.out.err != nil {
		err = s.failed("write", s.out.err)
	}
	if err == nil && s.out.n < len(p) {
		s.held.begin(s, p[s.out.n:])
		return len(p), nil
	}
	return s.out.n, err
}

// readAhead has a read take what there is, of which TLS would ask for one record after
// the other. It ends with stopAhead, once there is nothing.
func (s *socket) readAhead(b *buffers) {
	if s.ahead == nil {
		s.ahead = b.reader(direct{s})
	}
}

func (s *socket) stopAhead(b *buffers) {
	if s.ahead != nil && s.ahead.Buffered() == 0 {
		b.putReader(s.ahead)
		s.ahead = nil
	}
}

// direct is a socket that is read as far as is asked for.
type direct struct{ *socket }

// Read implements io.Reader.
func (d direct) Read(p []byte) (int, error) { return d.read(p) }

// failed is the error that package net would have.
func (s *socket) failed(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: os.NewSyscallError(op, err)}
}

func (t *transfer) read(fd uintptr) bool {
	n, errno := call(syscall.SYS_READ, fd, t.p)
	switch {
	case errno == syscall.EAGAIN && t.look:
		t.err = os.ErrDeadlineExceeded
	case errno == syscall.EAGAIN:
		return false
	case errno != 0:
		t.err = errno
	default:
		t.n = n
	}
	return true
}

func (t *transfer) write(fd uintptr) bool {
	for t.n < len(t.p) {
		n, errno := call(syscall.SYS_WRITE, fd, t.p[t.n:])
		if errno == syscall.EAGAIN {
			return t.look
		}
		if errno != 0 {
			t.err = errno
			break
		}
		t.n += n
	}
	return true
}

// call is one read or write of bytes, of which there are some.
func call(number, fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall(number, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		if errno != syscall.EINTR {
			return int(n), errno
		}
	}
}

// held is what was written to a socket and the kernel has not taken yet.
type held struct {
	drained func() // is called each time that there is nothing more
	mu      sync.Mutex
	p       []byte
	busy    bool
}

// hold lets no write wait any more: see held. What is written may fail unseen then;
// who reads learns of it.
func (s *socket) hold(drained func()) {
	s.held = &held{drained: drained}
	s.out.look = true
}

// holding reports whether something is held.
func (s *socket) holding() bool {
	s.held.mu.Lock()
	defer s.held.mu.Unlock()
	return s.held.busy
}

// keep takes what comes behind something that is held, up to the most that may be.
func (h *held) keep(p []byte) (kept, most bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.busy {
		h.p = append(h.p, p...)
	}
	return h.busy, len(h.p) > 2*outMost
}

// begin takes the rest of a write, which goes out when the kernel takes it.
func (h *held) begin(s *socket, p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.p, h.busy = append(h.p, p...), true
	go h.drain(s)
}

func (h *held) drain(s *socket) {
	t := transfer{}
	for {
		h.mu.Lock()
		t.p, t.n, h.p = h.p, 0, nil
		if h.busy = len(t.p) > 0; !h.busy {
			h.mu.Unlock()
			h.drained()
			return
		}
		h.mu.Unlock()
		if err := s.raw.Write(t.write); err != nil || t.err != nil {
			_ = s.Close() // who reads learns of it
			return
		}
	}
}
