package mitm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"agentops/audit"
	"agentops/mitm/policy"
)

// Each side sends one line and waits for the other's: nothing may be buffered.
func TestBodiesStreamBothWays(t *testing.T) {
	for _, protocol := range []string{"h1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			b := newBench(t, benchConfig{upstream: upstream(t, true, func(w http.ResponseWriter, r *http.Request) {
				control := http.NewResponseController(w)
				if r.ProtoMajor == 1 {
					if err := control.EnableFullDuplex(); err != nil {
						t.Error(err)
					}
				}
				control.Flush()
				lines := bufio.NewScanner(r.Body)
				for lines.Scan() {
					fmt.Fprintf(w, "you said %s\n", lines.Text())
					control.Flush()
				}
			})})
			reader, writer := io.Pipe()
			request, err := http.NewRequest("POST", "https://www.example.com/", reader)
			if err != nil {
				t.Fatal(err)
			}
			res, err := b.client(protocol).Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			lines := bufio.NewScanner(res.Body)
			for i := range 5 {
				fmt.Fprintf(writer, "line %d\n", i)
				if !lines.Scan() || lines.Text() != fmt.Sprintf("you said line %d", i) {
					t.Fatalf("line %d came back as %q, %v", i, lines.Text(), lines.Err())
				}
			}
			writer.Close()
			if lines.Scan() {
				t.Errorf("more came: %q", lines.Text())
			}
		})
	}
}

// A response of a known length arrives as it is sent, too.
func TestResponsesOfKnownLengthStream(t *testing.T) {
	more := make(chan struct{})
	b := newBench(t, benchConfig{upstream: upstream(t, true, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "8")
		io.WriteString(w, "some")
		http.NewResponseController(w).Flush()
		<-more
		io.WriteString(w, "more")
	})})
	res, err := b.client("h1").Get("https://www.example.com/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.ReadFull(res.Body, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	close(more)
	if rest, err := io.ReadAll(res.Body); err != nil || string(rest) != "more" {
		t.Errorf("the rest is %q, %v", rest, err)
	}
}

// A synthetic address that no name was given is nobody's, whatever is pinned.
func TestAnAddressOfNoNameIsRefused(t *testing.T) {
	b := newBench(t, benchConfig{upstream: plain(t, func(http.ResponseWriter, *http.Request) { t.Error("the upstream was reached") })})
	conn := b.dial("198.18.77.77:80")
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if problem := problemOf(t, res); res.StatusCode != http.StatusForbidden || problem["reason"] != "address" {
		t.Errorf("%d %v", res.StatusCode, problem)
	}
}

func TestUpgrade(t *testing.T) {
	b := newBench(t, benchConfig{upstream: upstream(t, true, func(w http.ResponseWriter, r *http.Request) {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(conn, buffered)
	})})
	conn := tls.Client(b.dial("www.example.com:443"), &tls.Config{RootCAs: b.roots, ServerName: "www.example.com"})
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	reader := bufio.NewReader(conn)
	res, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != 101 {
		t.Fatalf("status %d", res.StatusCode)
	}
	io.WriteString(conn, "ping")
	got := make([]byte, 4)
	if _, err := io.ReadFull(reader, got); err != nil || string(got) != "ping" {
		t.Errorf("got %q, %v", got, err)
	}
	conn.Close()
	b.stop()
	requests := events[audit.HTTPRequest](b.recorder)
	if len(requests) != 1 || requests[0].Status != 101 || requests[0].BytesSent != 4 || requests[0].BytesReceived != 4 {
		t.Errorf("recorded %+v", requests)
	}
}

