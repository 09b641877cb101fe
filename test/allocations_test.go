package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"agentops/audit"
	"agentops/mitm"
	"agentops/mitm/authority"
	"agentops/mitm/policy"
	"agentops/mitm/resolver"
	"agentops/test/awsstub"

	"github.com/sirupsen/logrus"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// allocationsTolerance is by how much the figures below may differ.
const allocationsTolerance = 3

// Times depend on the machine, allocations do not: what one HTTPS request through the
// proxy costs, its record included, must not grow unseen. A change that makes it less
// commits the new figure; one that makes it more says why. Two of them are of the client
// and the upstream here.
func TestAllocationsPerRequest(t *testing.T) {
	for _, c := range []struct {
		protocol string
		want     float64
		exchange func(*testing.T, net.Conn) func()
	}{
		{"http/1.1", 12, exchangeHTTP1},
		{"h2", 33, exchangeHTTP2},
	} {
		t.Run(c.protocol, func(t *testing.T) {
			exchange := c.exchange(t, dialThroughProxy(t, c.protocol))
			for range 100 {
				exchange()
			}
			// A collection empties the pools, which would be filled again.
			defer debug.SetGCPercent(debug.SetGCPercent(-1))
			got := testing.AllocsPerRun(1000, exchange)
			t.Logf("%v allocations per request", got)
			if got < c.want-allocationsTolerance || got > c.want+allocationsTolerance {
				t.Errorf("%v allocations per request, want %v (within %d)", got, c.want, allocationsTolerance)
			}
		})
	}
}

// exchangeHTTP1 returns a function that sends a request and reads the answer.
func exchangeHTTP1(t *testing.T, conn net.Conn) func() {
	request := []byte("GET /1k HTTP/1.1\r\nHost: origin.test\r\nUser-Agent: guard\r\nAccept: */*\r\n\r\n")
	buf := make([]byte, 8<<10)
	return func() {
		_, err := conn.Write(request)
		must(t, err)
		_, err = readUntil(conn, buf, []byte(endOfBody))
		must(t, err)
	}
}

// exchangeHTTP2 is the same, on a stream of its own each.
func exchangeHTTP2(t *testing.T, conn net.Conn) func() {
	_, err := io.WriteString(conn, http2.ClientPreface)
	must(t, err)
	f := http2.NewFramer(conn, conn)
	f.SetReuseFrames()
	must(t, f.WriteSettings())
	block := encode(t, ":method", "GET", ":scheme", "https", ":authority", "origin.test", ":path", "/1k", "user-agent", "guard", "accept", "*/*")
	stream := uint32(1)
	return func() {
		must(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block, EndHeaders: true, EndStream: true}))
		for {
			frame, err := f.ReadFrame()
			must(t, err)
			if data, ok := frame.(*http2.DataFrame); ok && data.StreamEnded() {
				must(t, f.WriteWindowUpdate(0, uint32(len(data.Data()))))
				break
			}
		}
		stream += 2
	}
}

// encode returns a header block that enters nothing into a table.
func encode(t *testing.T, fields ...string) []byte {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	e.SetMaxDynamicTableSize(0)
	for i := 0; i < len(fields); i += 2 {
		must(t, e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1], Sensitive: true}))
	}
	return block.Bytes()
}

// endOfBody ends the upstream's answer and is nowhere else in it.
const endOfBody = "the end"

// dialThroughProxy returns a TLS connection to an upstream, through a proxy with a
// journal as runs have it.
func dialThroughProxy(t *testing.T, protocol string) *tls.Conn {
	trusted, upstream := serveKibibyte(t)
	ours, err := authority.New("guard")
	must(t, err)
	pin, err := mitm.ParsePin("*=" + upstream)
	must(t, err)
	journal, err := audit.Create(filepath.Join(t.TempDir(), "journal.jsonl"), "guard")
	must(t, err)
	t.Cleanup(func() { journal.Close() })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	log := logrus.New()
	log.SetOutput(io.Discard)
	rules := &policy.Policy{Mode: policy.Permissive}
	proxy := mitm.New(mitm.Config{
		Policy: rules, Authority: ours, Names: resolver.NewNames(), Dialer: mitm.NewDialer([]mitm.Pin{pin}, rules),
		Upstreams: func() *x509.CertPool { return trusted }, Recorder: journal, Log: log,
	})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- proxy.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-served)
	})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ours.PEM())
	conn, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "origin.test", NextProtos: []string{protocol}})
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// serveKibibyte answers every request with 1 KiB, over TLS; it returns the roots of
// its certificate and its address.
func serveKibibyte(t *testing.T) (*x509.CertPool, string) {
	ca, err := awsstub.NewAuthority()
	must(t, err)
	leaf, err := ca.Leaf("origin.test")
	must(t, err)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*leaf}, NextProtos: []string{"h2", "http/1.1"}})
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	body := []byte(strings.Repeat("x", 1024-len(endOfBody)) + endOfBody)
	answer := append([]byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n"), body...)
	status := encode(t, ":status", "200", "content-type", "text/plain", "content-length", "1024")
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if conn.(*tls.Conn).Handshake() == nil && conn.(*tls.Conn).ConnectionState().NegotiatedProtocol == "h2" {
					answerHTTP2(conn, status, body)
					return
				}
				buf := make([]byte, 8<<10)
				for {
					if _, err := readUntil(conn, buf, []byte("\r\n\r\n")); err != nil {
						return
					}
					if _, err := conn.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM())
	return roots, listener.Addr().String()
}

// answerHTTP2 answers every stream until the connection ends.
func answerHTTP2(conn net.Conn, head, body []byte) {
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(conn, conn)
	f.SetReuseFrames()
	err := f.WriteSettings()
	for err == nil {
		var frame http2.Frame
		frame, err = f.ReadFrame()
		if request, ok := frame.(*http2.HeadersFrame); ok && err == nil {
			err = errors.Join(
				f.WriteHeaders(http2.HeadersFrameParam{StreamID: request.StreamID, BlockFragment: head, EndHeaders: true}),
				f.WriteData(request.StreamID, true, body))
		}
	}
}

// readUntil reads into buf until what was read ends with end.
func readUntil(conn net.Conn, buf, end []byte) (int, error) {
	for n := 0; ; {
		m, err := conn.Read(buf[n:])
		n += m
		if bytes.HasSuffix(buf[:n], end) || err != nil {
			return n, err
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
