package main

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"agentops/audit"
	"agentops/mitm"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// parseLimits reads limits as they are written. An empty one is 0; any other must
// be more.
func parseLimits(s limitSettings) (l audit.Limits, err error) {
	if l.Memory, err = parseSize(s.Memory); err != nil {
		return l, fmt.Errorf("limit of memory: %w", err)
	}
	if s.CPUs != "" {
		if l.CPUs, err = strconv.ParseFloat(s.CPUs, 64); err != nil || !(l.CPUs > 0) || l.CPUs > math.MaxInt16 {
			return l, fmt.Errorf("limit of cpus: %q is no number of processors, such as 0.5", s.CPUs)
		}
	}
	if l.PIDs, err = parseCount(s.PIDs); err != nil {
		return l, fmt.Errorf("limit of pids: %w", err)
	}
	files, err := parseCount(s.OpenFiles)
	if err != nil {
		return l, fmt.Errorf("limit of open files: %w", err)
	}
	l.OpenFiles = uint64(files)
	return l, nil
}

func parseCount(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%q is no number above 0", text)
	}
	return n, nil
}

// parseSize reads a number of bytes: digits, and k, m, g or t for powers of 1024.
func parseSize(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	digits := strings.TrimRight(text, "kKmMgGtT")
	shift := 0
	if unit := text[len(digits):]; unit != "" {
		shift = 10 * (1 + strings.Index("kmgt", strings.ToLower(unit)))
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || len(text)-len(digits) > 1 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is no size, such as 512m or 2g", text)
	}
	return n << shift, nil
}

// networkLimits are keys of network: in agent.yaml, and in the host's policy, which
// then says how much a run may ask for. What is 0 is not set.
type networkLimits struct {
	MaxFlows         count    `yaml:"max_flows"`         // open at once
	MaxHeader        size     `yaml:"max_header"`        // of a request
	HandshakeTimeout duration `yaml:"handshake_timeout"` // and to dial
	HeaderTimeout    duration `yaml:"header_timeout"`
	IdleTimeout      duration `yaml:"idle_timeout"`     // between two requests
	DatagramTimeout  duration `yaml:"datagram_timeout"` // between two of a flow
}

var networkLimitKeys = []string{"max_flows", "max_header", "handshake_timeout", "header_timeout", "idle_timeout", "datagram_timeout"}

// What can be asked for at all. A flow takes two descriptors of agent's.
const (
	maxFlows               = 100_000
	minHeader, maxHeader   = 1 << 10, 16 << 20
	minTimeout, maxTimeout = time.Millisecond, 24 * time.Hour
)

type (
	count    int
	size     int
	duration time.Duration
)

// String is the duration as it can be written.
func (d duration) String() string { return time.Duration(d).String() }

// UnmarshalYAML reads a number of flows.
func (c *count) UnmarshalYAML(node ast.Node) error {
	n, err := strconv.Atoi(node.GetToken().Value)
	if err != nil || n < 1 || n > maxFlows {
		return misfit(node, "number from 1 to %d", maxFlows)
	}
	*c = count(n)
	return nil
}

// UnmarshalYAML reads the size of a head.
func (s *size) UnmarshalYAML(node ast.Node) error {
	n, err := parseSize(node.GetToken().Value)
	if err != nil || n < minHeader || n > maxHeader {
		return misfit(node, "size from 1k to 16m, such as 64k")
	}
	*s = size(n)
	return nil
}

// UnmarshalYAML reads a time-out.
func (d *duration) UnmarshalYAML(node ast.Node) error {
	t, err := time.ParseDuration(node.GetToken().Value)
	if err != nil || t < minTimeout || t > maxTimeout {
		return misfit(node, "time from 1ms to 24h, such as 30s")
	}
	*d = duration(t)
	return nil
}

// misfit says of a value in a file what it is not.
func misfit(node ast.Node, format string, args ...any) error {
	token := node.GetToken()
	key := strings.TrimPrefix(node.GetPath(), "$.")
	return &yaml.SyntaxError{Message: fmt.Sprintf("%s: %q is no ", key, token.Value) + fmt.Sprintf(format, args...), Token: token}
}

// resolve makes the limits of a run: what it asks for, else the usual ones, and
// none beyond the host's.
func (n networkLimits) resolve(host *hostPolicy) (l mitm.Limits, err error) {
	var most networkLimits
	if host != nil {
		most = host.Network.Limits
	}
	usual := mitm.DefaultLimits()
	l.Flows = int(atMost(&err, host, "max_flows", n.MaxFlows, most.MaxFlows, count(usual.Flows)))
	l.HeaderBytes = int(atMost(&err, host, "max_header", n.MaxHeader, most.MaxHeader, size(usual.HeaderBytes)))
	timeout := func(key string, asked, most duration, usual time.Duration) time.Duration {
		return time.Duration(atMost(&err, host, key, asked, most, duration(usual)))
	}
	l.HandshakeTimeout = timeout("handshake_timeout", n.HandshakeTimeout, most.HandshakeTimeout, usual.HandshakeTimeout)
	l.HeaderTimeout = timeout("header_timeout", n.HeaderTimeout, most.HeaderTimeout, usual.HeaderTimeout)
	l.IdleTimeout = timeout("idle_timeout", n.IdleTimeout, most.IdleTimeout, usual.IdleTimeout)
	l.DatagramTimeout = timeout("datagram_timeout", n.DatagramTimeout, most.DatagramTimeout, usual.DatagramTimeout)
	return l, err
}

// atMost is one limit. A run that asks for more than the host lets it have is
// refused; one that does not ask has what it can.
func atMost[T count | size | duration](err *error, host *hostPolicy, key string, asked, most, usual T) T {
	if most > 0 {
		usual = min(usual, most)
		if asked > most && *err == nil {
			*err = host.refuse("network."+key, fmt.Sprintf("network.%s %v", key, asked), []string{fmt.Sprintf("at most %v", most)})
		}
	}
	return cmp.Or(asked, usual)
}

// recordLimits is how a run's limits stand in its journal.
func recordLimits(l mitm.Limits) audit.NetworkLimits {
	return audit.NetworkLimits{
		MaxFlows:           l.Flows,
		MaxHeader:          l.HeaderBytes,
		HandshakeTimeoutMS: l.HandshakeTimeout.Milliseconds(),
		HeaderTimeoutMS:    l.HeaderTimeout.Milliseconds(),
		IdleTimeoutMS:      l.IdleTimeout.Milliseconds(),
		DatagramTimeoutMS:  l.DatagramTimeout.Milliseconds(),
	}
}
