package main

import (
	"cmp"
	"strings"
	"testing"
	"time"

	"agentops/mitm"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"": 0, "1": 1, "4096": 4096, "32k": 32 << 10, "512m": 512 << 20, "2G": 2 << 30, "1t": 1 << 40} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"0", "-1", "m", "1mm", "1mb", "1.5g", " 1", "1 m", "0x10", "9223372036854775807k", "10000000000t", "1e3"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func TestNetworkLimits(t *testing.T) {
	for name, c := range map[string]struct {
		file, host string
		want       mitm.Limits // 0: as usual
		err        string
	}{
		"none":              {},
		"all":               {file: "max_flows: 7\nmax_header: 64k\nhandshake_timeout: 1s\nheader_timeout: 1500ms\nidle_timeout: 1h\ndatagram_timeout: 2s", want: mitm.Limits{Flows: 7, HeaderBytes: 64 << 10, HandshakeTimeout: time.Second, HeaderTimeout: 1500 * time.Millisecond, IdleTimeout: time.Hour, DatagramTimeout: 2 * time.Second}},
		"least":             {file: "max_flows: 1\nmax_header: 1k\nidle_timeout: 1ms", want: mitm.Limits{Flows: 1, HeaderBytes: 1 << 10, IdleTimeout: time.Millisecond}},
		"most":              {file: "max_flows: 100000\nmax_header: 16m\nidle_timeout: 24h", want: mitm.Limits{Flows: 100_000, HeaderBytes: 16 << 20, IdleTimeout: 24 * time.Hour}},
		"quoted":            {file: "max_flows: '7'", want: mitm.Limits{Flows: 7}},
		"no flows":          {file: "max_flows: 0", err: `agent.yaml:2: network.max_flows: "0" is no number from 1 to 100000`},
		"fewer":             {file: "max_flows: -1", err: `agent.yaml:2: network.max_flows: "-1" is no number`},
		"too many":          {file: "max_flows: 100001", err: `agent.yaml:2: network.max_flows: "100001" is no number`},
		"no number":         {file: "max_flows: [7]", err: "agent.yaml:2: network.max_flows: "},
		"nothing":           {file: "max_flows:"},
		"no size":           {file: "max_header: big", err: `agent.yaml:2: network.max_header: "big" is no size from 1k to 16m`},
		"a small head":      {file: "max_header: 1023", err: `agent.yaml:2: network.max_header: "1023" is no size`},
		"a large head":      {file: "max_header: 17m", err: `agent.yaml:2: network.max_header: "17m" is no size`},
		"no unit":           {file: "handshake_timeout: 10", err: `agent.yaml:2: network.handshake_timeout: "10" is no time from 1ms to 24h, such as 30s`},
		"no time":           {file: "handshake_timeout: 0s", err: `agent.yaml:2: network.handshake_timeout: "0s" is no time`},
		"never":             {file: "max_flows: 7\nidle_timeout: 25h", err: `agent.yaml:3: network.idle_timeout: "25h" is no time`},
		"the host's":        {host: "max_flows: 100\nmax_header: 64k\nhandshake_timeout: 5s\nheader_timeout: 6s\nidle_timeout: 1m\ndatagram_timeout: 1s", want: mitm.Limits{Flows: 100, HeaderBytes: 64 << 10, HandshakeTimeout: 5 * time.Second, HeaderTimeout: 6 * time.Second, IdleTimeout: time.Minute, DatagramTimeout: time.Second}},
		"the host's, wider": {host: "max_flows: 100000\nidle_timeout: 1h"},
		"as the host":       {file: "max_flows: 100", host: "max_flows: 100", want: mitm.Limits{Flows: 100}},
		"below the host":    {file: "max_flows: 20000", host: "max_flows: 30000", want: mitm.Limits{Flows: 20_000}},
		"beyond the host":   {file: "max_flows: 101", host: "max_flows: 100", err: "network.max_flows 101 is refused by /etc/agentops/policy.yaml, which allows at most 100"},
		"a head beyond":     {file: "max_header: 65k", host: "max_header: 64k", err: "network.max_header 66560 is refused by /etc/agentops/policy.yaml, which allows at most 65536"},
		"longer than":       {file: "idle_timeout: 61s", host: "idle_timeout: 1m", err: "network.idle_timeout 1m1s is refused by /etc/agentops/policy.yaml, which allows at most 1m0s"},
	} {
		t.Run(name, func(t *testing.T) {
			text := func(lines string) []byte {
				return []byte("network:\n  " + strings.ReplaceAll(lines, "\n", "\n  ") + "\n")
			}
			var file settings
			var host *hostPolicy
			var err error
			if c.host != "" {
				if host, err = parseHostPolicy("/etc/agentops/policy.yaml", text(c.host)); err != nil {
					t.Fatal(err)
				}
			}
			if c.file != "" {
				file, err = parseSettings("agent.yaml", text(c.file))
			}
			spec := &runSpec{}
			if err == nil {
				err = spec.resolveNetwork(merge(file, settings{}).Network, host)
			}
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%v, want an error with %q", err, c.err)
				}
				return
			}
			usual := mitm.DefaultLimits()
			want := mitm.Limits{
				Flows:            cmp.Or(c.want.Flows, usual.Flows),
				HeaderBytes:      cmp.Or(c.want.HeaderBytes, usual.HeaderBytes),
				HandshakeTimeout: cmp.Or(c.want.HandshakeTimeout, usual.HandshakeTimeout),
				HeaderTimeout:    cmp.Or(c.want.HeaderTimeout, usual.HeaderTimeout),
				IdleTimeout:      cmp.Or(c.want.IdleTimeout, usual.IdleTimeout),
				DatagramTimeout:  cmp.Or(c.want.DatagramTimeout, usual.DatagramTimeout),
			}
			if err != nil || spec.network != want {
				t.Errorf("%+v, %v; want %+v", spec.network, err, want)
			}
		})
	}
}
