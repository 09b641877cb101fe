package mitm

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"agentops/audit"
)

// upgrading answers every request with 101 and a protocol, and then with what it
// is sent.
func upgrading(t *testing.T, protocol string, seen chan<- string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		if seen != nil {
			seen <- r.Header.Get("Upgrade")
		}
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+protocol+"\r\n\r\n")
		io.Copy(conn, buffered)
		io.WriteString(conn, "bye")
	}
}

// Each side of an upgraded connection ends for itself, and its bytes are counted.
func TestUpgradesEndSideBySide(t *testing.T) {
	for _, half := range []bool{true, false} {
		b := newBench(t, benchConfig{upstream: plain(t, upgrading(t, "websocket", nil))})
		conn := b.dial("www.example.com:80")
		io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: www.example.com\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n")
		reader := bufio.NewReader(conn)
		res, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != 101 || res.Header.Get("Upgrade") != "websocket" {
			t.Fatalf("%d %v", res.StatusCode, res.Header)
		}
		// It is no HTTP, and nobody takes it for such.
		const sent = "\x81\x01\nGET / HTTP/9.9\r\n\r\n"
		io.WriteString(conn, sent)
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(reader, got); err != nil || string(got) != sent {
			t.Fatalf("got %q, %v", got, err)
		}
		received := len(sent)
		if half {
			conn.CloseWrite()
			if rest, err := io.ReadAll(reader); err != nil || string(rest) != "bye" {
				t.Errorf("after the end: %q, %v", rest, err)
			}
			received += len("bye")
		}
		conn.Close()
		await[audit.HTTPRequest](t, b.recorder, 1)
		r := events[audit.HTTPRequest](b.recorder)[0]
		if r.Status != 101 || r.BytesSent != int64(len(sent)) || r.BytesReceived < int64(received) {
			t.Errorf("recorded %+v", r)
		}
		await[audit.FlowClose](t, b.recorder, 1)
		if n := len(events[audit.Refused](b.recorder)); n > 0 {
			t.Errorf("%d refusals", n)
		}
	}
}

// An upgrade to HTTP/2 would bring requests that nobody judges.
func TestUpgradesToHTTP2AreNoWayAround(t *testing.T) {
	for _, offered := range []string{"h2c", "H2C", "h2c, websocket", "websocket, h2c"} {
		seen := make(chan string, 1)
		b := newBench(t, benchConfig{upstream: plain(t, upgrading(t, "h2c", seen))})
		conn := b.dial("www.example.com:80")
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", offered)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := <-seen; got != "" {
			t.Errorf("%q: the upstream was offered %q", offered, got)
		}
		// It switches all the same.
		if res.StatusCode != http.StatusBadGateway {
			t.Errorf("%q: the client got %d", offered, res.StatusCode)
		}
		b.stop()
	}
}

func TestAnotherProtocolThanAskedForIsNotSwitchedTo(t *testing.T) {
	b := newBench(t, benchConfig{upstream: plain(t, upgrading(t, "h2c", nil))})
	conn := b.dial("www.example.com:80")
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusBadGateway {
		t.Errorf("the client got %d", res.StatusCode)
	}
}

// An upgrade that is not agreed to leaves an ordinary connection.
func TestRefusedUpgradesKeepTheConnection(t *testing.T) {
	b := newBench(t, benchConfig{upstream: plain(t, echo)})
	conn := net.Conn(b.dial("www.example.com:80"))
	// The second request comes before the answer to the first.
	io.WriteString(conn, "GET /a HTTP/1.1\r\nHost: www.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"+wellFormed)
	reader := bufio.NewReader(conn)
	for range 2 {
		res, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 200 {
			t.Errorf("%d, %v", res.StatusCode, err)
		}
	}
}
