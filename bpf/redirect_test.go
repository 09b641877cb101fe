package bpf_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"agentops/bpf"
	"agentops/netns"

	"golang.org/x/sys/unix"
)

// relayed are the ports at which datagrams are relayed in tests.
var relayed = []bpf.PortRange{{First: 53, Last: 53}, {First: 4460, Last: 4461}, {First: 65535, Last: 65535}}

// boundary is a namespace with the sockets that a redirect gives traffic to.
type boundary struct {
	*netns.Namespace
	tcp4, tcp6 *net.TCPListener
	dns4, dns6 *net.UDPConn
	udp4, udp6 *netns.Datagrams
	redirect   *bpf.Redirect
}

func newBoundary(t *testing.T) *boundary {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	b := &boundary{Namespace: ns}
	if b.tcp4, err = ns.Listen("tcp4", netip.AddrPortFrom(netns.Host4, 0)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.tcp4.Close() })
	if b.tcp6, err = ns.Listen("tcp6", netip.AddrPortFrom(netns.Host6, 0)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.tcp6.Close() })
	if b.dns4, err = ns.ListenPacket("udp4", netip.AddrPortFrom(netns.Host4, 53)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.dns4.Close() })
	if b.dns6, err = ns.ListenPacket("udp6", netip.AddrPortFrom(netns.Host6, 53)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.dns6.Close() })
	if b.udp4, err = ns.ListenDatagrams(netns.Host4); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.udp4.Close() })
	if b.udp6, err = ns.ListenDatagrams(netns.Host6); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.udp6.Close() })
	b.redirect, err = bpf.AttachRedirect(bpf.RedirectOptions{
		NetNS: ns.File(), Own4: netns.Own4, Own6: netns.Own6,
		TCP4: b.tcp4, TCP6: b.tcp6, DNS4: b.dns4, DNS6: b.dns6, UDP4: b.udp4, UDP6: b.udp6,
		Relayed: relayed,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.redirect.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// dial connects from inside; the address is literal, so no goroutine of the
// resolver gets in between.
func (b *boundary) dial(t *testing.T, network, addr string) (net.Conn, error) {
	t.Helper()
	var conn net.Conn
	err := b.Do(func() (err error) {
		conn, err = net.Dial(network, addr)
		return err
	})
	if err == nil {
		t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

func TestEveryConnectionReachesTheListener(t *testing.T) {
	b := newBoundary(t)
	cases := []struct {
		network, addr string
		listener      *net.TCPListener
	}{
		{"tcp4", "203.0.113.7:443", b.tcp4},
		{"tcp4", "10.1.2.3:1", b.tcp4},
		{"tcp4", "169.254.169.254:80", b.tcp4},
		{"tcp4", "198.19.255.253:65535", b.tcp4},
		{"tcp4", "255.255.255.255:25", b.tcp4},
		{"tcp6", "[2001:db8::7]:443", b.tcp6},
		{"tcp6", "[fd00:ec2::254]:80", b.tcp6},
		{"tcp6", "[64:ff9b::a9fe:a9fe]:80", b.tcp6},
	}
	for _, c := range cases {
		conn, err := b.dial(t, c.network, c.addr)
		if c.addr == "255.255.255.255:25" {
			if err == nil {
				t.Errorf("TCP to the broadcast address was connected")
			}
			continue
		}
		if err != nil {
			t.Errorf("dial %s: %v", c.addr, err)
			continue
		}
		accepted, err := c.listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if got := accepted.LocalAddr().String(); got != c.addr {
			t.Errorf("connection to %s arrived as one to %s", c.addr, got)
		}
		if got, want := accepted.RemoteAddr().String(), conn.LocalAddr().String(); got != want {
			t.Errorf("connection from %s arrived as one from %s", want, got)
		}
		accepted.Close()
	}
}

func TestLoopbackAndOwnAddressAreTheRunsOwn(t *testing.T) {
	b := newBoundary(t)
	for _, addr := range []string{"127.0.0.1:7", "127.9.8.7:7", "[::1]:7", netns.Own4.String() + ":7", "[" + netns.Own6.String() + "]:7"} {
		if _, err := b.dial(t, "tcp", addr); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("dial %s, where nothing listens: %v, want connection refused", addr, err)
		}
	}
}

// A listener that the run opens at an address, or at every address, must not get
// what is for the proxy.
func TestTheRunCannotTakeAPort(t *testing.T) {
	b := newBoundary(t)
	thief, err := b.Listen("tcp4", netip.MustParseAddrPort("0.0.0.0:443"))
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	if _, err := b.dial(t, "tcp4", "203.0.113.7:443"); err != nil {
		t.Fatal(err)
	}
	accepted, err := b.tcp4.Accept()
	if err != nil {
		t.Fatal(err)
	}
	accepted.Close()
}

// ask sends a datagram from a socket of its own.
func (b *boundary) ask(t *testing.T, network, addr string) net.Conn {
	t.Helper()
	client, err := b.dial(t, network, addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	return client
}

func TestDNSIsAnsweredFromTheAddressAsked(t *testing.T) {
	b := newBoundary(t)
	for _, c := range []struct {
		network, addr string
		conn          *net.UDPConn
	}{
		{"udp4", "8.8.8.8:53", b.dns4},
		{"udp6", "[2001:4860:4860::8888]:53", b.dns6},
	} {
		b.ask(t, c.network, c.addr)
		buf := make([]byte, 16)
		n, from, err := c.conn.ReadFromUDPAddrPort(buf)
		if err != nil || string(buf[:n]) != "question" {
			t.Fatalf("resolver read %q, %v", buf[:n], err)
		}
		// Source addresses by control message are the resolver's part; here
		// it is enough that the question came.
		if from.Port() == 0 {
			t.Errorf("question came from %s", from)
		}
	}
}

func TestOtherDatagramsAreRefusedAndReported(t *testing.T) {
	b := newBoundary(t)
	want := map[string]string{} // source to destination
	for _, c := range []struct{ network, addr string }{
		{"udp4", "203.0.113.7:443"},
		{"udp4", "198.51.100.9:123"},
		{"udp6", "[2001:db8::7]:443"},
	} {
		conn := b.ask(t, c.network, c.addr)
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("read after a datagram to %s: %v, want connection refused", c.addr, err)
		}
		want[conn.LocalAddr().String()] = conn.RemoteAddr().String()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // what is in the buffer comes all the same
	seen := 0
	err := b.redirect.Refusals(ctx, nil, func(r bpf.Refusal) error {
		seen++
		if r.Protocol != "udp" || want[r.Source.String()] != r.Destination.String() {
			t.Errorf("refusal %+v, sent %v", r, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	counts, err := b.redirect.Counts()
	if err != nil {
		t.Fatal(err)
	}
	if seen != len(want) || counts.Refused != uint64(len(want)) || counts.Lost != 0 {
		t.Errorf("%d refusals reported, counts %+v, want %d", seen, counts, len(want))
	}
}

func TestDatagramsToRelayedPortsReachTheRelays(t *testing.T) {
	b := newBoundary(t)
	for _, c := range []struct {
		network, addr string
		conn          *netns.Datagrams
	}{
		{"udp4", "203.0.113.7:4460", b.udp4},
		{"udp4", "255.255.255.254:65535", b.udp4},
		{"udp6", "[2001:db8::7]:4461", b.udp6},
		{"udp6", "[fe80::7%lo]:4461", b.udp6},
	} {
		client := b.ask(t, c.network, c.addr)
		buf := make([]byte, 16)
		n, source, destination, err := c.conn.Receive(buf)
		if err != nil || string(buf[:n]) != "question" || source.String() != client.LocalAddr().String() || destination.String() != strings.Replace(c.addr, "%lo", "", 1) {
			t.Fatalf("%s to %s has arrived as %q from %s to %s, %v", client.LocalAddr(), c.addr, buf[:n], source, destination, err)
		}
		if err := c.conn.Answer([]byte("answer"), source, destination); err != nil {
			t.Fatal(err)
		}
		if n, err := client.Read(buf); err != nil || string(buf[:n]) != "answer" {
			t.Errorf("%s has answered %q, %v", c.addr, buf[:n], err)
		}
		if err := c.conn.Refuse(source, destination); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Read(buf); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v, want connection refused", c.addr, err)
		}
	}
	for _, port := range []string{"4459", "4462", "65534", "443"} {
		client, err := b.dial(t, "udp4", "203.0.113.7:"+port)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("port %s: %v, want connection refused", port, err)
		}
	}
}

func TestClosedListenerFailsClosed(t *testing.T) {
	b := newBoundary(t)
	thief, err := b.Listen("tcp4", netip.MustParseAddrPort("0.0.0.0:443"))
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	b.tcp4.Close()
	if _, err := b.dial(t, "tcp4", "203.0.113.7:443"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial with the listener closed: %v, want connection refused", err)
	}
}
