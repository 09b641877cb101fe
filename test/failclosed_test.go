package test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// faulty is a run that something befalls, and the host around it.
type faulty struct {
	t         *testing.T
	state     string
	workspace string
	seen      atomic.Int64 // requests that arrived outside
	outside   string       // ADDRESS:PORT
	before    []string
	cmd       *exec.Cmd
	stdout    *bufio.Reader
	stdin     io.WriteCloser
	stderr    bytes.Buffer
}

func newFaulty(t *testing.T) *faulty {
	t.Helper()
	needRoot(t)
	f := &faulty{t: t, state: t.TempDir(), workspace: t.TempDir(), before: traces(t)}
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { f.seen.Add(1) }))
	t.Cleanup(server.Close)
	f.outside = server.Listener.Addr().String()
	return f
}

func (f *faulty) agent(args ...string) *exec.Cmd {
	cmd := exec.Command(agentPath(f.t), args...)
	cmd.Env, cmd.Dir = baseEnv(f.state), f.workspace
	return cmd
}

// start starts a run and waits until its script, of bash's, says that it is ready.
func (f *faulty) start(script string, flags ...string) {
	f.t.Helper()
	args := append([]string{"run", "--quiet", "--name", "victim", "--resolve", "*=" + f.outside}, flags...)
	f.startCommand(f.agent(append(args, "--", "bash", "-c", script)...))
}

func (f *faulty) startCommand(cmd *exec.Cmd) {
	f.t.Helper()
	f.cmd = cmd
	// Whatever a run that was to end does instead, the test ends.
	timer := time.AfterFunc(time.Minute, func() {
		f.t.Error("the run goes on after a minute")
		_ = cmd.Process.Kill() // it may have ended since
	})
	f.t.Cleanup(func() { timer.Stop() })
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	if f.stdin, err = cmd.StdinPipe(); err != nil {
		f.t.Fatal(err)
	}
	cmd.Stderr = &f.stderr
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.stdout = bufio.NewReader(stdout)
	f.line("ready")
}

// line reads the script's next line.
func (f *faulty) line(want string) {
	f.t.Helper()
	line, err := f.stdout.ReadString('\n')
	if err != nil || strings.TrimSpace(line) != want {
		_ = f.cmd.Process.Kill()
		_ = f.cmd.Wait()
		f.t.Fatalf("the run says %q, %v, want %q\n%s", line, err, want, f.stderr.String())
	}
}

// say lets the script's read go on.
func (f *faulty) say(line string) {
	f.t.Helper()
	if _, err := fmt.Fprintln(f.stdin, line); err != nil {
		f.t.Error(err)
	}
}

// end waits for the agent and returns its exit code, -1 for a signal. What the
// run had running is gone then: its output has come to its end.
func (f *faulty) end() int {
	f.t.Helper()
	if _, err := io.Copy(io.Discard, f.stdout); err != nil {
		f.t.Error(err)
	}
	err := f.cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	} else if err != nil {
		f.t.Error(err)
	}
	return 0
}

// want checks the exit code and what the agent had to say.
func (f *faulty) want(code int, message string) {
	f.t.Helper()
	if got := f.end(); got != code || !strings.Contains(f.stderr.String(), message) {
		f.t.Errorf("exit code %d, want %d; stderr, which should have %q:\n%s", got, code, message, f.stderr.String())
	}
}

// settle sweeps by another run, and checks that nothing of the run is left on the
// host and that nothing arrived outside without a record.
func (f *faulty) settle(verified bool) {
	f.t.Helper()
	if out, err := f.agent("run", "--quiet", "--name", "next", "--", "true").CombinedOutput(); err != nil {
		f.t.Errorf("the next run: %v\n%s", err, out)
	}
	out, err := f.agent("audit", "victim", "--json").Output()
	var report struct {
		Verified bool
		Problems []string
		Events   []struct{ Type string }
	}
	if err := json.Unmarshal(out, &report); err != nil {
		f.t.Fatalf("%v\n%s", err, out)
	}
	if report.Verified != verified || (err == nil) != verified {
		f.t.Errorf("verified is %v, want %v: %q, %v", report.Verified, verified, report.Problems, err)
	}
	flows := int64(0)
	for _, e := range report.Events {
		if e.Type == "flow.open" {
			flows++
		}
	}
	if seen := f.seen.Load(); seen > flows || seen == 0 {
		f.t.Errorf("%d requests arrived outside, the journal tells of %d connections", seen, flows)
	}
	after := traces(f.t)
	for _, trace := range after {
		if !slices.Contains(f.before, trace) {
			f.t.Errorf("left on the host: %s", trace)
		}
	}
}

