package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/link"
)

// traces are what runs could leave on a host.
func traces(t *testing.T) []string {
	t.Helper()
	var found []string
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		found = append(found, "mount "+strings.TrimSpace(line))
	}
	for _, pattern := range []string{"/sys/fs/cgroup/agentops-*", "/sys/fs/cgroup/*/agentops-*", "/dev/*", "/dev/pts/*", "/run/netns/*"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			info, err := os.Lstat(path)
			if err != nil {
				continue // a terminal of somebody else's that closed
			}
			found = append(found, fmt.Sprintf("%s %s", path, info.Mode()))
		}
	}
	namespaces, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range namespaces {
		if name, err := os.Readlink(path); err == nil {
			found = append(found, "namespace "+name)
		}
	}
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, fmt.Sprintf("BPF link %d of type %d", info.ID, info.Type))
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// A host has nothing more, and nothing less, when its runs are over.
func TestTheHostIsLeftAsItWas(t *testing.T) {
	needRoot(t)
	agent := agentPath(t)
	state, workspace := t.TempDir(), t.TempDir()
	before := traces(t)
	for _, args := range [][]string{
		{"run", "--", "sh", "-c", "mount -t tmpfs none /mnt; mknod /dev/x c 1 3; rm -f /dev/null; echo > /tmp/x; sleep 100 & exit 3"},
		{"run", "-t", "--", "tty"},
		{"run", "--rootfs", "/nowhere", "--", "true"},
		{"run", "--", "no-such-command"},
	} {
		cmd := exec.Command(agent, args...)
		cmd.Env = baseEnv(state)
		cmd.Dir = workspace
		out, err := cmd.CombinedOutput()
		t.Logf("%q: %v\n%s", args, err, out)
	}
	after := traces(t)
	for _, trace := range after {
		if !slices.Contains(before, trace) {
			t.Errorf("left behind: %s", trace)
		}
	}
	for _, trace := range before {
		if !slices.Contains(after, trace) {
			t.Errorf("gone: %s", trace)
		}
	}
	live, err := os.ReadDir(filepath.Join(state, "run"))
	// The one file is kept until the next boot.
	if err != nil || len(live) != 1 || live[0].Name() != ".layout.json" {
		t.Errorf("left in the run folder: %v, %v", live, err)
	}
}
