package main

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// stream measures one long answer over TLS, opened and not.
func (b *bench) stream() (*Results, error) {
	nginx, err := b.nginxProxy()
	if err != nil {
		return nil, err
	}
	onHost := func(address string) func() *exec.Cmd {
		return func() *exec.Cmd { return b.command("curl", curlArgs("https://"+address+"/stream")...) }
	}
	inRun := func(flags ...string) func() *exec.Cmd {
		return func() *exec.Cmd {
			return b.inRun(flags, append([]string{"curl"}, curlArgs("https://"+originName+"/stream")...)...)
		}
	}
	series, err := alternate(b.rounds(7),
		b.curl("agent", inRun()),
		b.curl("nginx", onHost(nginx.address)),
		b.curl("agent", inRun("--passthrough", originName)),
		b.curl("direct", onHost(b.origin.address)))
	if err != nil {
		return nil, err
	}
	return &Results{Figures: []Figure{
		{Name: "one HTTPS stream of " + b.origin.sizeText(), Unit: "MB/s", Ours: series[0][0], Other: &series[1][0], Target: ratioOfAtLeast(0.8)},
		{Name: "one passthrough stream of " + b.origin.sizeText(), Unit: "MB/s", Ours: series[2][0], Other: &series[3][0], Target: ratioOfAtLeast(0.85)},
	}}, nil
}

func curlArgs(url string) []string {
	return []string{"--silent", "--show-error", "--fail", "--insecure", "--http1.1", "--output", "/dev/null",
		"--write-out", "%{size_download} %{speed_download}", url}
}

// curl is a contender whose value is the speed of a download, all of it.
func (b *bench) curl(name string, command func() *exec.Cmd) contender {
	return single(name, func() (float64, error) {
		out, err := b.output(command())
		if err != nil {
			return 0, err
		}
		size, speed, _ := strings.Cut(out, " ")
		if size != strconv.FormatInt(b.origin.size, 10) {
			return 0, fmt.Errorf("curl got %s bytes of %d", size, b.origin.size)
		}
		v, err := strconv.ParseFloat(speed, 64)
		return v / 1e6, err
	})
}

func (o *origin) sizeText() string {
	if o.size < 1_000_000_000 {
		return fmt.Sprintf("%d MB", o.size/1_000_000)
	}
	return fmt.Sprintf("%d GB", o.size/1_000_000_000)
}

// opaque measures what speaks no protocol that is known.
func (b *bench) opaque() (*Results, error) {
	size := strconv.FormatInt(b.origin.size, 10)
	streams, err := alternate(b.rounds(7),
		b.clientContender("agent", true, "stream", "stream.test:7000", size),
		b.clientContender("direct", false, "stream", b.origin.stream, size))
	if err != nil {
		return nil, err
	}
	seconds := strconv.Itoa(b.seconds(3))
	connections, err := alternate(b.rounds(7),
		b.clientContender("agent", true, "connect", "opaque.test:7000", seconds),
		b.clientContender("direct", false, "connect", b.origin.opaque, seconds))
	if err != nil {
		return nil, err
	}
	return &Results{Figures: []Figure{
		{Name: "one opaque stream of " + b.origin.sizeText(), Unit: "MB/s", Ours: streams[0][0], Other: &streams[1][0], Target: ratioOfAtLeast(0.85)},
		{Name: "new opaque connections", Unit: "per second", Ours: connections[0][0], Other: &connections[1][0], Target: ratioOfAtLeast(0.5)},
	}}, nil
}

// clientContender has the values that one of this program's clients prints.
func (b *bench) clientContender(name string, inRun bool, args ...string) contender {
	return contender{name, func() ([]float64, error) {
		out, err := b.output(b.client(inRun, args...))
		if err != nil {
			return nil, err
		}
		return readNumbers(out)
	}}
}

func readNumbers(out string) ([]float64, error) {
	var values []float64
	for _, word := range strings.Fields(out) {
		v, err := strconv.ParseFloat(word, 64)
		if err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	if len(values) == 0 {
		return nil, fmt.Errorf("no values in %q", out)
	}
	return values, nil
}

// latency measures single requests, one after the other, on one connection.
func (b *bench) latency() (*Results, error) {
	requests := "10000"
	if b.quick {
		requests = "2000"
	}
	series, err := alternate(b.rounds(9),
		b.clientContender("agent", true, "latency", originName+":443", requests),
		b.clientContender("direct", false, "latency", b.origin.address, requests))
	if err != nil {
		return nil, err
	}
	return &Results{Figures: []Figure{
		{Name: "one warm HTTPS request, p50", Unit: "µs", Ours: series[0][0], Other: &series[1][0], Target: addedOfAtMost(150)},
		{Name: "one warm HTTPS request, p99", Unit: "µs", Ours: series[0][1], Other: &series[1][1], Target: addedOfAtMost(1000)},
	}}, nil
}