// tcpServer calls handle for every connection.
func tcpServer(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			handle(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
	return listener.Addr().String()
}

func TestOpaqueFlows(t *testing.T) {
	address := tcpServer(t, func(conn net.Conn) { io.Copy(conn, conn) })
	b := newBench(t, benchConfig{pins: []string{"*=" + address}})
	conn := b.dial("db.example.com:6379")
	io.WriteString(conn, "*1\r\n$4\r\nPING\r\n")
	conn.CloseWrite()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "*1\r\n$4\r\nPING\r\n" {
		t.Errorf("got %q, %v", got, err)
	}
	b.stop()
	opens, closes := events[audit.FlowOpen](b.recorder), events[audit.FlowClose](b.recorder)
	if len(opens) != 1 || opens[0].Protocol != "opaque" || opens[0].Host != "db.example.com" || opens[0].Port != 6379 {
		t.Errorf("opened %+v", opens)
	}
	if len(closes) != 1 || closes[0].BytesSent != 14 || closes[0].BytesReceived != 14 || closes[0].Upstream != address || closes[0].Error != "" {
		t.Errorf("closed %+v", closes)
	}
}

// What there is much of goes through the kernel, from the middle of what was read on.
func TestLargeOpaqueFlows(t *testing.T) {
	address := tcpServer(t, func(conn net.Conn) { io.Copy(conn, conn) })
	b := newBench(t, benchConfig{pins: []string{"*=" + address}})
	conn := b.dial("db.example.com:6379")
	sent := make([]byte, 8<<20)
	rand.Read(sent)
	sent[0] = 0 // of no protocol
	go func() {
		rest := sent
		for _, n := range []int{1, 700, 4096, 1, 3 << 20} {
			conn.Write(rest[:n])
			rest = rest[n:]
		}
		conn.Write(rest)
		conn.CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(sent), err)
	}
	b.stop()
	size := int64(len(sent))
	if closes := events[audit.FlowClose](b.recorder); len(closes) != 1 || closes[0].BytesSent != size || closes[0].BytesReceived != size || closes[0].Error != "" {
		t.Errorf("closed %+v", closes)
	}
}

// An upstream that breaks off must not look like one that has ended.
func TestAnOpaqueFlowThatBreaksOff(t *testing.T) {
	const size = 1 << 20
	arrived := make(chan struct{})
	address := tcpServer(t, func(conn net.Conn) {
		conn.Write(make([]byte, size))
		<-arrived
		conn.(*net.TCPConn).SetLinger(0)
	})
	b := newBench(t, benchConfig{pins: []string{"*=" + address}})
	conn := b.dial("db.example.com:6379")
	conn.Write([]byte{0})
	if _, err := io.ReadFull(conn, make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	close(arrived)
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read: %v, want a reset", err)
	}
	b.stop()
	if closes := events[audit.FlowClose](b.recorder); len(closes) != 1 || closes[0].BytesSent != 1 || closes[0].BytesReceived != size || closes[0].Error == "" {
		t.Errorf("closed %+v", closes)
	}
}

