package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"agentops/audit"

	"golang.org/x/sys/unix"
)

func TestCheckLimits(t *testing.T) {
	for _, test := range []struct {
		limits audit.Limits
		err    string
	}{
		{audit.Limits{}, ""},
		{audit.Limits{Memory: 64 << 20, CPUs: 0.5, PIDs: 100, OpenFiles: 256}, ""},
		{audit.Limits{Memory: 1 << 20}, "limit of memory: a run needs at least 32m"},
		{audit.Limits{CPUs: 0.001}, "limit of cpus: a run needs at least 0.01"},
		{audit.Limits{PIDs: 3}, "limit of pids: a run needs at least 32"},
		{audit.Limits{OpenFiles: 3}, "limit of open files: a run needs at least 64"},
		{audit.Limits{OpenFiles: 1 << 40}, "fs.nr_open"},
	} {
		got, err := CheckLimits(test.limits)
		if test.err == "" {
			if test.limits.PIDs == 0 {
				test.limits.PIDs = DefaultPIDs
			}
			if err != nil || got != test.limits {
				t.Errorf("%+v, %v; want %+v", got, err, test.limits)
			}
		} else if err == nil || !strings.Contains(err.Error(), test.err) {
			t.Errorf("%+v: %v, want %q", test.limits, err, test.err)
		}
	}
}

// A fork bomb stops at its limit, and whoever is not in the run still forks.
func TestPIDsLimit(t *testing.T) {
	cfg := newConfig(t, "/usr/bin/python3", "-c", `
import os, time
n = 0
try:
    while n < 1000:
        if os.fork() == 0: time.sleep(1000)
        n += 1
except BlockingIOError:
    pass
print("stopped at", n, flush=True)
input()`)
	cfg.Limits.PIDs = 64
	out, outer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	inner, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Stdin, cfg.Stdout = inner, outer
	c, err := Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	outer.Close()
	inner.Close()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Fscanf(out, "stopped at %d\n", &n); err != nil || n < 32 || n >= 64 {
		t.Errorf("stopped at %d, %v", n, err)
	}
	if status, _ := shell(t, "true"); status.Code != 0 { // another run
		t.Errorf("beside it: %+v", status)
	}
	in.Close()
	if _, err := c.Wait(); err != nil {
		t.Error(err)
	}
}

func TestMemoryLimit(t *testing.T) {
	cfg := newConfig(t, "/usr/bin/python3", "-c", "hog = [bytearray(1 << 20) for _ in range(1 << 12)]; print('here')")
	cfg.Limits.Memory = 64 << 20
	if status, output := runConfig(t, cfg); status.Code != 137 || status.Signal != unix.SIGKILL || output != "" {
		t.Errorf("status %+v, output %q", status, output)
	}
	if left := leftovers(t, cfg); left != nil {
		t.Errorf("left on the host: %q", left)
	}
}

func TestCPULimit(t *testing.T) {
	cfg := newConfig(t, "true")
	cfg.Limits.CPUs = 0.25
	c, err := Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	mounts, err := listCgroupMounts()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, point := range hierarchies(mounts) {
		for _, name := range []string{"cpu.max", "cpu.cfs_quota_us"} {
			if content, err := os.ReadFile(filepath.Join(point, cgroupName(cfg.ID), name)); err == nil {
				found = append(found, strings.Fields(string(content))[0])
			}
		}
	}
	if len(found) != 1 || found[0] != "25000" {
		t.Errorf("quotas %q, want 25000", found)
	}
}

func TestOpenFilesLimit(t *testing.T) {
	cfg := newConfig(t, "sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -n 1000")
	cfg.Limits.OpenFiles = 100
	if status, output := runConfig(t, cfg); status.Code == 0 || !strings.HasPrefix(output, "100\n100\n") {
		t.Errorf("status %+v, output %q", status, output)
	}
}
