package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Programs of a tree that holds nothing else.
const (
	trueSource  = "int main(void) { return 0; }\n"
	pauseSource = `#include <unistd.h>
int main(void) { char c; return write(1, "ready\n", 6) != 6 || read(0, &c, 1) != 0; }
`
)

// bundles are a tree, and runc bundles that run a program in it.
type bundles struct {
	bench  *bench
	rootfs string
	last   atomic.Int64 // number of the last container
}

func (b *bench) newBundles() (*bundles, error) {
	s := &bundles{bench: b, rootfs: filepath.Join(b.folder, "rootfs")}
	if _, err := os.Stat(s.rootfs); err == nil {
		return s, nil
	}
	for _, dir := range []string{"", "proc", "dev", "sys"} {
		if err := os.Mkdir(filepath.Join(s.rootfs, dir), 0o755); err != nil {
			return nil, err
		}
	}
	for name, source := range map[string]string{"true": trueSource, "pause": pauseSource} {
		gcc := b.command("gcc", "-static", "-x", "c", "-o", filepath.Join(s.rootfs, name), "-")
		gcc.Stdin = strings.NewReader(source)
		if _, err := b.output(gcc); err != nil {
			return nil, err
		}
		if err := s.writeBundle(s.bundle(name), name); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// writeBundle makes runc's own example, in a new folder, run a program of the tree.
func (s *bundles) writeBundle(dir, program string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if _, err := s.bench.output(s.bench.command("runc", "spec", "--bundle", dir)); err != nil {
		return err
	}
	path := filepath.Join(dir, "config.json")
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(content, &spec); err != nil {
		return err
	}
	process, root := spec["process"].(map[string]any), spec["root"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"/" + program}
	root["path"] = s.rootfs
	if content, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o600)
}

func (s *bundles) bundle(program string) string {
	return filepath.Join(s.bench.folder, "bundle-"+program)
}

// agent runs a program of the tree as a run.
func (s *bundles) agent(program string) *exec.Cmd {
	return s.bench.command(s.bench.agent, "run", "--quiet", "--rootfs", s.rootfs, "--", "/"+program)
}

// runc runs it as a container.
func (s *bundles) runc(program string) *exec.Cmd {
	id := fmt.Sprintf("agentops-bench-%d-%d", os.Getpid(), s.last.Add(1))
	return s.bench.command("runc", "--root", s.runcRoot(), "run", "--bundle", s.bundle(program), id)
}

func (s *bundles) runcRoot() string { return filepath.Join(s.bench.folder, "runc") }

// once is the time from start to exit, in milliseconds.
func (s *bundles) once(command func(string) *exec.Cmd) (float64, error) {
	began := time.Now()
	_, err := s.bench.output(command("true"))
	return milliseconds(time.Since(began)), err
}

// many is the time until n that were started at once have ended.
func (s *bundles) many(n int, command func(string) *exec.Cmd) (float64, error) {
	errs := make([]error, n)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range n {
		wg.Go(func() { _, errs[i] = s.bench.output(command("true")) })
	}
	wg.Wait()
	return milliseconds(time.Since(began)), errors.Join(errs...)
}

// start measures a run of a program that does nothing.
func (b *bench) start() (*Results, error) {
	s, err := b.newBundles()
	if err != nil {
		return nil, err
	}
	one := []contender{
		single("agent run", func() (float64, error) { return s.once(s.agent) }),
		single("runc run", func() (float64, error) { return s.once(s.runc) }),
	}
	if _, err := alternate(2, one...); err != nil { // what is made once a boot
		return nil, err
	}
	alone, err := alternate(b.rounds(20)*2, one...)
	if err != nil {
		return nil, err
	}
	crowd, err := alternate(b.rounds(7),
		single("agent run", func() (float64, error) { return s.many(20, s.agent) }),
		single("runc run", func() (float64, error) { return s.many(20, s.runc) }))
	if err != nil {
		return nil, err
	}
	return &Results{Figures: []Figure{
		{Name: "start to exit of true", Unit: "ms", Ours: alone[0][0], Other: &alone[1][0], Target: ratioOfAtMost(1.5)},
		{Name: "the same, 20 at once", Unit: "ms", Ours: crowd[0][0], Other: &crowd[1][0], Target: ratioOfAtMost(1.5)},
	}}, nil
}

// runs measures a start among others that go on.
func (b *bench) runs() (*Results, error) {
	if b.quick {
		return &Results{}, nil
	}
	s, err := b.newBundles()
	if err != nil {
		return nil, err
	}
	lines := []Line{{Name: "agent run"}, {Name: "runc run"}}
	for _, n := range []int{1, 10, 100} {
		for i, command := range []func(string) *exec.Cmd{s.agent, s.runc} {
			spent, err := s.among(n, command)
			if err != nil {
				return nil, fmt.Errorf("%s among %d: %w", lines[i].Name, n, err)
			}
			lines[i].X, lines[i].Y = append(lines[i].X, float64(n)), append(lines[i].Y, spent)
		}
	}
	return &Results{Curves: []Curve{{
		Name: "start to exit of true, by how many others go on", File: "start-by-runs", X: "live runs, or containers", Unit: "ms", Lines: lines,
	}}}, nil
}

// among is the median of a start while n of its kind go on.
func (s *bundles) among(n int, command func(string) *exec.Cmd) (spent float64, err error) {
	for range n {
		l, err := goLive(command("pause"))
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, l.end()) }()
	}
	var values []float64
	for range 20 {
		v, err := s.once(command)
		if err != nil {
			return 0, err
		}
		values = append(values, v)
	}
	return newSeries("", values).Median, nil
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1e3 }
