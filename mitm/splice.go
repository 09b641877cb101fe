package mitm

import (
	"cmp"
	"syscall"

	"golang.org/x/sys/unix"
)

// pipe takes bytes from one socket to another within the kernel. Its calls do not
// block, and the runtime is not told of them: see socket.
type pipe struct {
	in, out uintptr // descriptors
	n       int     // bytes in it
	errno   syscall.Errno
}

// pipeSize is how many bytes go through at once.
const pipeSize = 1 << 20

// newPipe makes a pipe; nil: there are no descriptors left for one.
func newPipe() *pipe {
	var ends [2]int
	if unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	p := &pipe{in: uintptr(ends[1]), out: uintptr(ends[0])}
	_, _ = unix.FcntlInt(p.in, unix.F_SETPIPE_SZ, pipeSize) // else less goes through at once
	return p
}

func (p *pipe) close() {
	_ = unix.Close(int(p.in))
	_ = unix.Close(int(p.out))
}

// fill takes what a socket has into the pipe, which is empty; false: it has nothing.
func (p *pipe) fill(fd uintptr) bool {
	p.n, p.errno = splice(fd, p.in, pipeSize)
	return p.errno != syscall.EAGAIN
}

// drain gives a socket what is in the pipe; false: it takes no more now.
func (p *pipe) drain(fd uintptr) bool {
	for p.n > 0 {
		n, errno := splice(p.out, fd, p.n)
		if errno == syscall.EAGAIN {
			return false
		}
		if p.errno = errno; errno != 0 {
			break
		}
		p.n -= n
	}
	return true
}

func splice(from, to uintptr, most int) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SPLICE, from, 0, to, 0, uintptr(most), unix.SPLICE_F_NONBLOCK)
		switch errno {
		case 0:
			return int(n), 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// move copies what one connection sends until it ends.
func (p *pipe) move(to, from closeWriter) error {
	defer p.close()
	in, out := socketOf(from), socketOf(to)
	fill, drain := p.fill, p.drain
	g := gather{socket: in, limits: &cmp.Or(counted(from), counted(to)).flow.proxy.limits}
	defer g.stop()
	for {
		g.wait()
		err := in.raw.Read(fill)
		g.took(p.n)
		if err == nil && p.errno != 0 {
			err = in.failed("splice", p.errno)
		}
		n := int64(p.n)
		if err != nil || n == 0 {
			return err
		}
		if c := counted(from); c != nil {
			c.read.Add(n)
		}
		err = out.raw.Write(drain)
		if err == nil && p.errno != 0 {
			err = out.failed("splice", p.errno)
		}
		if c := counted(to); c != nil {
			c.written.Add(n - int64(p.n))
		}
		if err != nil {
			return err
		}
	}
}
