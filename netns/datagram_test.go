package netns_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"

	"agentops/netns"

	"golang.org/x/sys/unix"
)

// datagrams is a pair of them and of clients that are connected to anywhere.
type datagrams struct {
	*netns.Datagrams
	client *net.UDPConn
}

func newDatagrams(t *testing.T) map[string]datagrams {
	t.Helper()
	ns := newNamespace(t)
	pairs := make(map[string]datagrams)
	for network, c := range map[string]struct {
		any netip.Addr
		to  string
	}{
		"udp4": {netip.IPv4Unspecified(), "203.0.113.7"},
		"udp6": {netip.IPv6Unspecified(), "2001:db8::7"},
	} {
		d, err := ns.ListenDatagrams(c.any)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		to := netip.AddrPortFrom(netip.MustParseAddr(c.to), d.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		var client net.Conn
		if err := ns.Do(func() (err error) {
			client, err = net.Dial(network, to.String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		pairs[network] = datagrams{d, client.(*net.UDPConn)}
	}
	return pairs
}

func endpoint(addr net.Addr) netip.AddrPort { return addr.(*net.UDPAddr).AddrPort() }

// The answer comes from where the client has sent to, whatever the size; the
// socket's own port is another than the client knows.
func TestDatagramsAreAnsweredFromWhereTheyWereSent(t *testing.T) {
	for network, d := range newDatagrams(t) {
		most := 65507
		if network == "udp6" {
			most = 65527
		}
		for _, size := range []int{0, 48, 1500, most} {
			sent := bytes.Repeat([]byte{7}, size)
			if _, err := d.client.Write(sent); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 1<<16)
			n, source, destination, err := d.Receive(buf)
			if err != nil {
				t.Fatal(err)
			}
			if n != size || source != endpoint(d.client.LocalAddr()) || destination != endpoint(d.client.RemoteAddr()) {
				t.Errorf("%s: %d bytes from %s to %s have arrived as %d from %s to %s", network, size,
					d.client.LocalAddr(), d.client.RemoteAddr(), n, source, destination)
			}
			sent = append(sent[:size], make([]byte, min(1, most-size))...)
			if err := d.Answer(sent, source, destination); err != nil {
				t.Fatal(err)
			}
			if n, err := d.client.Read(buf); err != nil || !bytes.Equal(buf[:n], sent) {
				t.Errorf("%s: the answer of %d bytes has arrived as %d, %v", network, len(sent), n, err)
			}
		}
	}
}

func TestRefusalsReachTheSender(t *testing.T) {
	for network, d := range newDatagrams(t) {
		if err := d.Refuse(endpoint(d.client.LocalAddr()), endpoint(d.client.RemoteAddr())); err != nil {
			t.Fatal(err)
		}
		if _, err := d.client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v, want connection refused", network, err)
		}
	}
}

// A program may have the port open to which others send.
func TestAnswersNeedNoPort(t *testing.T) {
	ns := newNamespace(t)
	d, err := ns.ListenDatagrams(netns.Host4)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	server, err := ns.ListenPacket("udp4", netip.MustParseAddrPort("0.0.0.0:123"))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := d.Answer([]byte("time"), netip.AddrPortFrom(netns.Own4, 123), netip.MustParseAddrPort("203.0.113.7:123")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, from, err := server.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "time" || from != netip.MustParseAddrPort("203.0.113.7:123") {
		t.Errorf("read %q from %s, %v", buf[:n], from, err)
	}
}
