package runtime

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExitCodes(t *testing.T) {
	for _, test := range []struct {
		name    string
		command []string
		code    int
		signal  unix.Signal
		says    string
	}{
		{"success", []string{"true"}, 0, 0, ""},
		{"its own", []string{"sh", "-c", "exit 7"}, 7, 0, ""},
		{"not found", []string{"no-such-command"}, 127, 0, "agent: error: no-such-command: command not found\n"},
		{"no such path", []string{"/no/such"}, 127, 0, "agent: error: /no/such: no such file or directory\n"},
		{"not executable", []string{"/etc/passwd"}, 126, 0, "agent: error: /etc/passwd: permission denied\n"},
		{"a folder", []string{"/etc"}, 126, 0, "agent: error: /etc: is a directory\n"},
		{"killed", []string{"sh", "-c", "kill -KILL $$"}, 137, unix.SIGKILL, ""},
		{"terminated", []string{"sh", "-c", "kill -TERM $$"}, 143, unix.SIGTERM, ""},
		{"looks like a signal", []string{"sh", "-c", "exit 137"}, 137, 0, ""},
		{"leaves others", []string{"sh", "-c", "sleep 1000 & setsid sleep 1000 & exit 3"}, 3, 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := newConfig(t, test.command...)
			status, output := runConfig(t, cfg)
			if status.Code != test.code || output != test.says {
				t.Errorf("code %d, output %q; want %d, %q", status.Code, output, test.code, test.says)
			}
			if (status.Signal == nil) != (test.signal == 0) || status.Signal != nil && status.Signal != test.signal {
				t.Errorf("signal %v, want %v", status.Signal, test.signal)
			}
			if left := leftovers(t, cfg); left != nil {
				t.Errorf("left on the host: %q", left)
			}
		})
	}
}

func TestStreams(t *testing.T) {
	cfg := newConfig(t, "cat")
	sent := make([]byte, 1<<20)
	for i := range sent {
		sent[i] = byte(i * 7)
	}
	inner, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, outer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Stdin, cfg.Stdout = inner, outer
	c, err := Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	inner.Close()
	outer.Close() // the command alone holds them: its end is theirs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = in.Write(sent)
		in.Close()
	}()
	received, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(received, sent) {
		t.Errorf("%d bytes came back, not the %d that were sent", len(received), len(sent))
	}
	if status, err := c.Wait(); err != nil || status.Code != 0 {
		t.Errorf("status %+v, %v", status, err)
	}
}

// A command that closes its output is seen to, while it still runs.
func TestStreamsAreTheCommandsAlone(t *testing.T) {
	cfg := newConfig(t, "sh", "-c", "echo done; exec >&- 2>&-; exec sleep 1000")
	out, outer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Stdout, cfg.Stderr = outer, outer
	c, err := Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	outer.Close()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if received, err := io.ReadAll(out); err != nil || string(received) != "done\n" {
		t.Errorf("received %q, %v", received, err)
	}
}

func TestSignals(t *testing.T) {
	for _, test := range []struct {
		signal unix.Signal
		name   string
	}{{unix.SIGTERM, "TERM"}, {unix.SIGINT, "INT"}, {unix.SIGHUP, "HUP"}, {unix.SIGUSR1, "USR1"}, {unix.SIGWINCH, "WINCH"}} {
		t.Run(test.name, func(t *testing.T) {
			cfg := newConfig(t, "sh", "-c", fmt.Sprintf("trap 'exit 42' %s; echo ready; while :; do sleep 0.01; done", test.name))
			out, outer, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cfg.Stdout = outer
			c, err := Create(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			if err := c.Signal(test.signal); err != nil {
				t.Fatal(err)
			}
			if status, err := c.Wait(); err != nil || status.Code != 42 {
				t.Errorf("status %+v, %v", status, err)
			}
			if err := c.Signal(test.signal); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("a signal after the end: %v", err)
			}
		})
	}
}