// requests makes one request after another for as long as it can.
const requests = `get() { curl -sS -m 5 -o /dev/null http://any.example/; }
get && echo ready
`

func TestKilled(t *testing.T) {
	f := newFaulty(t)
	f.start(requests + "while :; do get; done")
	if err := f.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	f.want(-1, "")
	f.settle(false)
}

// A stopped agent lets nothing through; when it goes on, so does the run.
func TestStopped(t *testing.T) {
	f := newFaulty(t)
	f.start(requests + `read line
curl -sS -m 1 -o /dev/null http://any.example/ 2>/dev/null; echo code $?
read line
get && echo again`)
	if err := f.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	seen := f.seen.Load()
	f.say("try")
	f.line("code 28") // curl's for a time-out
	if now := f.seen.Load(); now != seen {
		t.Errorf("%d requests arrived outside while the agent was stopped", now-seen)
	}
	if err := f.cmd.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	f.say("again")
	f.line("again")
	f.want(0, "")
	f.settle(true)
}

// Without descriptors connections wait, and are had when there are some again.
func TestOutOfDescriptors(t *testing.T) {
	f := newFaulty(t)
	script := `get() { curl -sS -m 20 -o /dev/null http://any.example/; }
get && echo ready
/usr/bin/python3 -c '
import socket
held = [socket.create_connection(("192.0.2.7", 80)) for _ in range(300)]
for s in held:
    s.close()
'
get && echo again`
	// The run's own limit is the agent's: it cannot have more.
	shell := exec.Command("bash", "-c", `exec prlimit --nofile=100:1024 -- "$@"`, "bash",
		agentPath(t), "run", "--quiet", "--name", "victim", "--resolve", "*="+f.outside, "--",
		"bash", "-c", "ulimit -n 1024; "+script)
	shell.Env, shell.Dir = baseEnv(f.state), f.workspace
	f.startCommand(shell)
	f.line("again")
	f.want(0, "")
	f.settle(true)
}

// An agent that the kernel kills for want of memory is an agent killed.
func TestOutOfMemory(t *testing.T) {
	f := newFaulty(t)
	limited := memoryCgroup(t, 48<<20)
	f.startCommand(func() *exec.Cmd {
		cmd := exec.Command("bash", "-c", `echo $$ > "$0/cgroup.procs" && exec "$@"`, limited,
			agentPath(t), "run", "--quiet", "--name", "victim", "--resolve", "*="+f.outside, "--", "bash", "-c", requests+`
exec /usr/bin/python3 -c '
import socket
held = []
while True:
    s = socket.create_connection(("192.0.2.7", 80))
    s.sendall(b"GET / HTTP/1.1\r\nHost: any.example\r\nX: " + 500000 * b"x")
    held.append(s)
' 2>/dev/null`)
		cmd.Env, cmd.Dir = baseEnv(f.state), f.workspace
		return cmd
	}())
	f.want(-1, "")
	f.settle(false)
}

// memoryCgroup makes a cgroup whose processes may use so many bytes.
func memoryCgroup(t *testing.T, limit int) string {
	t.Helper()
	name, file := "/sys/fs/cgroup/memory/test-agentops-memory", "memory.limit_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err != nil { // version 2 alone
		name, file = "/sys/fs/cgroup/test-agentops-memory", "memory.max"
	}
	if err := os.Mkdir(name, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(name, file), []byte(strconv.Itoa(limit)), 0); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestRedirectDetached(t *testing.T) {
	f := newFaulty(t)
	f.start(requests + "exec sleep 1000")
	detachOf(t, f.initPID(), "net")
	f.want(125, "the redirect was detached")
	f.settle(true)
}

// The processes of a run moved out of its cgroup, which is then removed.
func TestCgroupRemoved(t *testing.T) {
	f := newFaulty(t)
	f.start(requests + "while :; do sleep 0.1; done")
	cgroup := unifiedCgroup(t, f.initPID())
	root := strings.TrimSuffix(cgroup, filepath.Base(cgroup))
	for os.Remove(cgroup) != nil {
		procs, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range strings.Fields(string(procs)) {
			_ = os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(pid), 0) // it may have ended
		}
	}
	f.want(125, "the observer was detached")
	f.settle(true)
}

// A server of the run's that fails ends the run: here its socket is shut down from
// outside.
func TestServerDead(t *testing.T) {
	for name, c := range map[string]struct {
		address string // as /proc/net/tcp has it
		message string
	}{
		"credentials": {"0100007F:", "the credential server failed"},
		"proxy":       {"FDFF13C6:", "the proxy failed"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFaulty(t)
			f.start(requests + "exec sleep 1000")
			f.shutDown(c.address)
			f.want(125, c.message)
			f.settle(true)
		})
	}
}

