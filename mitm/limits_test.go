package mitm

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"agentops/audit"
	"agentops/mitm/policy"

	"golang.org/x/sys/unix"
)

// soon is a limit that a test waits for.
const soon = 50 * time.Millisecond

// hello is the first flight of a client of TLS.
func hello(t *testing.T, name string) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() { _ = tls.Client(theirs, &tls.Config{ServerName: name}).Handshake() }()
	flight := make([]byte, 16<<10)
	n, err := ours.Read(flight)
	if err != nil {
		t.Fatal(err)
	}
	return flight[:n]
}

// ends waits for the end of a connection, and fails if it does not come.
func ends(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	_, err := io.Copy(io.Discard, conn)
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		t.Fatal("the connection stays open")
	}
}

// A client that stalls before its first request is let go, with a record.
func TestAStalledHandshakeEnds(t *testing.T) {
	whole := hello(t, "www.example.com")
	for name, c := range map[string]struct {
		said []byte
		tls  bool
	}{
		"nothing":        {nil, false},
		"half a method":  {[]byte("GE"), false},
		"half a hello":   {whole[:len(whole)/2], true},
		"a hello":        {whole, true},
		"a hello's head": {whole[:2], true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, benchConfig{
				upstream: upstream(t, true, echo), limits: Limits{HandshakeTimeout: soon},
				policy: policy.Policy{Mode: policy.Strict, Allow: parsed(t, "www.example.com")}, // nothing opaque
			})
			conn := b.dial("www.example.com:443")
			if _, err := conn.Write(c.said); err != nil {
				t.Fatal(err)
			}
			ends(t, conn)
			b.stop()
			closed := events[audit.FlowClose](b.recorder)
			failures := events[audit.TLSFailure](b.recorder)
			if len(closed) != 1 || (len(failures) == 1) != c.tls {
				t.Fatalf("recorded %+v, %+v", closed, failures)
			}
			if c.tls && (failures[0].Side != "client" || !strings.Contains(failures[0].Error, "in time")) {
				t.Errorf("recorded %+v", failures[0])
			}
		})
	}
}

// So is an upstream, and the client is told.
func TestAStalledUpstreamIsGivenUp(t *testing.T) {
	address := tcpServer(t, func(conn net.Conn) { io.Copy(io.Discard, conn) })
	b := newBench(t, benchConfig{pins: []string{"*=" + address}, limits: Limits{HandshakeTimeout: soon}})
	res, err := b.client("h2").Get("https://www.example.com/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if problem := problemOf(t, res); res.StatusCode != http.StatusBadGateway || problem["reason"] != "timeout" {
		t.Errorf("%d: %v", res.StatusCode, problem)
	}
	b.stop()
	if failures := events[audit.TLSFailure](b.recorder); len(failures) != 1 || failures[0].Side != "upstream" {
		t.Errorf("recorded %+v", failures)
	}
}

// deaf is a listener that takes no more connections, not even into its backlog.
func deaf(t *testing.T) string {
	t.Helper()
	loopback := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	socket := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	listener := socket()
	if err := errors.Join(unix.Bind(listener, loopback), unix.Listen(listener, 0)); err != nil {
		t.Fatal(err)
	}
	address, err := unix.Getsockname(listener)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if err := unix.Connect(socket(), address); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("127.0.0.1:%d", address.(*unix.SockaddrInet4).Port)
}

func TestAnUpstreamThatDoesNotAnswerIsGivenUp(t *testing.T) {
	b := newBench(t, benchConfig{pins: []string{"*=" + deaf(t)}, limits: Limits{HandshakeTimeout: soon}})
	res, err := b.client().Get("http://www.example.com/")
	if err != nil {
		t.Fatal(err)
	}
	if problem := problemOf(t, res); res.StatusCode != http.StatusBadGateway || problem["reason"] != "timeout" {
		t.Errorf("%d: %v", res.StatusCode, problem)
	}
}