// A signal that comes before there is a command is not lost.
func TestSignalBeforeStart(t *testing.T) {
	c, err := Create(newConfig(t, "sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if status, err := c.Wait(); err != nil || status.Signal != unix.SIGTERM {
		t.Errorf("status %+v, %v", status, err)
	}
}

func TestCloseWithoutStart(t *testing.T) {
	cfg := newConfig(t, "true")
	c, err := Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if left := leftovers(t, cfg); left != nil {
		t.Errorf("left on the host: %q", left)
	}
	if err := c.Start(); err == nil {
		t.Error("a closed container started")
	}
	if err := unix.Kill(c.PID(), 0); err != unix.ESRCH {
		t.Errorf("its first process: %v", err)
	}
}

func TestCreateFailureLeavesNothing(t *testing.T) {
	cfg := newConfig(t, "true")
	cfg.Network = "/proc/self/fd/987654"
	if _, err := Create(cfg); err == nil {
		t.Fatal("created in a network namespace that is not there")
	}
	if left := leftovers(t, cfg); left != nil {
		t.Errorf("left on the host: %q", left)
	}
}

func TestSignalsToFirstProcess(t *testing.T) {
	// From inside, none stops or kills it; those that it can catch go to the
	// command, which is what is told to end here.
	for _, name := range []string{"STOP", "KILL", "TSTP", "TTIN"} {
		status, output := shell(t, "trap '' TSTP TTIN; kill -"+name+" 1; sleep 0.05; echo alive; exit 5")
		if status.Code != 5 || output != "alive\n" {
			t.Errorf("after SIG%s to PID 1: status %+v, output %q", name, status, output)
		}
	}
	for _, name := range []string{"ABRT", "QUIT", "TERM", "USR1"} {
		if status, _ := shell(t, "ulimit -c 0; kill -"+name+" 1; sleep 1000"); status.Signal == nil {
			t.Errorf("after SIG%s to PID 1: status %+v", name, status)
		}
	}
}

func TestDescriptors(t *testing.T) {
	_, output := shell(t, `for fd in /proc/self/fd/*; do echo ${fd##*/}; done`)
	// The shell expands the pattern itself: what it holds is what it was given,
	// besides the folder that it reads.
	if want := "0\n1\n2\n3\n"; output != want {
		t.Errorf("descriptors %q, want %q", output, want)
	}
}

// The run's root has no way into PID 1, on which its end depends.
func TestFirstProcessIsOutOfReach(t *testing.T) {
	for _, attempt := range []string{
		"readlink /proc/1/fd/3", "readlink /proc/1/exe", "readlink /proc/1/root", "cat /proc/1/environ",
		"true 3<>/proc/1/fd/3", "dd if=/dev/zero of=/proc/1/mem count=1 2>/dev/null", "cat /proc/1/exe",
		"cp /bin/true /agentops/init", "cat /proc/1/maps",
	} {
		if status, output := shell(t, attempt); status.Code == 0 {
			t.Errorf("%s: status %+v, output %q", attempt, status, output)
		}
	}
}

func TestNamespaces(t *testing.T) {
	cfg := newConfig(t, "sh", "-c", "readlink /proc/self/ns/net; cat /proc/net/dev | wc -l; hostname; cat /etc/resolv.conf")
	network, inode := newNetwork(t)
	cfg.Network = network
	_, output := runConfig(t, cfg)
	want := fmt.Sprintf("net:[%d]\n3\ntest-run\nnameserver 198.18.0.1\n", inode)
	if output != want {
		t.Errorf("output %q, want %q", output, want)
	}
}

func TestCgroupPath(t *testing.T) {
	c, err := Create(newConfig(t, "true"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	procs, err := os.ReadFile(filepath.Join(c.cgroup, "cgroup.procs"))
	if err != nil || strings.TrimSpace(string(procs)) != fmt.Sprint(c.PID()) {
		t.Errorf("processes of %s: %q, %v; want %d", c.cgroup, procs, err, c.PID())
	}
}

func TestConcurrent(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 10 {
		cfg := newConfig(t, "sh", "-c", fmt.Sprintf("echo %d >/etc/mine; sleep 0.05; cat /etc/mine", i))
		cfg.ID += fmt.Sprint(i)
		wg.Go(func() {
			if status, output := runConfig(t, cfg); status.Code != 0 || output != fmt.Sprintln(i) {
				t.Errorf("container %d: status %+v, output %q", i, status, output)
			}
		})
	}
	wg.Wait()
}

func BenchmarkTrue(b *testing.B) {
	cfg := newConfig(b, "true")
	for b.Loop() {
		c, err := Create(cfg)
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Wait(); err != nil {
			b.Fatal(err)
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
