package runtime

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// session is a container with a terminal, at whose other side the test sits.
type session struct {
	*Container
	keyboard console.Console
	slave    *os.File
	text     chan string
	shown    string // and not yet expected
}

// newSession starts a script on a terminal of 100 by 40 characters.
func newSession(t *testing.T, script string) *session {
	t.Helper()
	cfg := newConfig(t, "sh", "-c", script)
	keyboard, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := keyboard.Resize(console.WinSize{Width: 100, Height: 40}); err != nil {
		t.Fatal(err)
	}
	cfg.Terminal, cfg.Stdin, cfg.Stdout = true, slave, slave
	s := &session{keyboard: keyboard, slave: slave, text: make(chan string, 1024)}
	if s.Container, err = Create(cfg); err != nil {
		t.Fatal(err)
	}
	go s.read()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		slave.Close()
		keyboard.Close()
	})
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	return s
}

// read takes what appears on the screen.
func (s *session) read() {
	defer close(s.text)
	buffer := make([]byte, 4096)
	for {
		n, err := s.keyboard.Read(buffer)
		if n > 0 {
			s.text <- string(buffer[:n])
		}
		if err != nil {
			return
		}
	}
}

// expect reads the screen up to a text.
func (s *session) expect(t *testing.T, want string) {
	t.Helper()
	late := time.After(10 * time.Second)
	for open := true; open; {
		if i := strings.Index(s.shown, want); i >= 0 {
			s.shown = s.shown[i+len(want):]
			return
		}
		var text string
		select {
		case text, open = <-s.text:
			s.shown += text
		case <-late:
			open = false
		}
	}
	t.Fatalf("the screen shows %q, not %q", s.shown, want)
}

func (s *session) mode(t *testing.T) unix.Termios {
	t.Helper()
	mode, err := unix.IoctlGetTermios(int(s.slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *mode
}

func TestTerminal(t *testing.T) {
	s := newSession(t, "stty size; test -t 0 && test -t 1 && test -t 2 && tty; read line; echo got $line; exit 9")
	s.expect(t, "40 100\r\n/dev/pts/0\r\n")
	if s.mode(t).Lflag&unix.ICANON != 0 {
		t.Error("the host's terminal is not raw")
	}
	if _, err := s.keyboard.Write([]byte("typed\r")); err != nil {
		t.Fatal(err)
	}
	s.expect(t, "got typed\r\n")
	if status, err := s.Wait(); err != nil || status.Code != 9 {
		t.Errorf("status %+v, %v", status, err)
	}
	if s.mode(t).Lflag&unix.ICANON == 0 {
		t.Error("the host's terminal was left raw")
	}
}

func TestTerminalInterrupt(t *testing.T) {
	s := newSession(t, "echo ready; exec sleep 1000") // a shell that is just forking loses it
	s.expect(t, "ready")
	if _, err := s.keyboard.Write([]byte("\x03")); err != nil {
		t.Fatal(err)
	}
	if status, err := s.Wait(); err != nil || status.Signal != unix.SIGINT {
		t.Errorf("status %+v, %v", status, err)
	}
}

func TestTerminalResize(t *testing.T) {
	s := newSession(t, "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done")
	s.expect(t, "ready")
	if err := s.Resize(33, 11); err != nil {
		t.Fatal(err)
	}
	s.expect(t, "11 33")
}

// Job control works as at any terminal: an interactive shell has its jobs.
func TestTerminalJobs(t *testing.T) {
	s := newSession(t, "exec bash --norc -i")
	if _, err := s.keyboard.Write([]byte(`sh -c 'echo start"ed"; exec sleep 1000'` + "\r")); err != nil {
		t.Fatal(err)
	}
	s.expect(t, "started\r\n")
	for _, step := range []struct{ keys, want string }{
		{"\x1a", "Stopped"}, {"echo aga\"in\"; exit\r", "again\r\n"}, {"exit 4\r", ""},
	} {
		if _, err := s.keyboard.Write([]byte(step.keys)); err != nil {
			t.Fatal(err)
		}
		if step.want != "" {
			s.expect(t, step.want)
		}
	}
	if status, err := s.Wait(); err != nil || status.Code != 4 {
		t.Errorf("status %+v, %v", status, err)
	}
}

// The last output of a command is not lost with it: here it is still in the
// terminal when the command is gone, because no one has read what came before.
func TestTerminalDrain(t *testing.T) {
	const lines = 1500 // more than the pipe holds, much less than a terminal does
	cfg := newConfig(t, "seq", "-f", "%05g", fmt.Sprint(lines))
	out, outer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	// However a pipe is filled, it does not always hold all that it could.
	if _, err := unix.FcntlInt(outer.Fd(), unix.F_SETPIPE_SZ, os.Getpagesize()); err != nil {
		t.Fatal(err)
	}
	cfg.Terminal, cfg.Stdout = true, outer
	c, err := Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	pidfd, err := unix.PidfdOpen(c.PID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	gone(t, pidfd)
	received := make(chan []byte)
	go func() {
		content, _ := io.ReadAll(out)
		received <- content
	}()
	if _, err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.terminal.drained:
	default:
		t.Error("Wait returned before the output was written")
	}
	outer.Close()
	if content := <-received; !bytes.HasSuffix(content, []byte("01500\r\n")) || bytes.Count(content, []byte("\n")) != lines {
		t.Errorf("%d lines, the last %q", bytes.Count(content, []byte("\n")), content[max(0, len(content)-20):])
	}
}

// A file as the input of a terminal ends there too.
func TestTerminalEndOfFile(t *testing.T) {
	for _, input := range []string{"one\ntwo\n", "one\ntwo", ""} {
		cfg := newConfig(t, "cat")
		in, err := os.CreateTemp(t.TempDir(), "in")
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		if _, err := in.WriteString(input); err != nil {
			t.Fatal(err)
		}
		if _, err := in.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
		cfg.Terminal, cfg.Stdin = true, in
		if status, _ := runConfig(t, cfg); status.Code != 0 {
			t.Errorf("input %q: status %+v", input, status)
		}
	}
}

// ^Z stops the agent as it would have stopped the command, with the host's
// terminal as it was, and continuing the agent continues the command.
func TestTerminalSuspend(t *testing.T) {
	cfg := newConfig(t, "sh", "-c", "echo ready; read line; echo got $line")
	keyboard, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer keyboard.Close()
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	s := &session{keyboard: keyboard, slave: slave, text: make(chan string, 1024)}
	go s.read()
	cfg.Terminal = true
	a := newAgent(t, "terminal")
	a.ExtraFiles = []*os.File{slave}
	// A group of its own, which is not orphaned: we are its shell.
	a.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	a.begin(t, "", cfg)
	s.expect(t, "ready\r\n")
	if _, err := keyboard.Write([]byte("\x1a")); err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(a.Process.Pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("the agent did not stop: %v, %v", status, err)
	}
	if s.mode(t).Lflag&unix.ICANON == 0 {
		t.Error("the host's terminal is raw while the agent is stopped")
	}
	if err := a.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(a.Process.Pid, &status, unix.WCONTINUED, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := keyboard.Write([]byte("typed\r")); err != nil {
		t.Fatal(err)
	}
	s.expect(t, "got typed")
	// It takes its container with it.
	a.stdin.Close()
	if err := a.Wait(); err != nil {
		t.Error(err)
	}
}
