package mitm

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"agentops/audit"
	"agentops/mitm/policy"
)

// letter is a datagram of a run, or for it.
type letter struct {
	source, destination netip.AddrPort
	payload             string
}

// mailbox is what a run's datagrams come from, without a namespace.
type mailbox struct {
	sent     chan letter
	answers  chan letter
	refused  chan letter // without a payload
	deadline chan struct{}
	once     sync.Once
}

func (m *mailbox) Receive(buf []byte) (int, netip.AddrPort, netip.AddrPort, error) {
	select {
	case l := <-m.sent:
		return copy(buf, l.payload), l.source, l.destination, nil
	case <-m.deadline:
		return 0, netip.AddrPort{}, netip.AddrPort{}, os.ErrDeadlineExceeded
	}
}

func (m *mailbox) Answer(payload []byte, source, destination netip.AddrPort) error {
	m.answers <- letter{source, destination, string(payload)}
	return nil
}

func (m *mailbox) Refuse(source, destination netip.AddrPort) error {
	m.refused <- letter{source: source, destination: destination}
	return nil
}

func (m *mailbox) SetReadDeadline(time.Time) error {
	m.once.Do(func() { close(m.deadline) })
	return nil
}

// datagramBench is a proxy that is given datagrams.
type datagramBench struct {
	*bench
	*mailbox
	end func() // as the end of a run does
}

func newDatagramBench(t *testing.T, c benchConfig) *datagramBench {
	t.Helper()
	b := &datagramBench{bench: newBench(t, c), mailbox: &mailbox{
		sent: make(chan letter), answers: make(chan letter, 100), refused: make(chan letter, 100), deadline: make(chan struct{}),
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.proxy.ServeDatagrams(ctx, b.mailbox) }()
	b.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ServeDatagrams: %v", err)
		}
	})
	t.Cleanup(b.end)
	return b
}

// send sends a datagram as a client with a port of its own.
func (b *datagramBench) send(port uint16, to, payload string) letter {
	l := letter{netip.AddrPortFrom(netip.MustParseAddr("198.19.255.254"), port), b.destination(to), payload}
	b.sent <- l
	return l
}

// upstreamUDP is a server on loopback that answers each datagram with itself.
func upstreamUDP(t *testing.T) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func echoUDP(t *testing.T) *net.UDPConn {
	t.Helper()
	conn := upstreamUDP(t)
	go func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err == nil {
				_, err = conn.WriteToUDPAddrPort(buf[:n], from)
			}
			if err != nil {
				return
			}
		}
	}()
	return conn
}

func TestDatagramsAreRelayedByRule(t *testing.T) {
	process := &audit.Process{PID: 7, Comm: "chronyd"}
	server := echoUDP(t)
	for _, mode := range []policy.Mode{policy.Strict, policy.Permissive} {
		b := newDatagramBench(t, benchConfig{
			policy: policy.Policy{Mode: mode, Allow: parsed(t, "udp:time.example:123")}, process: process,
			pins: []string{"*=" + server.LocalAddr().String()},
		})
		payloads := []string{"one", "", strings.Repeat("x", 65507), "two"}
		var bytes int64
		for _, payload := range payloads {
			bytes += int64(len(payload))
			for _, port := range []uint16{5000, 5001} {
				sent := b.send(port, "time.example:123", payload)
				if got := <-b.answers; got != sent {
					t.Errorf("%d bytes from %s to %s were answered by %d from %s to %s", len(payload), sent.source, sent.destination,
						len(got.payload), got.destination, got.source)
				}
			}
		}
		b.end()
		opened, closed := events[audit.FlowOpen](b.recorder), events[audit.FlowClose](b.recorder)
		if len(opened) != 2 || len(closed) != 2 {
			t.Fatalf("recorded %+v and %+v, want two flows", opened, closed)
		}
		for i, e := range opened {
			want := audit.FlowOpen{
				Flow: uint64(i + 1), Protocol: "udp", Source: netip.AddrPortFrom(netip.MustParseAddr("198.19.255.254"), uint16(5000+i)).String(),
				Destination: "198.18.0.1:123", Host: "time.example", Port: 123, Process: process,
			}
			if e != want {
				t.Errorf("recorded %+v, want %+v", e, want)
			}
		}
		for _, e := range closed {
			e.Flow, e.DurationMS = 0, 0
			n := uint64(len(payloads))
			want := audit.FlowClose{
				Upstream: server.LocalAddr().String(), BytesSent: bytes, BytesReceived: bytes, DatagramsSent: n, DatagramsReceived: n,
			}
			if e != want {
				t.Errorf("recorded %+v, want %+v", e, want)
			}
		}
		if b.proxy.Received() != 8 || b.proxy.Accepted() != 0 {
			t.Errorf("%d datagrams were received and %d connections accepted, want 8 and none", b.proxy.Received(), b.proxy.Accepted())
		}
	}
}

