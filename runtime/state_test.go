package runtime

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// agent is this test binary as a process that drives a container.
type agent struct {
	*exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	pid    int // of the container's first process
}

// startAgent starts one in the given role of play.
func startAgent(t *testing.T, role, runDir string, cfg Config) *agent {
	t.Helper()
	a := newAgent(t, role)
	a.begin(t, runDir, cfg)
	return a
}

func newAgent(t *testing.T, role string) *agent {
	t.Helper()
	a := &agent{Cmd: exec.Command("/proc/self/exe")}
	a.Env = append(os.Environ(), "RUNTIME_TEST_ROLE="+role)
	a.Stderr = os.Stderr
	var err error
	if a.stdin, err = a.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := a.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	a.stdout = bufio.NewReader(stdout)
	return a
}

// begin starts the agent and waits until its container runs.
func (a *agent) begin(t *testing.T, runDir string, cfg Config) {
	t.Helper()
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = a.Process.Kill()
		_ = a.Wait()
	})
	if err := json.NewEncoder(a.stdin).Encode(scene{runDir, cfg}); err != nil {
		t.Fatal(err)
	}
	if n, err := fmt.Fscanln(a.stdout, &a.pid); n != 1 {
		t.Fatalf("the agent did not say the PID: %v", err)
	}
}

// gone waits until a process has ended.
func gone(t *testing.T, pidfd int) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 5000)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("the container's first process lives on: %v", err)
		}
		return
	}
}

// SIGKILL of the agent ends the run, whatever the run does against it.
func TestAgentKilled(t *testing.T) {
	for name, script := range map[string]string{
		"plain":   "sleep 1000",
		"hostile": "trap '' HUP INT TERM QUIT; for s in STOP TSTP TTIN TTOU KILL; do kill -$s 1; done; nice -n -0 true; renice 19 1 >/dev/null 2>&1; while :; do :; done & exec sleep 1000",
		"session": "setsid sleep 1000 & sleep 1000",
	} {
		t.Run(name, func(t *testing.T) {
			cfg := newConfig(t, "sh", "-c", script)
			a := startAgent(t, "agent", "", cfg)
			pidfd, err := unix.PidfdOpen(a.pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pidfd)
			if err := a.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = a.Wait()
			gone(t, pidfd)
			if err := removeCgroup(cgroupName(cfg.ID)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSweep(t *testing.T) {
	runDir := filepath.Join(t.TempDir(), "run")
	cfg := newConfig(t, "sh", "-c", "echo x >/usr/x; exec sleep 1000")
	a := startAgent(t, "claim", runDir, cfg)

	if _, err := TakeClaim(runDir, "killed", Record{ID: "other"}); err == nil {
		t.Fatal("two agents have one name")
	} else if busy, ok := errors.AsType[*BusyError](err); !ok || busy.ID != cfg.ID || busy.PID != a.Process.Pid {
		t.Errorf("error %v", err)
	}
	sealed := 0
	seal := func(r Record) error {
		if r.ID != cfg.ID || r.Folder != cfg.Folder {
			t.Errorf("record %+v", r)
		}
		sealed++
		return nil
	}
	if err := Sweep(runDir, seal); err != nil || sealed != 0 {
		t.Fatalf("swept %d runs that go on, %v", sealed, err)
	}
	pidfd, err := unix.PidfdOpen(a.pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := a.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = a.Wait()

	// A journal that cannot be sealed keeps the trace.
	refusal := errors.New("not now")
	if err := Sweep(runDir, func(Record) error { return refusal }); !errors.Is(err, refusal) {
		t.Errorf("sweep: %v", err)
	}
	// The name is free, and what was under it is not forgotten.
	claim, err := TakeClaim(runDir, "killed", Record{ID: "next", PID: os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	if err := Sweep(runDir, seal); err != nil || sealed != 1 {
		t.Errorf("swept %d runs, %v", sealed, err)
	}
	if err := claim.Release(); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(runDir); err != nil || len(entries) != 0 {
		t.Errorf("left in the run folder: %v, %v", entries, err)
	}
	cfg.Live = runDir
	if left := leftovers(t, cfg); left != nil {
		t.Errorf("left on the host: %q", left)
	}
	gone(t, pidfd)
}

// A sweep ends what is in the cgroup of the run that it sweeps, and no other's.
func TestSweepKillsItsOwnOnly(t *testing.T) {
	needRoot(t)
	mounts, err := listCgroupMounts()
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("test-sweep-%d", os.Getpid())
	sleep := func(id string) *exec.Cmd {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for _, point := range hierarchies(mounts) {
			folder := filepath.Join(point, cgroupName(id))
			if strings.Contains(point, "cpuset") {
				continue // needs to be set up first
			}
			if err := os.MkdirAll(folder, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(folder+"/cgroup.procs", []byte(fmt.Sprint(cmd.Process.Pid)), 0); err != nil {
				t.Fatal(err)
			}
		}
		return cmd
	}
	one, other := sleep(id), sleep(id+"-other")
	if err := removeCgroup(cgroupName(id)); err == nil {
		// Reaped only now: a zombie is in no cgroup's way.
	} else {
		t.Error(err)
	}
	_ = one.Wait()
	if err := unix.Kill(other.Process.Pid, 0); err != nil {
		t.Errorf("the other run's process: %v", err)
	}
	_ = other.Process.Kill()
	_ = other.Wait()
	if err := removeCgroup(cgroupName(id + "-other")); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"/", "", "/agentops-", "/agentops-../x", "/system.slice", "/agentops-a/b"} {
		if removeCgroup(name) == nil {
			t.Errorf("cgroup %q could be removed", name)
		}
	}
}

func TestClaimRace(t *testing.T) {
	runDir := filepath.Join(t.TempDir(), "run")
	var wg sync.WaitGroup
	var mu sync.Mutex
	var holders int
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				claim, err := TakeClaim(runDir, "name", Record{ID: fmt.Sprintf("race-%d", i)})
				if err == nil {
					mu.Lock()
					holders++
					if holders != 1 {
						t.Error("two have the name")
					}
					holders--
					mu.Unlock()
					if err := claim.Release(); err != nil {
						t.Error(err)
					}
				} else if busy, ok := errors.AsType[*BusyError](err); !ok || busy.ID == "" {
					t.Error(err)
				}
				if err := Sweep(runDir, func(Record) error { t.Error("swept one that goes on"); return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// Another agent's sweep has a new folder for a moment, which is not to have its name.
func TestClaimBesideSweeps(t *testing.T) {
	runDir := filepath.Join(t.TempDir(), "run")
	var wg sync.WaitGroup
	over := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if err := Sweep(runDir, func(Record) error { return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 300 {
		claim, err := TakeClaim(runDir, "name", Record{ID: "one"})
		if err != nil {
			t.Error(err)
			break
		}
		if err := claim.Release(); err != nil {
			t.Error(err)
		}
	}
	close(over)
	wg.Wait()
}

func TestClaimNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", ".hidden", "a/b", "a b", "ü", strings.Repeat("x", 65)} {
		if _, err := TakeClaim(t.TempDir(), name, Record{}); err == nil {
			t.Errorf("name %q was taken", name)
		}
	}
}