// Of agents that want one name at once, one has it.
func TestRacingForAName(t *testing.T) {
	f := newFaulty(t)
	const racers = 8
	release := filepath.Join(f.workspace, "release")
	if err := unix.Mkfifo(release, 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var busy, won atomic.Int64
	for range racers {
		wg.Go(func() {
			out, err := f.agent("run", "--quiet", "--name", "victim", "--resolve", "*="+f.outside, "--",
				"bash", "-c", "curl -sS -o /dev/null http://any.example/; read line < release").CombinedOutput()
			switch {
			case err == nil:
				won.Add(1)
			case strings.Contains(string(out), "a run named victim is going on"):
				if busy.Add(1) == racers-1 { // only the winner is left
					if err := os.WriteFile(release, []byte("go\n"), 0); err != nil {
						t.Error(err)
					}
				}
			default:
				t.Errorf("%v\n%s", err, out)
				_ = os.WriteFile(release, []byte("go\n"), 0)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d agents had the name", won.Load())
	}
	f.settle(true)
}

// What a killed agent has left is swept while another run goes on.
func TestSweepAmongOthers(t *testing.T) {
	f := newFaulty(t)
	other := newFaulty(t)
	other.state = f.state
	other.startCommand(other.agent("run", "--quiet", "--name", "other", "--resolve", "*="+other.outside, "--",
		"bash", "-c", requests+"read line; get && echo again"))
	f.start(requests + "while :; do get; done")
	if err := f.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	f.want(-1, "")
	if out, err := f.agent("run", "--quiet", "--", "true").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	other.say("again")
	other.line("again")
	other.want(0, "")
	if out, err := f.agent("audit", "other").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	f.settle(false)
}

// initPID is the run's PID 1: the agent's child.
func (f *faulty) initPID() int {
	f.t.Helper()
	pid := f.cmd.Process.Pid
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		f.t.Fatal(err)
	}
	for _, path := range tasks {
		content, err := os.ReadFile(path)
		if err != nil {
			continue // a thread that ended
		}
		for _, field := range strings.Fields(string(content)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				f.t.Fatal(err)
			}
			return child
		}
	}
	f.t.Fatalf("process %d has no child", pid)
	return 0
}

// detachOf takes off the BPF links of a process's namespace.
func detachOf(t *testing.T, pid int, namespace string) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, namespace), &st); err != nil {
		t.Fatal(err)
	}
	it := new(link.Iterator)
	defer it.Close()
	found := false
	for it.Next() {
		info, err := it.Link.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Type == link.NetNsType && uint64(info.NetNs().NetnsInode) == st.Ino {
			found = true
			if err := it.Link.Detach(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := it.Err(); err != nil || !found {
		t.Fatalf("no link of the namespace: %v", err)
	}
}

// unifiedCgroup is the folder of a process's cgroup of version 2.
func unifiedCgroup(t *testing.T, pid int) string {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			for _, mount := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
				if _, err := os.Stat(filepath.Join(mount, path, "cgroup.procs")); err == nil {
					return filepath.Join(mount, path)
				}
			}
		}
	}
	t.Fatalf("process %d is in no cgroup of version 2:\n%s", pid, content)
	return ""
}

// shutDown shuts the agent's listener down that the run's namespace has at an
// address.
func (f *faulty) shutDown(address string) {
	f.t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", f.initPID()))
	if err != nil {
		f.t.Fatal(err)
	}
	inode := ""
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		const local, state, inodeField = 1, 3, 9
		if strings.HasPrefix(fields[local], address) && fields[state] == "0A" {
			inode = fields[inodeField]
		}
	}
	if inode == "" {
		f.t.Fatalf("no listener at %s:\n%s", address, content)
	}
	pid := f.cmd.Process.Pid
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		f.t.Fatal(err)
	}
	for _, path := range files {
		if name, err := os.Readlink(path); err != nil || name != "socket:["+inode+"]" {
			continue
		}
		number, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			f.t.Fatal(err)
		}
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			f.t.Fatal(err)
		}
		defer unix.Close(pidfd)
		socket, err := unix.PidfdGetfd(pidfd, number, 0)
		if err != nil {
			f.t.Fatal(err)
		}
		defer unix.Close(socket)
		if err := unix.Shutdown(socket, unix.SHUT_RDWR); err != nil {
			f.t.Fatal(err)
		}
		return
	}
	f.t.Fatalf("the agent has no socket %s", inode)
}