func TestOpaqueIsRefusedInStrict(t *testing.T) {
	rules, err := policy.ParseRules([]string{"db.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	address := tcpServer(t, func(net.Conn) { t.Error("the upstream was dialled") })
	b := newBench(t, benchConfig{pins: []string{"*=" + address}, policy: policy.Policy{Mode: policy.Strict, Allow: rules}})
	conn := b.dial("db.example.com:6379")
	io.WriteString(conn, "*1\r\n$4\r\nPING\r\n")
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read: %v, want a reset", err)
	}
	b.stop()
	refused := events[audit.Refused](b.recorder)
	if len(refused) != 1 || refused[0].Reason != "opaque" || refused[0].Host != "db.example.com" {
		t.Errorf("recorded %+v", refused)
	}
}

func TestAServerMaySpeakFirst(t *testing.T) {
	address := tcpServer(t, func(conn net.Conn) {
		io.WriteString(conn, "220 ready\r\n")
		line, _ := bufio.NewReader(conn).ReadString('\n')
		io.WriteString(conn, "250 "+line)
	})
	b := newBench(t, benchConfig{pins: []string{"*=" + address}})
	conn := b.dial("mail.example.com:25")
	reader := bufio.NewReader(conn)
	if line, err := reader.ReadString('\n'); err != nil || line != "220 ready\r\n" {
		t.Fatalf("greeting %q, %v", line, err)
	}
	io.WriteString(conn, "EHLO me\r\n")
	if line, err := reader.ReadString('\n'); err != nil || line != "250 EHLO me\r\n" {
		t.Errorf("answer %q, %v", line, err)
	}
}

// A client that waits before its hello must not pass for one whose server speaks
// first: its TLS is opened all the same.
func TestWaitingIsNoWayAround(t *testing.T) {
	server := upstream(t, false, echo)
	dialled := make(chan struct{}, 1)
	watch := tcpServer(t, func(conn net.Conn) {
		select {
		case dialled <- struct{}{}:
		default:
		}
		to, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		go func() { io.Copy(to, conn); to.Close() }()
		io.Copy(conn, to)
	})
	b := newBench(t, benchConfig{pins: []string{"*=" + watch}})
	raw := b.dial("www.example.com:443")
	<-dialled // the proxy has had enough of the silence
	conn := tls.Client(raw, &tls.Config{RootCAs: b.roots, ServerName: "www.example.com"})
	if err := conn.Handshake(); err != nil {
		t.Fatalf("the handshake was not with this run's authority: %v", err)
	}
	conn.Close()
	b.stop()
	if opens := events[audit.FlowOpen](b.recorder); len(opens) != 1 || opens[0].Protocol != "tls" {
		t.Errorf("opened %+v", opens)
	}
}

func TestOpaqueWithinTLS(t *testing.T) {
	server := upstream(t, false, echo)
	server.Close()
	config := &tls.Config{Certificates: server.TLS.Certificates, NextProtos: []string{"x-echo"}}
	address := tcpServer(t, func(raw net.Conn) {
		conn := tls.Server(raw, config)
		io.Copy(conn, conn)
		conn.CloseWrite()
	})
	for _, alpn := range [][]string{nil, {"x-echo"}} {
		b := newBench(t, benchConfig{pins: []string{"*=" + address}})
		b.trusted.AddCert(server.Certificate())
		conn := tls.Client(b.dial("www.example.com:7000"), &tls.Config{RootCAs: b.roots, ServerName: "www.example.com", NextProtos: alpn})
		if _, err := conn.Write([]byte{1, 2, 3}); err != nil {
			t.Fatal(err)
		}
		conn.CloseWrite()
		if got, err := io.ReadAll(conn); err != nil || string(got) != "\x01\x02\x03" {
			t.Errorf("ALPN %q: got %q, %v", alpn, got, err)
		}
		conn.Close()
		b.stop()
	}
}

// A run that ends in the middle of a request has its record.
func TestEveryRequestIsRecordedWhenTheProxyStops(t *testing.T) {
	for _, protocol := range []string{"h1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			b := newBench(t, benchConfig{upstream: upstream(t, true, func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "some")
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			})})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			request, err := http.NewRequestWithContext(ctx, "GET", "https://www.example.com/long", nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := b.client(protocol).Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if _, err := io.ReadFull(res.Body, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			b.stop()
			requests := events[audit.HTTPRequest](b.recorder)
			if len(requests) != 1 || requests[0].BytesReceived != 4 || requests[0].Error == "" {
				t.Errorf("recorded %+v", requests)
			}
		})
	}
}

func TestRedactURL(t *testing.T) {
	for url, want := range map[string]string{
		"https://h/p":                            "https://h/p",
		"https://h/p?a=1&b":                      "https://h/p?a=1&b",
		"https://h/p?X-Amz-Signature=abc&a=1":    "https://h/p?X-Amz-Signature=[redacted]&a=1",
		"https://h/p?x%2Damz%2Dsecurity-token=s": "https://h/p?x%2Damz%2Dsecurity-token=[redacted]",
		"https://h/p?token=":                     "https://h/p?token=[redacted]",
		"https://h/" + strings.Repeat("x", 9000): "https://h/" + strings.Repeat("x", maxRecorded-10) + "…",
	} {
		if got := redactURL(url); got != want {
			t.Errorf("%s is %s, want %s", url, got, want)
		}
	}
}
