package helper

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// initRun is an init that is nobody's PID 1.
type initRun struct {
	*exec.Cmd
	lifeline *os.File
	output   string // of the command and of init, once wait has returned
	read     chan string
}

// wait returns the exit code.
func (r *initRun) wait() int {
	_ = r.Wait()
	r.output = <-r.read
	return r.ProcessState.ExitCode()
}

// beginInit starts an init and sends it what is to be its filter.
func beginInit(t *testing.T, program string, filter []byte, env []string, command ...string) *initRun {
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
	r := &initRun{Cmd: exec.Command(program, append([]string{"3", "--"}, command...)...), lifeline: ours, read: make(chan string, 1)}
	r.ExtraFiles = []*os.File{theirs, null, write, write}
	r.Env = append(slices.Clip(env), fmt.Sprintf("ASAN_OPTIONS=exitcode=%d", exitUndefined), fmt.Sprintf("UBSAN_OPTIONS=exitcode=%d", exitUndefined))
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		output, _ := io.ReadAll(read)
		read.Close()
		r.read <- string(output)
	}()
	t.Cleanup(func() {
		ours.Close()
		_ = r.Wait() // it may have been waited for
	})
	if _, err := ours.Write(filter); err != nil {
		t.Fatal(err)
	}
	return r
}

// startInit starts one with a filter of one instruction, which lets everything pass.
func startInit(t *testing.T, program string, env []string, command ...string) *initRun {
	t.Helper()
	r := beginInit(t, program, []byte{1, 0, 0x06, 0, 0, 0, 0, 0, 0xff, 0x7f}, env, command...)
	if got := r.word(t); got != "F\x00" {
		t.Fatalf("init said %q of the filter", got)
	}
	return r
}

// word is the next that init says.
func (r *initRun) word(t *testing.T) string {
	t.Helper()
	word := make([]byte, 2)
	if _, err := io.ReadFull(r.lifeline, word); err != nil {
		t.Fatalf("read the lifeline: %v", err)
	}
	return string(word)
}

func TestInitIsStaticAndSmall(t *testing.T) { isStaticAndSmall(t, "init", initial) }

func TestInitExitCode(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("echo $0 $*; exit 6\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	each(t, inits, func(t *testing.T, program string) {
		for _, test := range []struct {
			command []string
			code    int
			output  string
		}{
			{[]string{"true"}, 0, ""},
			{[]string{"sh", "-c", "echo $A; exit 7"}, 7, "b\n"},
			{[]string{"sh", "-c", "kill -TERM $$"}, 143, ""},
			{[]string{script, "one", "two"}, 6, script + " one two\n"}, // without #!
			{[]string{"/no/such"}, 127, "agent: error: /no/such: no such file or directory\n"},
			// Who dies before, and whose child is left, is not the command.
			{[]string{"sh", "-c", "sh -c 'true & exit 1'; (exit 3) & wait; exit 4"}, 4, ""},
		} {
			r := startInit(t, program, []string{"A=b", "PATH=" + os.Getenv("PATH")}, test.command...)
			if code := r.wait(); code != test.code || r.output != test.output {
				t.Errorf("%q: code %d, %q; want %d, %q", test.command, code, r.output, test.code, test.output)
			}
		}
	})
}

func TestInitLooksUp(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"one/tool": 0o644, "two/tool": 0o755, "one/plain": 0o644, "here": 0o755} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho $0\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"one/folder", "two/bad"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/one/bad", []byte("#!/no/such\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	long := strings.Repeat("x", 4095)
	path := dir + "/none:" + dir + "/one:" + dir + "/two:"
	each(t, inits, func(t *testing.T, program string) {
		for _, test := range []struct {
			name, path, output string
			code               int
		}{
			{"tool", path, dir + "/two/tool\n", 0},
			{"here", path, "./here\n", 0}, // the last folder has no name
			{"here", ":" + dir + "/one", "./here\n", 0},
			{"here", dir + "/one", "agent: error: here: command not found\n", 127},
			{"plain", path, "agent: error: " + dir + "/one/plain: permission denied\n", 126},
			{"folder", path, "agent: error: " + dir + "/one/folder: is a directory\n", 126},
			{"bad", path, "agent: error: " + dir + "/one/bad: no such file or directory\n", 127},
			{"nothing", path, "agent: error: nothing: command not found\n", 127},
			{"nothing", "", "agent: error: nothing: command not found\n", 127},
			{"", path, "agent: error: the command is empty\n", 127},
			{dir + "/two/tool", path, dir + "/two/tool\n", 0},
			{dir + "/one/plain", path, "agent: error: " + dir + "/one/plain: permission denied\n", 126},
			{dir + "/one/plain/x", path, "agent: error: " + dir + "/one/plain/x: not a directory\n", 127},
			{long, path, "", 126},
			{"tool", long + ":" + path, dir + "/two/tool\n", 0},
		} {
			if test.output == "" {
				test.output = "agent: error: " + dir + "/none/" + long + ": file name too long\n"
			}
			r := startInit(t, program, []string{"PATHS=/bin", "PATH=" + test.path}, test.name)
			if code := r.wait(); code != test.code || r.output != test.output {
				t.Errorf("%.80q: code %d, %.500q; want %d, %.500q", test.name, code, r.output, test.code, test.output)
			}
		}
	})
}