func TestOtherDatagramsAreRefused(t *testing.T) {
	process := &audit.Process{PID: 7, Comm: "quic"}
	for to, want := range map[string]audit.Refused{
		"time.example:124":    {Host: "time.example", Port: 124, Reason: "not-allowed"},
		"other.example:123":   {Host: "other.example", Port: 123, Reason: "not-allowed"},
		"web.example:443":     {Host: "web.example", Port: 443, Reason: "not-allowed"},
		"db.example:5432":     {Host: "db.example", Port: 5432, Reason: "not-allowed"},
		"192.0.2.1:123":       {Host: "192.0.2.1", Port: 123, Reason: "not-allowed"},
		"198.18.99.9:123":     {Host: "198.18.99.9", Port: 123, Reason: "address"}, // nobody's
		"x.some.example:4500": {Host: "x.some.example", Port: 4500, Reason: "denied", Rule: "x.some.example"},
		"[2001:db8::1]:123":   {Host: "2001:db8::1", Port: 123, Reason: "denied", Rule: "[2001:db8::/32]:123"},
	} {
		b := newDatagramBench(t, benchConfig{
			policy: policy.Policy{
				Allow: parsed(t, "udp:time.example:123", "udp:*.some.example:4500", "udp:[2001:db8::1]:123", "web.example:443", "tcp:db.example:5432"),
				Deny:  parsed(t, "x.some.example", "[2001:db8::/32]:123"),
			},
			pins: []string{"*=" + upstreamUDP(t).LocalAddr().String()}, process: process,
		})
		for range 2 { // each has its record
			sent := b.send(5000, to, "x")
			if got := <-b.refused; got.source != sent.source || got.destination != sent.destination {
				t.Errorf("%s: %+v was refused, want %+v", to, got, sent)
			}
			want.Destination = sent.destination.String()
		}
		b.end()
		want.Protocol, want.Process = "udp", process
		for _, got := range events[audit.Refused](b.recorder) {
			got.Detail = ""
			if got != want {
				t.Errorf("%s: recorded %+v, want %+v", to, got, want)
			}
		}
		if refused, all := events[audit.Refused](b.recorder), events[audit.Event](b.recorder); len(refused) != 2 || len(all) != 2 {
			t.Errorf("%s: recorded %+v, want two refusals", to, all)
		}
	}
}

// A rule for a name is none for where that leads.
func TestDatagramsAreGuarded(t *testing.T) {
	b := newDatagramBench(t, benchConfig{policy: policy.Policy{Allow: parsed(t, "udp:*")}, resolver: rebinding(t)})
	sent := b.send(5000, "evil.example:123", "x")
	if got := <-b.refused; got.destination != sent.destination {
		t.Errorf("refused %+v, sent %+v", got, sent)
	}
	b.end()
	refused, closed := events[audit.Refused](b.recorder), events[audit.FlowClose](b.recorder)
	if len(refused) != 1 || refused[0].Flow != 1 || refused[0].Reason != "address" || refused[0].Host != "evil.example" {
		t.Errorf("recorded %+v, want a refusal of the address", refused)
	}
	if len(closed) != 1 || closed[0].DatagramsSent != 1 || closed[0].Dropped != 1 || closed[0].Upstream != "" {
		t.Errorf("recorded %+v, want a flow that was not dialled", closed)
	}
}

func TestIdleFlowsOfDatagramsEnd(t *testing.T) {
	b := newDatagramBench(t, benchConfig{
		policy: policy.Policy{Allow: parsed(t, "udp:time.example")}, limits: Limits{DatagramTimeout: 300 * time.Millisecond}, // else an answer may come too late
		pins: []string{"*=" + echoUDP(t).LocalAddr().String()},
	})
	for i := range 3 {
		sent := b.send(5000, "time.example:123", "x")
		if got := <-b.answers; got != sent {
			t.Errorf("answered %+v, sent %+v", got, sent)
		}
		await[audit.FlowClose](t, b.recorder, i+1)
	}
	for i, e := range events[audit.FlowClose](b.recorder) {
		if e.Flow != uint64(i+1) || e.DatagramsSent != 1 || e.DatagramsReceived != 1 || e.Error != "" {
			t.Errorf("recorded %+v, want flow %d with a datagram each way", e, i+1)
		}
	}
}

