package mitm

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"agentops/audit"
	"agentops/mitm/policy"
)

// request is what somebody has understood of one.
type request struct{ method, url string }

// witness is an upstream, without TLS, that reads HTTP/1 by itself, so strictly that
// there is one way to read what it takes, and answers 200.
type witness struct {
	net.Listener
	got      chan struct{} // has one when there was a head
	mu       sync.Mutex
	requests []request
	errs     []error
}

func newWitness(t testing.TB) *witness {
	t.Helper()
	w := &witness{got: make(chan struct{}, 1)}
	w.Listener = serveAll(t, func(_ int, conn net.Conn) { w.serve(conn) })
	return w
}

// serveAll serves the connections of a new listener, each for itself, numbered from 0.
func serveAll(t testing.TB, serve func(n int, conn net.Conn)) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for n := 0; ; n++ {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			wg.Go(func() {
				defer conn.Close()
				serve(n, conn)
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for _, conn := range conns {
			conn.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return listener
}

// await returns when there was a head.
func (w *witness) await(t *testing.T) {
	t.Helper()
	select {
	case <-w.got:
	case <-t.Context().Done():
		t.Fatal("nothing came to the upstream")
	}
}

// take returns what has been understood since the last call.
func (w *witness) take() ([]request, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	requests, err := w.requests, errors.Join(w.errs...)
	w.requests, w.errs = nil, nil
	return requests, err
}

func (w *witness) serve(conn net.Conn) {
	reader := bufio.NewReader(conn)
	for {
		// HTTP/2 is not what it reads.
		if first, err := reader.Peek(4); err != nil || string(first) == "PRI " {
			return
		}
		r, body, err := readStrictly(reader)
		if err == nil && body.expects {
			_, _ = io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
		}
		w.mu.Lock()
		if err != nil {
			w.errs = append(w.errs, err)
		} else {
			w.requests = append(w.requests, r)
		}
		w.mu.Unlock()
		select {
		case w.got <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			return // the proxy broke off
		}
		if body.chunked { // what follows the last chunk
			for line := "x"; strings.TrimRight(line, "\r\n") != ""; {
				if line, err = reader.ReadString('\n'); err != nil {
					return
				}
			}
		}
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"); err != nil {
			return
		}
	}
}

type strictBody struct {
	io.Reader
	chunked, expects bool
}

// readStrictly reads the head of a request (RFC 9112) and takes no liberties.
func readStrictly(reader *bufio.Reader) (r request, body strictBody, err error) {
	var raw bytes.Buffer
	fail := func(what string) (request, strictBody, error) {
		return request{}, strictBody{}, fmt.Errorf("the upstream got %s: %q", what, raw.Bytes())
	}
	var lines []string
	for {
		line, err := reader.ReadString('\n')
		raw.WriteString(line)
		text, ok := strings.CutSuffix(line, "\r\n")
		switch {
		case err != nil:
			return fail("half a head")
		case !ok || strings.ContainsAny(text, "\r\n\x00"):
			return fail("a line that does not end as it should")
		}
		if text == "" {
			break
		}
		lines = append(lines, text)
	}
	first := strings.Split(lines[0], " ")
	if len(first) != 3 || first[2] != "HTTP/1.1" || !strings.HasPrefix(first[1], "/") && first[1] != "*" {
		return fail("an odd request line")
	}
	fields := map[string][]string{}
	for _, line := range lines[1:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t\"(),/;<=>?@[\\]{}") {
			return fail("a field that is none")
		}
		name = strings.ToLower(name)
		fields[name] = append(fields[name], strings.TrimSpace(value))
	}
	length, coding := fields["content-length"], fields["transfer-encoding"]
	switch {
	case len(fields["host"]) != 1:
		return fail("no one host")
	case len(length)+len(coding) > 1 || len(coding) == 1 && coding[0] != "chunked":
		return fail("a body of no one length")
	}
	// A second opinion.
	other, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw.Bytes())))
	if err != nil || other.Method != first[0] || other.RequestURI != first[1] || other.Host != fields["host"][0] {
		return fail(fmt.Sprintf("what net/http reads as %+v, %v", other, err))
	}
	body = strictBody{Reader: http.NoBody, chunked: len(coding) == 1, expects: len(fields["expect"]) > 0}
	if len(length) == 1 {
		n, err := strconv.ParseUint(length[0], 10, 62)
		if err != nil {
			return fail("an odd length")
		}
		body.Reader = io.LimitReader(reader, int64(n))
	}
	if body.chunked {
		body.Reader = httputil.NewChunkedReader(reader)
	}
	r, err = understood(first[0], fields["host"][0], first[1])
	if err != nil {
		return fail(err.Error())
	}
	return r, body, nil
}

// understood is a request as the record should have it.
func understood(method, host, target string) (request, error) {
	name, port := host, ""
	if h, p, err := net.SplitHostPort(host); err == nil {
		name, port = h, p
	}
	name, err := policy.Host(name)
	if port != "" && port != "80" {
		name += ":" + port
	}
	return request{method, redactURL("http://" + name + target)}, err
}

// checkForwarded holds the record of what was just done against what the upstream
// has understood of it: all that came there is recorded, in the same order, and
// what was answered came there. A request that was broken off may come late, when
// the next one is looked at.
func (b *bench) checkForwarded(t *testing.T, forwarded []request) {
	t.Helper()
	recorded := events[audit.HTTPRequest](b.recorder)
	for _, r := range forwarded {
		i := slices.IndexFunc(recorded, func(e audit.HTTPRequest) bool { return r == request{e.Method, e.URL} })
		if i < 0 {
			if i = slices.Index(b.late, r); i < 0 {
				t.Errorf("the upstream got %q, recorded is %+v", r, recorded)
				return
			}
			b.late = slices.Delete(b.late, i, i+1)
			continue
		}
		b.broken(t, recorded[:i])
		recorded = recorded[i+1:]
	}
	b.broken(t, recorded)
	opened, closed := events[audit.FlowOpen](b.recorder), events[audit.FlowClose](b.recorder)
	if len(opened) != 1 || len(closed) != 1 || opened[0].Flow != closed[0].Flow {
		t.Errorf("of one flow are recorded %+v, %+v", opened, closed)
	}
	for _, e := range opened {
		if host, err := policy.Host(e.Host); err != nil || host != e.Host {
			t.Errorf("a flow to %q is recorded", e.Host)
		}
	}
}

// broken takes the records of requests that have not come to the upstream so far.
func (b *bench) broken(t *testing.T, recorded []audit.HTTPRequest) {
	t.Helper()
	for _, e := range recorded {
		if e.Status == http.StatusOK {
			t.Errorf("recorded is %+v, which the upstream did not get", e)
		}
		b.late = append(b.late, request{e.Method, e.URL})
	}
	b.late = b.late[max(0, len(b.late)-10):]
}

// settle waits until the one flow, its connection closed by us, has all its records.
func (b *bench) settle(t *testing.T) {
	t.Helper()
	await[audit.FlowClose](t, b.recorder, 1)
	b.proxy.open.Wait()
}

// forget empties the record.
func (r *recorder) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = nil
}
