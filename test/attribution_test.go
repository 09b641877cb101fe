package test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"agentops/audit"
)

// Fifty processes make two hundred short connections each, all at once, and are
// gone before most of them are looked at: each connection is attributed to who
// made it, and the kernel has counted as many as the journal tells.
func TestEveryConnectionHasItsProcess(t *testing.T) {
	needRoot(t)
	const processes, connections = 50, 200
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	// Each process is known by the port that it connects to; it tells its
	// children's as it starts them. Under its own name it would be too.
	script := fmt.Sprintf(`
import ctypes, os, socket
libc = ctypes.CDLL(None)
children = []
for n in range(%d):
    pid = os.fork()
    if pid == 0:
        libc.prctl(15, b"client-%%d" %% n, 0, 0, 0)
        for _ in range(%d):
            s = socket.create_connection(("192.0.2.7", 10000 + n))
            s.close()
        os._exit(0)
    children.append(pid)
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
`, processes, connections)
	state, workspace := t.TempDir(), t.TempDir()
	agent := func(args ...string) ([]byte, error) {
		cmd := exec.Command(agentPath(t), args...)
		cmd.Env, cmd.Dir, cmd.Stderr = baseEnv(state), workspace, os.Stderr
		return cmd.Output()
	}
	if _, err := agent("run", "--quiet", "--resolve", "*="+listener.Addr().String(), "--", "/usr/bin/python3", "-c", script); err != nil {
		t.Fatal(err)
	}
	out, err := agent("audit", "last", "--json")
	if err != nil {
		t.Fatalf("%v\n%.2000s", err, out)
	}
	var report struct {
		Events []struct {
			Type string
			audit.FlowOpen
			Totals audit.Totals
			Kernel audit.Counts `json:"kernel_counts"`
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatal(err)
	}
	python, err := filepath.EvalSymlinks("/usr/bin/python3")
	if err != nil {
		t.Fatal(err)
	}
	pids, made := map[uint16]int{}, map[uint16]int{}
	for _, e := range report.Events {
		switch {
		case e.Type == "run.exit":
			if e.Kernel.Flows != processes*connections || e.Totals.Unknown != 0 {
				t.Errorf("the kernel has counted %+v, the journal %+v", e.Kernel, e.Totals)
			}
			continue
		case e.Type != "flow.open":
			continue
		case e.Process == nil:
			t.Fatalf("flow %d has no process", e.Flow)
		}
		p, n := e.Process, e.Port-10000
		if pids[n] == 0 {
			pids[n] = p.PID
		}
		made[n]++
		if p.PID != pids[n] || p.Comm != fmt.Sprintf("client-%d", n) || p.Exe != python || p.UID != 0 {
			t.Fatalf("flow %d of process %d is attributed to %+v", e.Flow, n, *p)
		}
	}
	for n := range uint16(processes) {
		if made[n] != connections {
			t.Errorf("process %d has %d connections, want %d", n, made[n], connections)
		}
	}
}
