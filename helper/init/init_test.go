package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestMain lets the test binary be the program: init execs a command and exits,
// which a function's test cannot show.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		const prSetNoNewPrivs = 38
		if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0); errno != 0 {
			panic(errno)
		}
		os.Exit(supervise(os.Args[2:], os.Stderr))
	}
	os.Exit(m.Run())
}

func TestLookup(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"one/tool": 0o644, "two/tool": 0o755, "one/plain": 0o644} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(dir+"/one/folder", 0o755); err != nil {
		t.Fatal(err)
	}
	path := dir + "/none:" + dir + "/one:" + dir + "/two"
	for _, test := range []struct {
		name, want string
		code       int
	}{
		{"tool", dir + "/two/tool", 0},
		{"plain", "", exitNotExecutable},
		{"folder", "", exitNotExecutable},
		{"nothing", "", exitNotFound},
		{"", "", exitNotFound},
		{dir + "/two/tool", dir + "/two/tool", 0},
		{dir + "/one/plain", "", exitNotExecutable},
		{dir + "/one/plain/x", "", exitNotFound},
	} {
		got, err := lookup(test.name, path)
		if test.code == 0 && (err != nil || got != test.want) || test.code != 0 && (err == nil || err.code != test.code) {
			t.Errorf("%q: %q, %v; want %q, %d", test.name, got, err, test.want, test.code)
		}
	}
}

// startInit starts an init that is nobody's PID 1, with a lifeline.
func startInit(t *testing.T, command ...string) (*exec.Cmd, *os.File, *strings.Builder) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer theirs.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	cmd := exec.Command("/proc/self/exe", append([]string{"init", "3", "--"}, command...)...)
	cmd.ExtraFiles = []*os.File{theirs, null, write, write}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// A filter of one instruction, which lets everything pass.
	if _, err := ours.Write(append([]byte{1, 0}, 0x06, 0, 0, 0, 0, 0, 0xff, 0x7f)); err != nil {
		t.Fatal(err)
	}
	word := make([]byte, 2)
	if n, err := ours.Read(word); err != nil || n != 2 || word[0] != wordFiltered {
		t.Fatalf("init said %q, %v, of the filter", word, err)
	}
	output := &strings.Builder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 4096)
		for {
			n, err := read.Read(buffer)
			output.Write(buffer[:n])
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		ours.Close()
		_ = cmd.Wait()
		<-done
		read.Close()
	})
	return cmd, ours, output
}

func TestInitExitCode(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("exit 6\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		command []string
		code    int
	}{
		{[]string{"true"}, 0},
		{[]string{"sh", "-c", "exit 7"}, 7},
		{[]string{"sh", "-c", "kill -TERM $$"}, 143},
		{[]string{script}, 6}, // without #!
		{[]string{"/no/such"}, 127},
	} {
		cmd, lifeline, _ := startInit(t, test.command...)
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != test.code {
			t.Errorf("%q: code %d, want %d", test.command, code, test.code)
		}
		lifeline.Close()
	}
}

// The end of the lifeline is the end of init, which is not PID 1 here and so
// leaves the command: that the kernel ends it too is package runtime's test.
func TestInitEndsWithLifeline(t *testing.T) {
	// The command waits for a line that comes when the test is over.
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, lifeline, _ := startInit(t, "sh", "-c", "read line <"+fifo)
	t.Cleanup(func() {
		if err := os.WriteFile(fifo, []byte("over\n"), 0); err != nil {
			t.Error(err)
		}
	})
	lifeline.Close()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 137 {
		t.Errorf("code %d", code)
	}
}

func TestInitPassesSignals(t *testing.T) {
	cmd, lifeline, _ := startInit(t, "sleep", "1000")
	if _, err := lifeline.Write([]byte{byte(syscall.SIGUSR1)}); err != nil {
		t.Fatal(err)
	}
	word := make([]byte, 2)
	if _, err := lifeline.Read(word); err != nil || word[0] != wordKilled || word[1] != byte(syscall.SIGUSR1) {
		t.Errorf("init said %q, %v", word, err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 128+int(syscall.SIGUSR1) {
		t.Errorf("code %d", code)
	}
}

// Without its filter no command is started.
func TestInitWithoutFilter(t *testing.T) {
	for name, filter := range map[string][]byte{"none": nil, "cut off": {1, 0, 0x06, 0, 0, 0}, "empty": {0, 0}, "no filter": {1, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0}} {
		t.Run(name, func(t *testing.T) {
			fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
			defer theirs.Close()
			started := filepath.Join(t.TempDir(), "started")
			cmd := exec.Command("/proc/self/exe", "init", "3", "--", "touch", started)
			cmd.ExtraFiles = []*os.File{theirs, os.Stdin, os.Stdout, os.Stderr}
			if _, err := ours.Write(filter); err != nil {
				t.Fatal(err)
			}
			ours.Close()
			_ = cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != exitOurs {
				t.Errorf("code %d", code)
			}
			if _, err := os.Lstat(started); err == nil {
				t.Error("the command was started")
			}
		})
	}
}

func TestSuperviseRefuses(t *testing.T) {
	for _, args := range [][]string{nil, {"other"}, {"3"}, {"x", "--", "true"}, {"2", "--", "true"}, {"3", "--"}} {
		var stderr strings.Builder
		if code := supervise(args, &stderr); code != exitOurs || !strings.HasPrefix(stderr.String(), "agent: error: ") {
			t.Errorf("%q: code %d, %q", args, code, stderr.String())
		}
	}
}