// The end of the lifeline is the end of init, which is not PID 1 here and so
// leaves the command: that the kernel ends it too is package runtime's test.
func TestInitEndsWithLifeline(t *testing.T) {
	each(t, inits, func(t *testing.T, program string) {
		// The command waits for a line that comes when the test is over.
		fifo := filepath.Join(t.TempDir(), "fifo")
		if err := syscall.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		r := startInit(t, program, nil, "/bin/sh", "-c", "read line <"+fifo)
		r.lifeline.Close()
		_ = r.Wait()
		if code := r.ProcessState.ExitCode(); code != 137 {
			t.Errorf("code %d", code)
		}
		if err := os.WriteFile(fifo, []byte("over\n"), 0); err != nil {
			t.Error(err)
		}
	})
}

func TestInitPassesSignals(t *testing.T) {
	each(t, inits, func(t *testing.T, program string) {
		r := startInit(t, program, nil, "/bin/sleep", "1000")
		if _, err := r.lifeline.Write([]byte{byte(syscall.SIGSTOP)}); err != nil {
			t.Fatal(err)
		}
		if got, want := r.word(t), string([]byte{'S', byte(syscall.SIGSTOP)}); got != want {
			t.Errorf("init said %q, want %q", got, want)
		}
		if _, err := r.lifeline.Write([]byte{byte(syscall.SIGUSR1), byte(syscall.SIGCONT)}); err != nil {
			t.Fatal(err)
		}
		if got, want := r.word(t), string([]byte{'K', byte(syscall.SIGUSR1)}); got != want {
			t.Errorf("init said %q, want %q", got, want)
		}
		if code := r.wait(); code != 128+int(syscall.SIGUSR1) {
			t.Errorf("code %d", code)
		}
	})
}

// What others send init, it passes on; what it was started to ignore the command
// ignores as well, and nothing is blocked there.
func TestInitPassesOthersSignals(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	each(t, inits, func(t *testing.T, program string) {
		const script = "trap 'echo terminated; exit 9' TERM; grep -E '^Sig(Blk|Ign)' /proc/self/status; kill -STOP $$; exit 1"
		r := startInit(t, program, []string{"PATH=" + os.Getenv("PATH")}, "sh", "-c", script)
		if got, want := r.word(t), string([]byte{'S', byte(syscall.SIGSTOP)}); got != want {
			t.Fatalf("init said %q, want %q", got, want)
		}
		for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGTERM, syscall.SIGCONT} {
			if err := r.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
		}
		code := r.wait()
		if code != 9 || !strings.Contains(r.output, "SigBlk:\t0000000000000000\n") || !strings.HasSuffix(r.output, "1\nterminated\n") {
			t.Errorf("code %d, %q", code, r.output)
		}
	})
}

// However many processes die in the run, the agent is heard.
func TestInitReapsMany(t *testing.T) {
	each(t, inits, func(t *testing.T, program string) {
		r := startInit(t, program, []string{"PATH=" + os.Getenv("PATH")}, "sh", "-c", "trap 'exit 5' USR1; kill -STOP $$; while :; do (true & true &); done")
		if got, want := r.word(t), string([]byte{'S', byte(syscall.SIGSTOP)}); got != want {
			t.Fatalf("init said %q, want %q", got, want)
		}
		if _, err := r.lifeline.Write([]byte{byte(syscall.SIGCONT), byte(syscall.SIGUSR1)}); err != nil {
			t.Fatal(err)
		}
		if code := r.wait(); code != 5 {
			t.Errorf("code %d, %q", code, r.output)
		}
	})
}

// Without its filter no command is started.
func TestInitWithoutFilter(t *testing.T) {
	each(t, inits, func(t *testing.T, program string) {
		for name, filter := range map[string][]byte{
			"none": nil, "cut off": {1, 0, 0x06, 0, 0, 0}, "empty": {0, 0}, "no filter": {1, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0},
			"too long": {0x01, 0x10}, "half a length": {1},
		} {
			t.Run(name, func(t *testing.T) {
				started := filepath.Join(t.TempDir(), "started")
				r := beginInit(t, program, filter, nil, "/bin/touch", started)
				if err := syscall.Shutdown(int(r.lifeline.Fd()), syscall.SHUT_WR); err != nil {
					t.Fatal(err)
				}
				if code := r.wait(); code != 125 || !strings.HasPrefix(r.output, "agent: error: prepare the run's init: ") {
					t.Errorf("code %d, %q", code, r.output)
				}
				if _, err := os.Lstat(started); err == nil {
					t.Error("the command was started")
				}
			})
		}
	})
}

func TestInitRefusesArguments(t *testing.T) {
	each(t, inits, func(t *testing.T, program string) {
		for _, args := range [][]string{
			nil, {"other"}, {"3"}, {"x", "--", "true"}, {"2", "--", "true"}, {"3", "--"}, {"-3", "--", "true"}, {"", "--", "true"},
			{"--terminal", "3", "--"}, {"99999999999", "--", "true"},
		} {
			cmd := exec.Command(program, args...)
			output, _ := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != 125 || !strings.HasPrefix(string(output), "agent: error: ") {
				t.Errorf("%q: code %d, %q", args, code, output)
			}
		}
	})
}