// What cannot be recorded does not leave.
func TestDatagramsNeedTheirRecord(t *testing.T) {
	server := upstreamUDP(t)
	b := newDatagramBench(t, benchConfig{
		policy: policy.Policy{Allow: parsed(t, "udp:time.example:123")}, pins: []string{"*=" + server.LocalAddr().String()},
		limits: Limits{DatagramTimeout: 5 * time.Millisecond},
	})
	b.recorder.mu.Lock()
	b.recorder.full = true
	b.recorder.mu.Unlock()
	b.send(5000, "time.example:123", "x")
	b.send(5000, "time.example:124", "x") // when it is taken, the flow of the other has begun
	b.proxy.open.Wait()
	b.end()
	// What had left would come first.
	if _, err := upstreamUDP(t).WriteTo([]byte("end"), server.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if n, _, err := server.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != "end" {
		t.Errorf("the server has read %q, %v", buf[:n], err)
	}
}

func TestAnUpstreamThatRefusesIsTold(t *testing.T) {
	server := upstreamUDP(t)
	address := server.LocalAddr().String()
	server.Close()
	b := newDatagramBench(t, benchConfig{
		policy: policy.Policy{Allow: parsed(t, "udp:time.example:123")}, pins: []string{"*=" + address},
	})
	sent := b.send(5000, "time.example:123", "x")
	if got := <-b.refused; got.source != sent.source || got.destination != sent.destination {
		t.Errorf("%+v was refused, sent %+v", got, sent)
	}
	b.end()
	closed := events[audit.FlowClose](b.recorder)
	if len(closed) != 1 || closed[0].DatagramsSent != 1 || !strings.Contains(closed[0].Error, "connection refused") {
		t.Errorf("recorded %+v, want that the connection was refused", closed)
	}
}

// Who is not asked cannot answer.
func TestStrangersCannotAnswer(t *testing.T) {
	server, stranger := upstreamUDP(t), upstreamUDP(t)
	b := newDatagramBench(t, benchConfig{
		policy: policy.Policy{Allow: parsed(t, "udp:time.example:123")}, pins: []string{"*=" + server.LocalAddr().String()},
	})
	b.send(5000, "time.example:123", "x")
	_, from, err := server.ReadFromUDPAddrPort(make([]byte, 1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.WriteToUDPAddrPort([]byte("forged"), from); err != nil {
		t.Fatal(err)
	}
	if _, err := server.WriteToUDPAddrPort([]byte("true"), from); err != nil {
		t.Fatal(err)
	}
	if got := <-b.answers; got.payload != "true" {
		t.Errorf("answered %q", got.payload)
	}
}

func TestFlowsOfDatagramsHaveALimit(t *testing.T) {
	b := newDatagramBench(t, benchConfig{
		policy: policy.Policy{Allow: parsed(t, "udp:time.example:123")}, pins: []string{"*=" + echoUDP(t).LocalAddr().String()}, limits: Limits{Flows: 2},
	})
	for _, port := range []uint16{5000, 5001} {
		b.send(port, "time.example:123", "x")
		<-b.answers
	}
	b.send(5002, "time.example:123", "x")
	<-b.refused
	b.send(5001, "time.example:123", "x") // the others go on
	<-b.answers
	b.end()
	refused := events[audit.Refused](b.recorder)
	if len(refused) != 1 || refused[0].Reason != "limit" || refused[0].Flow != 0 || len(events[audit.FlowOpen](b.recorder)) != 2 {
		t.Errorf("recorded %+v", refused)
	}
}

// While a name is looked up its datagrams wait; those that find no room are
// dropped, and counted.
func TestDatagramsThatWaitAreBounded(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b := newDatagramBench(t, benchConfig{
		policy: policy.Policy{Allow: parsed(t, "udp:*:123")},
		resolver: &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
			once.Do(func() { close(asked) })
			<-answer
			return nil, &net.DNSError{Err: "none", IsNotFound: true}
		}},
	})
	b.send(5000, "time.example:123", "x")
	<-asked
	for range maxQueue {
		b.send(5000, "time.example:123", "x")
	}
	big := string(bytes.Repeat([]byte("x"), 65000))
	for port := range uint16(3) {
		for range maxQueue {
			b.send(6000+port, "time.example:123", big)
		}
	}
	if waiting := b.proxy.queued.Load(); waiting > maxQueuedBytes {
		t.Errorf("%d bytes wait, want at most %d", waiting, maxQueuedBytes)
	}
	close(answer)
	await[audit.FlowClose](t, b.recorder, 4)
	b.end()
	var sent, dropped uint64
	for _, e := range events[audit.FlowClose](b.recorder) {
		sent, dropped = sent+e.DatagramsSent, dropped+e.Dropped
	}
	if want := uint64(4*maxQueue + 1); sent != want || dropped != want || b.proxy.Received() != want {
		t.Errorf("%d datagrams were sent and %d dropped, want %d, none of which was sent on", sent, dropped, want)
	}
	if waiting := b.proxy.queued.Load(); waiting != 0 {
		t.Errorf("%d bytes wait for nobody", waiting)
	}
}
