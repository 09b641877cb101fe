package mitm

import (
	"bufio"
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"agentops/audit"
	"agentops/mitm/policy"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// odd makes requests as no well-behaved client does, of parts that mean something to
// somebody.
type odd struct{ *rand.Rand }

func (o odd) one(of ...string) string { return of[o.IntN(len(of))] }

// mostly is the usual in nine of ten cases.
func (o odd) mostly(usual string, of ...string) string {
	if o.IntN(10) > 0 {
		return usual
	}
	return o.one(of...)
}

func (o odd) method() string {
	return o.mostly("GET", "POST", "HEAD", "OPTIONS", "PUT", "get", "M-SEARCH", "TRACE", "CONNECT", "PRI", "X", "G(T", "G\xc3\xa4T")
}

func (o odd) path() string {
	var path strings.Builder
	for range 1 + o.IntN(4) {
		path.WriteString(o.mostly("/", "//", "/./", "/../", `\`, "%2F", "/%2e%2e/"))
		if o.IntN(2) == 0 {
			path.WriteString("a")
			continue
		}
		path.WriteString(o.one("b.c", "%7e", "%7E", "~", "(b)", "a;x=y", "..", "%2e", "%00", "%zz", "%", "%25", "\xc3\xa4", "%C3%A4", "\xff", "#f", "[", "]", "|", "^",
			`"`, "<a>", "`", "{a}", "*", ":", "@", "&=", "+", "$,'!", "", "http://evil.test/x", "a\tb", "\x7f"))
	}
	return path.String()
}

func (o odd) query() string {
	return o.mostly("", "?", "??", "?a=b&c=d", "?x=%zz", "?a=b?c#d", "?;=;", "?\xc3\xa4", "?q=%20+%2B", "?token=hush&a=1", "?http://evil.test/", "?\"<>`")
}

func (o odd) host() string {
	return o.mostly("www.example.com", "WWW.Example.COM", "www.example.com.", "www.example.com:80", "www.example.com:", "www.example.com:080", "www.example.com:81", "other.example.com",
		"", "user@www.example.com", "www.example.com/x", "www.example.com#", "www.example.com evil.test", "evil.test,www.example.com", "[::1]", "198.18.0.1", "www%2eexample.com", "www.ex\xc3\xa4mple.com")
}

func (o odd) target() string {
	switch o.IntN(12) {
	case 0:
		return "*"
	case 1, 2:
		return o.mostly("http", "HTTP", "https", "ftp", "") + "://" + o.mostly("", "u:p@", "@") + o.host() + o.mostly(o.path(), "") + o.query()
	case 3:
		return o.one("a", "http:a", "//evil.test/a", "?a", "http:/a", "www.example.com:80", "\\a", "http:///a", "/a b", " /a", "/a ")
	}
	return o.path() + o.query()
}

// message is a whole request of HTTP/1: nothing of it is missing, whoever reads it.
func (o odd) message() []byte {
	end := o.mostly("\r\n", "\n")
	version := o.mostly("HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1.10")
	lines := []string{o.method() + o.mostly(" ", "  ", "\t") + o.target() + " " + version}
	if o.IntN(10) > 0 {
		lines = append(lines, o.mostly("Host", "HOST", "host", "Host ", " Host")+o.mostly(": ", ":", ":\t", " : ")+o.host())
	}
	for range o.IntN(3) {
		lines = append(lines, o.one("X-A: b", "x-a: c", "Host: other.example.com", "X-Http-Method-Override: DELETE", "Connection: close, Host", "Connection: Content-Length", "Connection: Transfer-Encoding",
			"Upgrade: h2c", "Expect: 100-continue", "X: y\r\n folded", "X\x00: y", "X: a\rb", "X : y", ": y", "Forwarded: host=evil.test", "X-Forwarded-Host: evil.test", "X-Original-Url: /evil",
			"Trailer: Host", "TE: trailers", "Http2-Settings: AAMAAABk", "Content-Type: text/plain"))
	}
	body := ""
	switch o.IntN(6) {
	case 0:
		lines, body = append(lines, o.mostly("Content-Length: 5", "Content-Length: +5", "Content-Length: 05", "Content-Length : 5", "content-length: 5\r\nContent-Length: 5", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: 5, 5")), "hello"
	case 1:
		coding := o.mostly("chunked", "Chunked", "identity", "chunked, chunked", "gzip, chunked", "\x0bchunked", "chunked\r\nContent-Length: 3", "xchunked")
		lines, body = append(lines, "Transfer-Encoding: "+coding), o.mostly("5\r\nhello\r\n0\r\n\r\n", "5;x=y\r\nhello\r\n0\r\nHost: evil.test\r\n\r\n", "05\nhello\n0\n\n", "0x5\r\nhello\r\n0\r\n\r\n")
	}
	return []byte(strings.Join(lines, end) + end + end + body)
}

// Of every request that goes on, the upstream understands the host, the method and the
// path that are in the record, and under a rule for paths the path is one of the rule's.
func TestWhatIsForwardedIsWhatIsRecorded(t *testing.T) {
	for name, p := range map[string]policy.Policy{
		"permissive": {},
		"by path":    {Mode: policy.Strict, Allow: parsed(t, "GET,POST www.example.com/a/** /b.c/**")},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWitness(t)
			b := newBench(t, benchConfig{policy: p, pins: []string{"*=" + w.Addr().String()}})
			o := odd{rand.New(rand.NewPCG(1, 2))}
			passed := 0
			for range 3000 {
				message := o.message()
				forwarded, err := b.exchange(t, w, message)
				if err != nil {
					t.Error(err)
				}
				passed += len(forwarded)
				for _, r := range forwarded {
					path := strings.TrimPrefix(r.url, "http://www.example.com")
					if p.Mode == policy.Strict && (r.method != "GET" && r.method != "POST" || !strings.HasPrefix(path, "/a") && !strings.HasPrefix(path, "/b.c")) {
						t.Errorf("%s %s went on", r.method, r.url)
					}
				}
				if t.Failed() {
					t.Fatalf("sent was %q", message)
				}
			}
			if passed < 100 {
				t.Errorf("only %d requests went on: the test shows nothing", passed)
			}
		})
	}
}

// What would be sent on as something else, or taken for something else, stays here.
func TestRequestsThatWouldBecomeOthersAreRefused(t *testing.T) {
	w := newWitness(t)
	b := newBench(t, benchConfig{pins: []string{"*=" + w.Addr().String()}})
	for _, message := range []string{
		"GET http:a HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\n000000",
	} {
		forwarded, err := b.exchange(t, w, []byte(message))
		if len(forwarded) > 0 || err != nil || len(events[audit.HTTPRequest](b.recorder)) > 0 {
			t.Errorf("%q: the upstream got %q, %v", message, forwarded, err)
		}
		refused := events[audit.Refused](b.recorder)
		if len(refused) != 1 || refused[0].Reason != "malformed" {
			t.Errorf("%q: recorded %+v", message, refused)
		}
	}
}

// What is found to be malformed when its head is at the upstream is in the record as a
// request as well: a bad chunk at the end hides nothing.
func TestARequestWithABrokenBodyIsRecorded(t *testing.T) {
	w := newWitness(t)
	b := newBench(t, benchConfig{pins: []string{"*=" + w.Addr().String()}})
	b.recorder.forget()
	conn := b.dial("www.example.com:80")
	io.WriteString(conn, "POST /hidden HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhidden\r\n")
	w.await(t)
	io.WriteString(conn, "no chunk\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || res.StatusCode != http.StatusBadRequest {
		t.Fatalf("answered is %+v, %v", res, err)
	}
	conn.Close()
	b.settle(t)
	requests := events[audit.HTTPRequest](b.recorder)
	if len(requests) != 1 || requests[0].URL != "http://www.example.com/hidden" || requests[0].BytesSent != 6 || requests[0].Status != 400 || requests[0].Upstream == "" || !strings.HasPrefix(requests[0].Error, "refused: ") {
		t.Errorf("recorded is %+v", requests)
	}
	if refused := events[audit.Refused](b.recorder); len(refused) != 1 {
		t.Errorf("recorded is %+v", refused)
	}
}

// exchange sends a message on a connection of its own, waits for an answer or for the
// connection's end, and checks the records.
func (b *bench) exchange(t *testing.T, w *witness, message []byte) ([]request, error) {
	t.Helper()
	conn := b.dialFor(t, "www.example.com:80")
	defer conn.Close()
	_, _ = conn.Write(message) // the proxy may have ended it
	answer := bufio.NewReader(conn)
	for {
		method, _, _ := bytes.Cut(message, []byte(" "))
		res, err := http.ReadResponse(answer, &http.Request{Method: string(method)})
		if err != nil {
			break
		}
		_, _ = io.Copy(io.Discard, res.Body)
		if res.StatusCode >= 200 {
			break
		}
	}
	conn.Close()
	return b.settled(t, w)
}

// dialFor begins with an empty record.
func (b *bench) dialFor(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	b.recorder.forget()
	conn, err := b.listener.dial(t.Context(), b.destination(address))
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func (b *bench) settled(t *testing.T, w *witness) ([]request, error) {
	t.Helper()
	b.settle(t)
	forwarded, err := w.take()
	if opened := events[audit.FlowOpen](b.recorder); len(opened) == 1 && opened[0].Protocol == "opaque" {
		return nil, nil // recorded as such: what is in it is nobody's claim
	}
	b.checkForwarded(t, forwarded)
	return forwarded, err
}

// The same of HTTP/2, whose clients can write in a field what HTTP/1 cannot say.
func TestWhatIsForwardedIsWhatIsRecordedInHTTP2(t *testing.T) {
	var mu sync.Mutex
	var got []request
	upstream := plain(t, func(_ http.ResponseWriter, r *http.Request) {
		seen, err := understood(r.Method, r.Host, r.RequestURI)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		got = append(got, seen)
	})
	b := newBench(t, benchConfig{upstream: upstream})
	o := odd{rand.New(rand.NewPCG(3, 4))}
	passed := 0
	for range 1000 {
		fields := []hpack.HeaderField{
			{Name: ":method", Value: o.method()}, {Name: ":scheme", Value: o.mostly("http", "https", "x y", "")},
			{Name: ":path", Value: o.target()}, {Name: ":authority", Value: o.host()},
		}
		if o.IntN(4) == 0 {
			fields = append(fields, hpack.HeaderField{Name: o.one("host", "Host", "x-a", "connection", "transfer-encoding", "content-length", "x\r\ny", ":path", ":protocol"), Value: o.one("www.example.com", "evil.test", "5", "chunked", "a\r\nb", "")})
		}
		if fields[0].Value == "OPTIONS" && fields[2].Value == "*" {
			continue // which the upstream's library answers by itself
		}
		if o.IntN(6) == 0 {
			fields = append(fields[:o.IntN(4)], fields[o.IntN(4):]...) // absent, twice
		}
		b.sendHTTP2(t, fields)
		b.settle(t)
		mu.Lock()
		forwarded := got
		got = nil
		mu.Unlock()
		passed += len(forwarded)
		b.checkForwarded(t, forwarded)
		if t.Failed() {
			t.Fatalf("sent was %q", fields)
		}
	}
	if passed < 100 {
		t.Errorf("only %d requests went on: the test shows nothing", passed)
	}
}

// sendHTTP2 sends one request on a connection of its own, and waits for its answer.
func (b *bench) sendHTTP2(t *testing.T, fields []hpack.HeaderField) {
	t.Helper()
	conn := b.dialFor(t, "www.example.com:80")
	defer conn.Close()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range fields {
		if err := encoder.WriteField(field); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	out.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&out, conn)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write(out.Bytes())
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return
		case *http2.HeadersFrame:
			if frame.StreamEnded() {
				return
			}
		case *http2.DataFrame:
			if frame.StreamEnded() {
				return
			}
		}
	}
}

// Whatever bytes come, nothing panics, all is recorded, and what goes on is read by the
// upstream as it is recorded.
func FuzzHTTPHead(f *testing.F) {
	o := odd{rand.New(rand.NewPCG(5, 6))}
	for range 40 {
		f.Add(o.message())
	}
	for _, seed := range []string{
		"", "G", "PRI /a/a HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\no\r\n", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\nGET /2 HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 9\r\n\r\nhalf", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		"POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: evil.test\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	w := newWitness(f)
	// What is no HTTP has nothing to look for at a witness that reads it.
	b := newBench(f, benchConfig{policy: policy.Policy{Mode: policy.Strict, Allow: parsed(f, "www.example.com")}, pins: []string{"*=" + w.Addr().String()}})
	f.Fuzz(func(t *testing.T, message []byte) {
		conn := b.dialFor(t, "www.example.com:80")
		defer conn.Close()
		_, _ = conn.Write(message)
		answered := make(chan struct{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = conn.Read(make([]byte, 1))
			close(answered)
			_, _ = io.Copy(io.Discard, conn)
		}()
		if bytes.Contains(message, []byte("\n\r\n")) || bytes.Contains(message, []byte("\n\n")) {
			// An answer is to be had before the end of the connection takes
			// the request back, unless the body is not all there.
			select {
			case <-answered:
			case <-time.After(20 * time.Millisecond):
			}
		}
		_ = conn.CloseWrite()
		<-ended
		conn.Close()
		if _, err := b.settled(t, w); err != nil {
			t.Error(err)
		}
	})
}
