package mitm

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"agentops/mitm/policy"

	"github.com/miekg/dns"
)

// Every address here is one that must not be dialled, so a guard that failed
// would be seen by its verdict alone: nothing is connected to.
func TestGuard(t *testing.T) {
	refused := []string{
		"127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
		"100.64.0.1", "100.100.100.200", "169.254.169.254", "169.254.170.2", "168.63.129.16", "192.0.0.192",
		"224.0.0.1", "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1", "203.0.113.1",
		"::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "ff02::1", "fec0::1",
		"::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::ffff:0:127.0.0.1",
		"64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:1::1", "2001:db8::1",
	}
	guard := NewDialer(nil, &policy.Policy{}).guard(policy.TCP, "example.com")
	for _, text := range refused {
		addr := netip.MustParseAddr(text)
		err := guard("tcp", netip.AddrPortFrom(addr, 443).String(), nil)
		if _, ok := errors.AsType[*GuardError](err); !ok {
			t.Errorf("%s: %v, want it refused", text, err)
		}
	}
	for _, text := range []string{"1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::101:101", "2002:101:101::1"} {
		if err := guard("tcp", netip.AddrPortFrom(netip.MustParseAddr(text), 443).String(), nil); err != nil {
			t.Errorf("%s: %v, want it allowed", text, err)
		}
	}
}

func TestGuardKnowsTheHostsOwnAddresses(t *testing.T) {
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range own {
		addr, _ := netip.AddrFromSlice(a.(*net.IPNet).IP)
		if err := checkForeign(addr.Unmap()); err == nil {
			t.Errorf("%s is the host's own and is allowed", addr)
		}
	}
}

func TestGuardYieldsToARuleThatNamesTheAddress(t *testing.T) {
	rules, err := policy.ParseRules([]string{"10.1.2.3:5432", "*"})
	if err != nil {
		t.Fatal(err)
	}
	d := NewDialer(nil, &policy.Policy{Allow: rules})
	if err := d.guard(policy.TCP, "10.1.2.3")("tcp", "10.1.2.3:5432", nil); err != nil {
		t.Errorf("the address of the rule: %v", err)
	}
	if err := d.guard(policy.TCP, "10.1.2.3")("tcp", "10.1.2.3:5433", nil); err == nil {
		t.Error("another port than the rule's is allowed")
	}
	// A name that leads there is a rebinding.
	if err := d.guard(policy.TCP, "evil.example")("tcp", "10.1.2.3:5432", nil); err == nil {
		t.Error("a name that resolves to the address is allowed")
	}
}

// The whole path, with nothing pinned and a name server that rebinds: the
// listener must not be reached.
func TestDialRefusesLoopbackByNameAndByAddress(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	port := uint16(listener.Addr().(*net.TCPAddr).Port)
	d := NewDialer(nil, &policy.Policy{})
	d.resolver = rebinding(t)
	for _, host := range []string{"127.0.0.1", "evil.example"} {
		conn, err := d.Dial(t.Context(), host, port)
		if err == nil {
			conn.Close()
		}
		if _, ok := errors.AsType[*GuardError](err); !ok {
			t.Errorf("dial %s: %v, want it refused by the guard", host, err)
		}
	}
}

// rebinding is a resolver whose every name has the address 127.0.0.1. It asks a
// server of the test on loopback and no other.
func rebinding(t *testing.T) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	server := &dns.Server{PacketConn: conn, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) {
		reply := new(dns.Msg).SetReply(query)
		if q := query.Question[0]; q.Qtype == dns.TypeA {
			reply.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: q.Qclass}, A: net.IPv4(127, 0, 0, 1)}}
		}
		if err := w.WriteMsg(reply); err != nil {
			t.Error(err)
		}
	})}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.ActivateAndServe(); err != nil {
			t.Error(err)
		}
	})
	<-started
	t.Cleanup(func() {
		if err := server.Shutdown(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp4", conn.LocalAddr().String())
	}}
}

func TestPins(t *testing.T) {
	var pins []Pin
	for _, text := range []string{"*=127.0.0.1:1", "*.example.com=127.0.0.2", "*.a.example.com=127.0.0.3:3", "b.example.com=[::1]:4", "192.0.2.1=127.0.0.5", "twice.example=127.0.0.6", "twice.example=127.0.0.7"} {
		pin, err := ParsePin(text)
		if err != nil {
			t.Fatal(err)
		}
		pins = append(pins, pin)
	}
	d := NewDialer(pins, &policy.Policy{})
	for host, want := range map[string]string{
		"other.example":   "*=127.0.0.1:1",
		"example.com":     "*=127.0.0.1:1",
		"c.example.com":   "*.example.com=127.0.0.2",
		"c.a.example.com": "*.a.example.com=127.0.0.3:3",
		"b.example.com":   "b.example.com=[::1]:4",
		"192.0.2.1":       "192.0.2.1=127.0.0.5",
		"192.0.2.2":       "*=127.0.0.1:1",
		"twice.example":   "twice.example=127.0.0.7",
	} {
		if pin, ok := d.pin(host); !ok || pin.String() != want {
			t.Errorf("%s is pinned by %q, want %q", host, pin, want)
		}
		if err := d.Exists(t.Context(), host); err != nil {
			t.Errorf("%s is pinned, yet was looked up: %v", host, err)
		}
	}
	for text, want := range map[string]string{
		"example.com":             "NAME=IP",
		"example.com=":            "is not IP",
		"example.com=host":        "is not IP",
		"example.com=127.0.0.1:0": "is not IP",
		"=127.0.0.1":              "empty",
		"a.*.b=127.0.0.1":         "whole labels",
	} {
		if _, err := ParsePin(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %q", text, err, want)
		}
	}
}

func TestDialGoesWhereThePinSays(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	pin, err := ParsePin("*=" + listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := NewDialer([]Pin{pin}, &policy.Policy{}).Dial(t.Context(), "example.com", 443)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if conn.RemoteAddr().String() != listener.Addr().String() {
		t.Errorf("dialled %s, pinned to %s", conn.RemoteAddr(), listener.Addr())
	}
}