func TestAnUnfinishedHeadEnds(t *testing.T) {
	b := newBench(t, benchConfig{upstream: plain(t, echo), limits: Limits{HeaderTimeout: soon}})
	conn := b.dial("www.example.com:80")
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: www.exam")
	ends(t, conn)
	b.stop()
	if closed := events[audit.FlowClose](b.recorder); len(closed) != 1 {
		t.Errorf("recorded %+v", closed)
	}
}

// Who keeps a connection, and asks for nothing more, loses it.
func TestAnIdleConnectionEnds(t *testing.T) {
	for _, c := range []struct{ protocol, url string }{
		{"h1", "http://www.example.com/"}, {"h2c", "http://www.example.com/"},
		{"h1", "https://www.example.com/"}, {"h2", "https://www.example.com/"},
	} {
		t.Run(c.protocol+" "+c.url, func(t *testing.T) {
			server := plain(t, echo)
			if strings.HasPrefix(c.url, "https:") {
				server = upstream(t, true, echo)
			}
			b := newBench(t, benchConfig{upstream: server, limits: Limits{IdleTimeout: soon}})
			b.get(b.client(c.protocol), c.url)
			await[audit.FlowClose](t, b.recorder, 1)
		})
	}
}

// Who waits for an answer is not idle.
func TestALongAnswerIsNotIdle(t *testing.T) {
	release := make(chan struct{})
	b := newBench(t, benchConfig{
		limits: Limits{IdleTimeout: time.Millisecond, HeaderTimeout: soon},
		upstream: plain(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/long" {
				<-release
			}
			io.WriteString(w, "done")
		}),
	})
	long := make(chan string, 1)
	go func() {
		_, body := b.get(b.client(), "http://www.example.com/long")
		long <- body
	}()
	// Another connection's idle time is over meanwhile.
	b.get(b.client(), "http://www.example.com/")
	await[audit.FlowClose](t, b.recorder, 1)
	close(release)
	if body := <-long; body != "done" {
		t.Errorf("got %q", body)
	}
}

// The limit holds in both versions, and a request below it passes.
func TestALargeHeadIsRefused(t *testing.T) {
	for _, protocol := range []string{"h1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			b := newBench(t, benchConfig{upstream: upstream(t, true, echo), limits: Limits{HeaderBytes: 4 << 10}})
			client := b.client(protocol)
			for _, c := range []struct{ size, status int }{{3 << 10, 200}, {5 << 10, 431}, {3 << 10, 200}} {
				request, err := http.NewRequest("GET", fmt.Sprintf("https://www.example.com/%d", c.size), nil)
				if err != nil {
					t.Fatal(err)
				}
				request.Header.Set("A", strings.Repeat("b", c.size))
				res, err := client.Do(request)
				if err != nil {
					t.Fatal(err)
				}
				if res.StatusCode != c.status {
					t.Errorf("%d bytes: %d", c.size, res.StatusCode)
				}
				if c.status != 200 {
					if problem := problemOf(t, res); !strings.Contains(problem["detail"].(string), "4096") {
						t.Errorf("%v", problem)
					}
				}
				res.Body.Close()
			}
			b.stop()
			refused, requests := events[audit.Refused](b.recorder), events[audit.HTTPRequest](b.recorder)
			if len(refused) != 1 || refused[0].Reason != "malformed" || !strings.Contains(refused[0].Detail, "4096") || len(requests) != 2 {
				t.Errorf("recorded %+v, %+v", refused, requests)
			}
		})
	}
}

// A run that makes up names takes no more of us for each.
func TestWhatIsKnownOfUpstreamsIsBounded(t *testing.T) {
	known := make(map[string]int)
	for i := range maxUpstreams + 100 {
		remember(known, fmt.Sprint(i), i)
		if got, ok := known[fmt.Sprint(i)]; !ok || got != i {
			t.Fatalf("%d was not kept", i)
		}
	}
	if len(known) != maxUpstreams {
		t.Errorf("%d are kept, want %d", len(known), maxUpstreams)
	}
}
