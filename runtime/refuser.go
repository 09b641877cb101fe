package runtime

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"agentops/audit"

	"golang.org/x/sys/unix"
)

// Refusal is a system call that a process of the run made and that was refused,
// since it would lead out of the run or change the host.
type Refusal struct {
	Call    string         // as strace would write it: "socket(AF_VSOCK, SOCK_STREAM, 0)"
	Why     string         // in words
	Process *audit.Process // who tried; nil if it is gone
}

// refuser answers the calls that a container's filter refers to it: each with an
// errno, after it was recorded. The kernel holds the caller until then. No call
// passes, and when this process is gone, the kernel itself answers, with ENOSYS.
type refuser struct {
	known  callTables
	record func(Refusal) error // may be nil
	file   *os.File            // the kernel's end of the filter
	conn   syscall.RawConn
	closed atomic.Bool
	done   chan struct{} // closed when err is set
	err    error
}

// serveFilter answers what a filter refers until nobody is left whom it filters,
// or stop is called. failed is called when it cannot go on.
func serveFilter(fd int, known callTables, record func(Refusal) error, failed func()) (*refuser, error) {
	if err := unix.SetNonblock(fd, true); err != nil { // so that Close ends a wait
		return nil, errors.Join(fmt.Errorf("serve the filter: %w", err), unix.Close(fd))
	}
	r := &refuser{known: known, record: record, file: os.NewFile(uintptr(fd), "seccomp filter"), done: make(chan struct{})}
	var err error
	if r.conn, err = r.file.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("serve the filter: %w", err), r.file.Close())
	}
	go func() {
		defer close(r.done)
		defer r.file.Close()
		if r.err = r.serve(); r.err != nil {
			failed()
		}
	}()
	return r, nil
}

// stop ends the service and returns what it failed of. No record is made after
// it.
func (r *refuser) stop() error {
	r.closed.Store(true)
	r.file.Close()
	<-r.done
	return r.err
}

func (r *refuser) serve() error {
	for {
		n, err := r.receive()
		if n != nil && err == nil {
			err = r.answer(n)
		}
		switch {
		case r.closed.Load():
			return nil
		case err != nil:
			return fmt.Errorf("answer a refused system call: %w", err)
		case n == nil:
			return nil
		}
	}
}

// notification is the kernel's struct seccomp_notif: a call that waits.
type notification struct {
	id    uint64
	pid   uint32 // the thread's, in this process's numbers
	flags uint32
	data  callData
}

// callData is the kernel's struct seccomp_data.
type callData struct {
	number uint32
	arch   uint32 // AUDIT_ARCH_*
	ip     uint64
	args   [6]uint64
}

// response is the kernel's struct seccomp_notif_resp.
type response struct {
	id    uint64
	value int64
	errno int32 // negative
	flags uint32
}

// ioctlIDValid is SECCOMP_IOCTL_NOTIF_ID_VALID.
const ioctlIDValid = 0x40082102

// receive waits for the next call; nil when there will be none.
func (r *refuser) receive() (*notification, error) {
	var n *notification
	var failed error
	err := r.conn.Read(func(fd uintptr) bool {
		for {
			// The descriptor itself knows no O_NONBLOCK.
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if _, err := unix.Poll(poll, 0); err != nil && err != unix.EINTR {
				failed = os.NewSyscallError("poll", err)
				return true
			}
			switch {
			case poll[0].Revents&unix.POLLIN != 0:
			case poll[0].Revents != 0:
				return true
			default:
				return false
			}
			n = new(notification)
			switch errno := ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(n)); errno {
			case 0:
				return true
			case unix.EINTR, unix.ENOENT: // it was killed meanwhile
				n = nil
			default:
				n, failed = nil, os.NewSyscallError("ioctl", errno)
				return true
			}
		}
	})
	return n, errors.Join(err, failed)
}

func ioctl(fd, request uintptr, argument unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(argument))
	return errno
}

// answer records a call and refuses it.
func (r *refuser) answer(n *notification) error {
	v := judge(r.known.name(n.data.arch, n.data.number), n)
	if r.record != nil {
		process := identify(int(n.pid))
		// A caller that is killed leaves its number to another.
		if r.control(ioctlIDValid, unsafe.Pointer(&n.id)) != nil {
			process = nil
		}
		if err := r.record(Refusal{Call: v.call, Why: v.why, Process: process}); err != nil {
			return err
		}
	}
	reply := response{id: n.id, errno: -int32(v.errno)}
	err := r.control(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&reply))
	if errors.Is(err, unix.ENOENT) { // it was killed, or interrupted: then it asks again
		return nil
	}
	return err
}

func (r *refuser) control(request uintptr, argument unsafe.Pointer) error {
	var errno unix.Errno
	if err := r.conn.Control(func(fd uintptr) { errno = ioctl(fd, request, argument) }); err != nil {
		return err
	}
	if errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}

// identify reads who a thread is; nil if it is gone.
func identify(tid int) *audit.Process {
	folder := "/proc/" + strconv.Itoa(tid)
	status, err := os.ReadFile(folder + "/status")
	if err != nil {
		return nil
	}
	var p audit.Process
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		number, _ := strconv.ParseUint(fields[0], 10, 32)
		switch name {
		case "Tgid":
			p.PID = int(number)
		case "PPid":
			p.Parent = int(number)
		case "Uid":
			p.UID = uint32(number)
		}
	}
	if comm, err := os.ReadFile(folder + "/comm"); err == nil {
		p.Comm = strings.TrimSuffix(string(comm), "\n")
	}
	p.Exe, _ = os.Readlink(folder + "/exe") // one that has none, as it exits
	return &p
}
