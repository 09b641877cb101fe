package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// connections measures requests and memory by the number of connections.
func (b *bench) connections() (*Results, error) {
	if b.quick {
		return &Results{}, nil
	}
	nginx, err := b.nginxProxy()
	if err != nil {
		return nil, err
	}
	const x = "connections"
	rate := Curve{Name: "HTTPS 1 KiB, keep-alive: requests/s by connections", File: "requests-by-connections", X: x, Unit: "requests/s", Lines: []Line{{Name: "agent"}, {Name: "nginx"}}}
	memory := Curve{Name: "HTTPS 1 KiB, keep-alive: memory of the proxy (PSS, its peak) by connections", File: "memory-by-connections", X: x, Unit: "MB", Lines: []Line{{Name: "agent"}, {Name: "nginx"}}}
	for _, n := range []int{1, 10, 100, 1000} {
		seconds := 3 + n/50 // most of it after the handshakes, which wrk counts as well
		loaded := func(name, address string, processes func(*exec.Cmd) ([]int, error)) contender {
			return contender{name, func() ([]float64, error) { return b.loaded(b.wrkCommand(address, n, seconds), processes) }}
		}
		series, err := alternate(3,
			loaded("agent", "", func(cmd *exec.Cmd) ([]int, error) { return []int{cmd.Process.Pid}, nil }),
			loaded("nginx", nginx.address, func(*exec.Cmd) ([]int, error) { return nginx.processes() }))
		if err != nil {
			return nil, fmt.Errorf("%d connections: %w", n, err)
		}
		for i := range series {
			for k, c := range []*Curve{&rate, &memory} {
				c.Lines[i].X, c.Lines[i].Y = append(c.Lines[i].X, float64(n)), append(c.Lines[i].Y, series[i][k].Median)
			}
		}
	}
	return &Results{Curves: []Curve{rate, memory}}, nil
}

// loaded runs wrk and returns requests per second and the most that the processes
// held of memory meanwhile, in MB.
func (b *bench) loaded(wrk *exec.Cmd, processes func(*exec.Cmd) ([]int, error)) ([]float64, error) {
	var stdout, stderr bytes.Buffer
	wrk.Stdout, wrk.Stderr = &stdout, &stderr
	if err := wrk.Start(); err != nil {
		return nil, err
	}
	exited := make(chan error, 1)
	go func() { exited <- wrk.Wait() }()
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	peak := 0.0
	for {
		select {
		case <-ticker.C:
			pids, err := processes(wrk)
			if err == nil {
				var size float64
				size, err = pss(pids...)
				peak = max(peak, size)
			}
			if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) { // it ends
				return nil, errors.Join(err, <-exited)
			}
		case err := <-exited:
			if err != nil || peak == 0 {
				return nil, fmt.Errorf("%s: %w, with a peak of %v MB\n%s%s", strings.Join(wrk.Args, " "), err, peak, stdout.String(), stderr.String())
			}
			rate, err := readWrk(stdout.String())
			return []float64{rate, peak}, err
		}
	}
}
