package runtime

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// terminal connects a container's terminal with the streams of the agent.
type terminal struct {
	stdin, stdout *os.File
	host          bool     // stdin is a terminal
	socket        *os.File // gives the master, once
	master        *os.File

	wake    *os.File       // its write end, closed, ends the reading of stdin
	copying sync.WaitGroup // stdin to master, resizing
	drained chan struct{}  // master to stdout is done
	once    sync.Once

	mode   sync.Mutex  // of the host's terminal
	before *term.State // while it is raw
}

// newTerminal gives a process that is to be started a terminal.
func newTerminal(cfg *Config, process *libcontainer.Process) (*terminal, error) {
	t := &terminal{stdin: cfg.Stdin, stdout: cfg.Stdout, drained: make(chan struct{})}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a console socket: %w", err)
	}
	t.socket = os.NewFile(uintptr(fds[0]), "console")
	process.ConsoleSocket = os.NewFile(uintptr(fds[1]), "console")
	process.ConsoleWidth, process.ConsoleHeight = 80, 24
	t.host = t.stdin != nil && term.IsTerminal(int(t.stdin.Fd()))
	if t.host {
		if width, height, err := term.GetSize(int(t.stdin.Fd())); err == nil && width > 0 && height > 0 {
			process.ConsoleWidth, process.ConsoleHeight = uint16(width), uint16(height)
		}
	}
	return t, nil
}

// connect takes the terminal's master side from the container and starts to
// copy what comes from there.
func (t *terminal) connect() error {
	defer t.socket.Close()
	name, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(t.socket.Fd()), name, control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return fmt.Errorf("receive the terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return fmt.Errorf("receive the terminal: %d control messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return fmt.Errorf("receive the terminal: %d descriptors: %w", len(fds), err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil { // so that Close ends a Read
		return errors.Join(fmt.Errorf("receive the terminal: %w", err), unix.Close(fds[0]))
	}
	t.master = os.NewFile(uintptr(fds[0]), "terminal")
	go func() {
		defer close(t.drained)
		t.copyOut()
	}()
	return nil
}

// copyOut ends when no process has the terminal any more, which is after the
// last byte that was written to it: the read is then EIO.
func (t *terminal) copyOut() {
	buffer := make([]byte, 32<<10)
	out := io.Discard
	if t.stdout != nil {
		out = t.stdout
	}
	for {
		n, err := t.master.Read(buffer)
		if n > 0 {
			if _, werr := out.Write(buffer[:n]); werr != nil {
				out = io.Discard // the command must not hang on a reader that left
			}
		}
		if err != nil {
			return
		}
	}
}

// start hands the host's terminal over to the command.
func (t *terminal) start() error {
	wake, end, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("connect the terminal: %w", err)
	}
	t.wake = end
	if err := t.setRaw(true); err != nil {
		return errors.Join(fmt.Errorf("connect the terminal: %w", err), wake.Close())
	}
	t.copying.Go(func() {
		defer wake.Close()
		t.copyIn(wake)
	})
	if t.host {
		sizes := make(chan os.Signal, 1)
		signal.Notify(sizes, unix.SIGWINCH)
		t.follow() // it may have changed since Create
		t.copying.Go(func() {
			defer signal.Stop(sizes)
			for {
				select {
				case <-sizes:
					t.follow()
				case <-t.drained:
					return
				}
			}
		})
	}
	return nil
}

// copyIn copies stdin to the terminal. It waits with poll and not with a read,
// which nothing could end and which would take what is typed next.
func (t *terminal) copyIn(wake *os.File) {
	if t.stdin == nil {
		return
	}
	buffer := make([]byte, 4096)
	last := byte('\n')
	for {
		fds := []unix.PollFd{
			{Fd: int32(t.stdin.Fd()), Events: unix.POLLIN},
			{Fd: int32(wake.Fd()), Events: unix.POLLIN},
		}
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		} else if err != nil || fds[1].Revents != 0 {
			return
		}
		n, err := unix.Read(int(t.stdin.Fd()), buffer)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil || n <= 0 {
			break
		}
		if _, err := t.master.Write(buffer[:n]); err != nil {
			return
		}
		last = buffer[n-1]
	}
	if t.host {
		return // it hung up, and the command's does not end
	}
	// The end of a file is typed as ^D, which on a line that has begun only
	// ends the line.
	const endOfFile = "\x04"
	if last != '\n' {
		_, _ = t.master.WriteString(endOfFile)
	}
	_, _ = t.master.WriteString(endOfFile)
}

// follow gives the command's terminal the size of the host's.
func (t *terminal) follow() {
	if width, height, err := term.GetSize(int(t.stdin.Fd())); err == nil {
		_ = t.resize(uint16(width), uint16(height)) // a terminal of the wrong size still works
	}
}

func (t *terminal) resize(width, height uint16) error {
	size := &unix.Winsize{Col: width, Row: height}
	raw, err := t.master.SyscallConn()
	if err != nil {
		return fmt.Errorf("resize the terminal: %w", err)
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size)
	}); cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("resize the terminal: %w", err)
	}
	return nil
}

// setRaw makes the host's terminal pass every key and every byte on, or
// restores it.
func (t *terminal) setRaw(raw bool) error {
	t.mode.Lock()
	defer t.mode.Unlock()
	if !t.host || raw == (t.before != nil) {
		return nil
	}
	var err error
	if raw {
		t.before, err = term.MakeRaw(int(t.stdin.Fd()))
	} else {
		err = term.Restore(int(t.stdin.Fd()), t.before)
		t.before = nil
	}
	if err != nil {
		return fmt.Errorf("set the mode of the terminal: %w", err)
	}
	return nil
}

// suspend stops the agent as ^Z would have if it were the command, and returns
// when it is continued. Without a shell that could continue it, the kernel
// does not stop it.
func (t *terminal) suspend() {
	if !t.host {
		return
	}
	if t.setRaw(false) != nil {
		return
	}
	// A signal to this very thread has had its effect when the call returns.
	runtime.LockOSThread()
	_ = unix.Tgkill(os.Getpid(), unix.Gettid(), syscall.SIGTSTP)
	runtime.UnlockOSThread()
	_ = t.setRaw(true)
	t.follow()
}

// drain waits until the command's last output is written, then gives the
// host's terminal back.
func (t *terminal) drain() {
	if t.master != nil {
		<-t.drained
	}
	t.release()
}

// release ends the copying of stdin and restores the host's terminal.
func (t *terminal) release() {
	t.once.Do(func() {
		if t.wake != nil {
			t.wake.Close()
			t.copying.Wait()
		}
	})
	_ = t.setRaw(false) // it is gone
}

// Close lets go of everything.
func (t *terminal) Close() error {
	var err error
	if t.master != nil {
		err = t.master.Close()
		<-t.drained
	} else {
		t.socket.Close()
	}
	t.release()
	return err
}
