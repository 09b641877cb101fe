package audit_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"agentops/audit"
)

// What the kernel has counted must be what the journal tells, to the last one.
func TestKernelAndJournalMustAgree(t *testing.T) {
	right := audit.Counts{Flows: 2, Datagrams: 6, Relayed: 13, KernelRefused: 8}
	for name, c := range map[string]struct {
		kernel audit.Counts
		want   string // in the report; empty: it holds
	}{
		"as the journal":     {right, ""},
		"an unseen flow":     {audit.Counts{Flows: 3, Datagrams: 6, Relayed: 13, KernelRefused: 8}, "the kernel has counted 3 connections to the proxy, the journal tells of 2"},
		"an invented flow":   {audit.Counts{Flows: 1, Datagrams: 6, Relayed: 13, KernelRefused: 8}, "the kernel has counted 1 connections to the proxy, the journal tells of 2"},
		"an unseen query":    {audit.Counts{Flows: 2, Datagrams: 7, Relayed: 13, KernelRefused: 8}, "the kernel has counted 7 datagrams to the resolver, the journal tells of 6"},
		"an unseen datagram": {audit.Counts{Flows: 2, Datagrams: 6, Relayed: 14, KernelRefused: 8}, "the kernel has counted 14 datagrams to the relays, the journal tells of 13"},
		"an unseen refusal":  {audit.Counts{Flows: 2, Datagrams: 6, Relayed: 13, KernelRefused: 9}, "the kernel has counted 9 refusals of its own, the journal tells of 8"},
	} {
		path := filepath.Join(t.TempDir(), "journal.jsonl")
		j, err := audit.Create(path, "run-1")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range []audit.Event{
			audit.RunStart{},
			audit.FlowOpen{Flow: 1},
			audit.FlowOpen{Flow: 2},
			audit.DNSQuery{Transport: "udp"},
			audit.DNSQuery{Transport: "tcp", Flow: 2}, // came over a connection
			audit.Refused{Protocol: "dns"},            // a datagram that is no question
			audit.Refused{Protocol: "dns", Flow: 2},   // the like over a connection
			audit.FlowOpen{Flow: 3, Protocol: "udp"},
			audit.FlowClose{Flow: 3, DatagramsSent: 9, DatagramsReceived: 8, Dropped: 1},
			audit.Refused{Flow: 3, Protocol: "udp", Reason: "address"},   // when it was to be dialled
			audit.Refused{Protocol: "udp", Reason: "not-allowed"},        // by the relays
			audit.Refused{Protocol: "udp", Reason: audit.ReasonProtocol}, // by the kernel
			audit.Refused{Protocol: "http", Flow: 1},                     // by the proxy
			audit.Refused{Protocol: "syscall"},                           // by the filter of system calls
			audit.Lost{What: audit.LostDatagrams, Count: 4},
			audit.Lost{What: audit.LostRelayed, Count: 3},
			audit.Lost{What: audit.LostRefusals, Count: 7},
		} {
			if err := j.Append(e); err != nil {
				t.Fatal(err)
			}
		}
		exit := &audit.RunExit{Kernel: c.kernel}
		key := newKey(t)
		seal, err := j.Seal(exit, key)
		if err != nil {
			t.Fatal(err)
		}
		if exit.Totals.Counts != right || exit.Totals.Refused != 14 || exit.Totals.Unknown != 11 {
			t.Errorf("%s: the journal has counted %+v", name, exit.Totals)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		report := verify(t, data, marshal(t, seal, key), keysOf(key))
		if got := strings.Join(report.Problems, "; "); got != c.want {
			t.Errorf("%s: problems are %q, want %q", name, got, c.want)
		}
		if report.Changed {
			t.Errorf("%s: the journal counts as changed since it was sealed", name)
		}
	}
}
