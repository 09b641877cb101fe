package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settled is how long a process has had nothing to do when its memory is read.
const settled = time.Second

// memory measures what a run that does nothing holds of it, and with many
// connections open.
func (b *bench) memory() (*Results, error) {
	s, err := b.newBundles()
	if err != nil {
		return nil, err
	}
	agent := func(cmd func() *exec.Cmd) contender {
		return single("agent", func() (float64, error) {
			l, err := goLive(cmd())
			if err != nil {
				return 0, err
			}
			time.Sleep(settled)
			size, err := pss(l.cmd.Process.Pid)
			return size, errors.Join(err, l.end())
		})
	}
	idle, err := alternate(b.rounds(5),
		agent(func() *exec.Cmd { return s.agent("pause") }),
		single("conmon", func() (float64, error) { return s.conmon() }))
	if err != nil {
		return nil, err
	}
	held, err := alternate(b.rounds(5), agent(func() *exec.Cmd { return b.client(true, "hold", originName+":443", "1000") }))
	if err != nil {
		return nil, err
	}
	return &Results{Figures: []Figure{
		{Name: "memory of an idle run's agent (PSS)", Unit: "MB", Ours: idle[0][0], Other: &idle[1][0], Target: valueOfAtMost(15)},
		{Name: "the same, 1,000 HTTPS connections open", Unit: "MB", Ours: held[0][0], Target: valueOfAtMost(60)},
	}}, nil
}

// pss is what processes hold of the memory, in MB: of what several share, a part each.
func pss(pids ...int) (float64, error) {
	total := 0.0
	for _, pid := range pids {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		_, rest, found := strings.Cut(string(content), "\nPss:")
		kib, err := strconv.Atoi(strings.Fields(rest + " ?")[0])
		if !found || err != nil {
			return 0, fmt.Errorf("no Pss of process %d: %q", pid, content)
		}
		total += float64(kib) * 1024 / 1e6
	}
	return total, nil
}

// conmon is the memory of the program that stays with a container of podman's.
func (s *bundles) conmon() (size float64, err error) {
	b := s.bench
	id := fmt.Sprintf("agentops-bench-%d-%d", os.Getpid(), s.last.Add(1))
	dir := filepath.Join(b.folder, id)
	if err := s.writeBundle(dir, "pause"); err != nil { // conmon leaves files in it
		return 0, err
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		return 0, err
	}
	// It goes into the background when the container is made.
	_, err = b.output(b.command("conmon", "--api-version", "1", "--cid", id, "--cuuid", id, "--name", id, "--runtime", runc, "--runtime-arg", "--root="+s.runcRoot(),
		"--bundle", dir, "--container-pidfile", filepath.Join(dir, "container"), "--conmon-pidfile", filepath.Join(dir, "conmon"),
		"--log-path", "k8s-file:"+filepath.Join(dir, "log"), "--exit-dir", dir, "--socket-dir-path", dir, "--stdin"))
	if err != nil {
		return 0, err
	}
	pid := 0
	defer func() {
		last := b.uninterrupted()
		_, deleted := last.output(last.command("runc", "--root", s.runcRoot(), "delete", "--force", id))
		err = errors.Join(err, deleted, awaitEnd(pid))
	}()
	if pid, err = awaitNumber(filepath.Join(dir, "conmon")); err != nil {
		return 0, err
	}
	if _, err = awaitNumber(filepath.Join(dir, "container")); err != nil {
		return 0, err
	}
	if _, err := b.output(b.command("runc", "--root", s.runcRoot(), "start", id)); err != nil {
		return 0, err
	}
	time.Sleep(settled)
	return pss(pid)
}

const awaited = 10 * time.Second

// awaitNumber returns what is in a file once there is something.
func awaitNumber(path string) (int, error) {
	for deadline := time.Now().Add(awaited); ; time.Sleep(5 * time.Millisecond) {
		content, _ := os.ReadFile(path)
		n, err := strconv.Atoi(strings.TrimSpace(string(content)))
		if err == nil {
			return n, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("%s holds no number: %w", filepath.Base(path), err)
		}
	}
}

// awaitEnd returns when a process that is no child of this one is gone; 0 is none.
func awaitEnd(pid int) error {
	for deadline := time.Now().Add(awaited); pid != 0 && unix.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d does not end", pid)
		}
	}
	return nil
}
