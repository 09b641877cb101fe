package runtime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// lifeline is our end of the socket to a container's init, which ends when the
// socket does: with this process, however it dies. Signals for the command go
// over it, so that none is lost before init can take one. helper/init.c has
// the other end and describes the words.
type lifeline struct {
	*os.File
	killed syscall.Signal // what the command died of; set when listen returns
}

const (
	wordStopped = 'S'
	wordKilled  = 'K'

	wordFiltered = 'F'
)

// newLifeline returns our end and init's.
func newLifeline() (*lifeline, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the lifeline: %w", err)
	}
	inner := os.NewFile(uintptr(fds[1]), "lifeline")
	if err := unix.SetNonblock(fds[0], true); err != nil { // so that Close ends a Read
		return nil, nil, errors.Join(fmt.Errorf("make the lifeline: %w", err), inner.Close(), unix.Close(fds[0]))
	}
	return &lifeline{File: os.NewFile(uintptr(fds[0]), "lifeline")}, inner, nil
}

// sendFilter gives init the filter that it puts on the run: how many instructions
// there are, in 16 bits, and then these. It comes before any signal.
func (l *lifeline) sendFilter(image []byte) error {
	head := binary.NativeEndian.AppendUint16(nil, uint16(len(image)/unix.SizeofSockFilter))
	if _, err := l.Write(append(head, image...)); err != nil {
		return fmt.Errorf("send the filter of system calls: %w", err)
	}
	return nil
}

// takeFilter waits until init has put the filter on the run, and returns the
// kernel's descriptor for what the filter refers.
func (l *lifeline) takeFilter() (int, error) {
	conn, err := l.SyscallConn()
	if err != nil {
		return -1, err
	}
	word, control := make([]byte, 2), make([]byte, unix.CmsgSpace(4))
	var n, size int
	var failed error
	err = conn.Read(func(fd uintptr) bool {
		for {
			n, size, _, _, failed = unix.Recvmsg(int(fd), word, control, unix.MSG_CMSG_CLOEXEC)
			if failed != unix.EINTR {
				return failed != unix.EAGAIN
			}
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return -1, err
	}
	if n != len(word) || word[0] != wordFiltered {
		return -1, errors.New("the run's init has not put the filter of system calls on")
	}
	messages, err := unix.ParseSocketControlMessage(control[:size])
	if err != nil {
		return -1, err
	}
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, errors.New("the run's init has not sent the filter's descriptor")
}

// listen takes what init says until it ends. stopped is called each time that
// the command was stopped.
func (l *lifeline) listen(stopped func()) {
	for word := make([]byte, 2); ; {
		if _, err := io.ReadFull(l, word); err != nil {
			return
		}
		switch word[0] {
		case wordStopped:
			stopped()
		case wordKilled:
			l.killed = syscall.Signal(word[1])
		}
	}
}

// send passes a signal to the command.
func (l *lifeline) send(s syscall.Signal) error {
	_, err := l.Write([]byte{byte(s)})
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, os.ErrClosed) {
		return os.ErrProcessDone
	}
	if err != nil {
		return fmt.Errorf("pass %v to the command: %w", s, err)
	}
	return nil
}
