package mitm

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"strings"
	"testing"

	"agentops/audit"
)

const wellFormed = "GET /ok HTTP/1.1\r\nHost: www.example.com\r\n\r\n"

// What can be read in two ways is answered by us, in its turn, and reaches nobody.
func TestMalformedRequestsAreRefusedAndRecorded(t *testing.T) {
	const host = "Host: www.example.com\r\n"
	for name, c := range map[string]struct {
		request string
		status  int
	}{
		"two Content-Lengths":            {"POST /x HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400},
		"the same Content-Length twice":  {"POST /x HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400},
		"a list of Content-Lengths":      {"POST /x HTTP/1.1\r\n" + host + "Content-Length: 3, 3\r\n\r\nabc", 400},
		"a signed Content-Length":        {"POST /x HTTP/1.1\r\n" + host + "Content-Length: +3\r\n\r\nabc", 400},
		"an empty Content-Length":        {"POST /x HTTP/1.1\r\n" + host + "Content-Length:\r\n\r\n", 400},
		"Content-Length and chunked":     {"POST /x HTTP/1.1\r\n" + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		"another transfer coding":        {"POST /x HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400},
		"a transfer coding in disguise":  {"POST /x HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400},
		"two transfer codings":           {"POST /x HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400},
		"chunked in HTTP/1.0":            {"POST /x HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		"a folded field":                 {"GET /x HTTP/1.1\r\n" + host + "A: b\r\n c\r\n\r\n", 400},
		"blanks before the first field":  {"GET /x HTTP/1.1\r\n " + host + "\r\n", 400},
		"a bare LF behind a field":       {"GET /x HTTP/1.1\r\n" + host + "A: b\n\r\n", 400},
		"a bare LF behind the head":      {"GET /x HTTP/1.1\r\n" + host + "\n", 400},
		"a bare CR":                      {"GET /x HTTP/1.1\r\n" + host + "A: b\rC: d\r\n\r\n", 400},
		"a NUL":                          {"GET /x HTTP/1.1\r\n" + host + "A: b\x00\r\n\r\n", 400},
		"a blank before the colon":       {"GET /x HTTP/1.1\r\n" + host + "Content-Length : 0\r\n\r\n", 400},
		"no colon":                       {"GET /x HTTP/1.1\r\n" + host + "Content-Length\r\n\r\n", 400},
		"no name":                        {"GET /x HTTP/1.1\r\n" + host + ": 1\r\n\r\n", 400},
		"two Hosts":                      {"GET /x HTTP/1.1\r\n" + host + host + "\r\n", 400},
		"an empty Host":                  {"GET /x HTTP/1.1\r\nHost: \r\n\r\n", 400},
		"no Host":                        {"GET /x HTTP/1.1\r\n\r\n", 400},
		"a Host that is none":            {"GET /x HTTP/1.1\r\nHost: www.example.com/x\\\r\n\r\n", 400},
		"an absolute URL of another":     {"GET http://other.example.com/x HTTP/1.1\r\n" + host + "\r\n", 400},
		"an absolute URL with a user":    {"GET http://other@www.example.com/x HTTP/1.1\r\n" + host + "\r\n", 400},
		"two spaces in the first line":   {"GET /x  HTTP/1.1\r\n" + host + "\r\n", 400},
		"a tab in the first line":        {"GET /x\tHTTP/1.1\r\n" + host + "\r\n", 400},
		"a version that is none":         {"GET /x HTTP/1.2\r\n" + host + "\r\n", 400},
		"HTTP/0.9":                       {"GET /x\r\n", 400},
		"an escape that is none":         {"GET /%zz HTTP/1.1\r\n" + host + "\r\n", 400},
		"another expectation":            {"GET /x HTTP/1.1\r\n" + host + "Expect: 200-ok\r\n\r\n", 400},
		"a trailer that frames":          {"POST /x HTTP/1.1\r\n" + host + "Trailer: Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		"a preface that is none":         {"PRI * HTTP/2.0\r\n\r\n" + strings.Repeat("x", 20), 400},
		"a head that is too large":       {"GET /x HTTP/1.1\r\n" + host + "A: " + strings.Repeat("b", 8<<10) + "\r\n\r\n", 431},
		"many fields that are too large": {"GET /x HTTP/1.1\r\n" + host + strings.Repeat("A: "+strings.Repeat("b", 4000)+"\r\n", 3) + "\r\n", 431},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, benchConfig{limits: Limits{HeaderBytes: 8 << 10}, upstream: plain(t, func(_ http.ResponseWriter, r *http.Request) {
				if r.RequestURI != "/ok" {
					t.Errorf("the upstream got %s", r.RequestURI)
				}
			})})
			for before := range 2 { // well-formed requests before it
				conn := b.dial("www.example.com:80")
				written := make(chan struct{})
				go func() {
					defer close(written)
					// Behind it is what a smuggler would want to be read.
					io.WriteString(conn, strings.Repeat(wellFormed, before)+c.request+"GET /smuggled HTTP/1.1\r\nHost: www.example.com\r\n\r\n")
				}()
				reader := bufio.NewReader(conn)
				for i := range before + 1 {
					want := 200
					if i == before {
						want = c.status
					}
					res, err := http.ReadResponse(reader, nil)
					if err != nil {
						t.Fatalf("response %d behind %d: %v", i, before, err)
					}
					if res.StatusCode != want {
						t.Fatalf("response %d: %d, want %d", i, res.StatusCode, want)
					}
					if i < before {
						continue
					}
					if problem := problemOf(t, res); problem["reason"] != "malformed" || problem["detail"] == "" {
						t.Errorf("%v", problem)
					}
				}
				if n, err := reader.Read(make([]byte, 1)); n > 0 || err == nil {
					t.Error("something follows")
				}
				conn.Close()
				<-written
			}
			b.stop()
			refused := events[audit.Refused](b.recorder)
			if len(refused) != 2 {
				t.Fatalf("recorded %+v", refused)
			}
			for _, r := range refused {
				if r.Reason != "malformed" || r.Protocol != "http" || r.Flow == 0 || r.Host != "www.example.com" || r.Detail == "" {
					t.Errorf("recorded %+v", r)
				}
			}
			if n := len(events[audit.HTTPRequest](b.recorder)); n != 1 {
				t.Errorf("%d requests recorded, want the one before", n)
			}
		})
	}
}

// What is malformed in a body is found after its head has gone on: the upstream
// must see the request break off.
func TestMalformedBodiesAreRefusedAndRecorded(t *testing.T) {
	for name, body := range map[string]string{
		"a size that is none":           "x\r\nabc\r\n0\r\n\r\n",
		"an empty size":                 "\r\nabc\r\n0\r\n\r\n",
		"a size with a sign":            "+3\r\nabc\r\n0\r\n\r\n",
		"a size with a prefix":          "0x3\r\nabc\r\n0\r\n\r\n",
		"a size with blanks":            "3 \r\nabc\r\n0\r\n\r\n",
		"a size that is too large":      "ffffffffffffffffff\r\nabc\r\n0\r\n\r\n",
		"a size with a bare LF":         "3\nabc\r\n0\r\n\r\n",
		"an extension with a bare CR":   "3;a\rb\r\nabc\r\n0\r\n\r\n",
		"an extension without end":      "3;" + strings.Repeat("x", 5000) + "\r\nabc\r\n0\r\n\r\n",
		"a longer chunk":                "3\r\nabcd\r\n0\r\n\r\n",
		"a chunk with a bare LF":        "3\r\nabc\n0\r\n\r\n",
		"a trailer that is no field":    "3\r\nabc\r\n0\r\nx\r\n\r\n",
		"a trailer that frames":         "3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n",
		"a trailer that is too large":   "3\r\nabc\r\n0\r\nA: " + strings.Repeat("b", 5000) + "\r\n\r\n",
		"a trailer with a folded field": "3\r\nabc\r\n0\r\nA: b\r\n c\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, benchConfig{upstream: plain(t, func(_ http.ResponseWriter, r *http.Request) {
				if body, err := io.ReadAll(r.Body); err == nil {
					t.Errorf("the upstream got the whole of %q", body)
				}
			})})
			conn := b.dial("www.example.com:80")
			io.WriteString(conn, "POST /x HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n"+body)
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if problem := problemOf(t, res); res.StatusCode/100 != 4 || problem["reason"] != "malformed" {
				t.Errorf("%d %v", res.StatusCode, problem)
			}
			b.stop()
			if refused := events[audit.Refused](b.recorder); len(refused) != 1 || refused[0].Reason != "malformed" {
				t.Errorf("recorded %+v", refused)
			}
		})
	}
}

func TestHTTP1IsRelayedAsItIs(t *testing.T) {
	b := newBench(t, benchConfig{upstream: plain(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.Header().Set("Etag", `"x"`)
			w.WriteHeader(304)
		case "/head":
			w.Header().Set("Content-Length", "12")
		case "/trailer":
			body, _ := io.ReadAll(r.Body)
			w.Header().Set("Trailer", "Announced")
			fmt.Fprintf(w, "%s %s", body, r.Trailer.Get("Sum"))
			w.Header().Set("Announced", "yes")
			w.Header().Set(http.TrailerPrefix+"Other", "too")
		default:
			echo(w, r)
		}
	})})
	conn := b.dial("www.example.com:80")
	reader := bufio.NewReader(conn)
	const host = " HTTP/1.1\r\nHost: www.example.com\r\n"
	requests := []struct{ method, request, want string }{
		{"GET", "GET /a" + host + "\r\n", "200 HTTP/1.1 www.example.com /a "},
		{"GET", "\r\nGET http://www.example.com:80/b?c" + host + "\r\n", "200 HTTP/1.1 www.example.com:80 /b?c "}, // an empty line before it
		{"HEAD", "HEAD /head" + host + "\r\n", "200 "},
		{"GET", "GET /204" + host + "\r\n", "204 "},
		{"GET", "GET /304" + host + "\r\n", "304 "},
		{"OPTIONS", "OPTIONS *" + host + "\r\n", "200 "},
		{"POST", "POST /c" + host + "Content-Length: 3\r\n\r\nabc", "200 HTTP/1.1 www.example.com /c abc"},
		{"POST", "POST /d" + host + "Transfer-Encoding: Chunked\r\n\r\n3;ext=\"a b\";c\r\nabc\r\n00a\r\n0123456789\r\n0;last\r\n\r\n", "200 HTTP/1.1 www.example.com /d abc0123456789"},
		{"POST", "POST /trailer" + host + "Trailer: Sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nSum: 42\r\n\r\n", "200 x 42 yes too"},
		{"POST", "POST /trailer" + host + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nSum: 43\r\n\r\n", "200 x 43 yes too"},
		{"GET", "GET /e HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "200 HTTP/1.1 www.example.com /e "},
		{"GET", "GET /f HTTP/1.0\r\n\r\n", "200 HTTP/1.1 www.example.com /f "},
	}
	var all strings.Builder
	for _, r := range requests {
		all.WriteString(r.request)
	}
	io.WriteString(conn, all.String()) // pipelined
	for _, r := range requests {
		res, err := http.ReadResponse(reader, &http.Request{Method: r.method})
		if err != nil {
			t.Fatalf("%q: %v", r.request, err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Errorf("%q: %v", r.request, err)
		}
		got := fmt.Sprintf("%d %s", res.StatusCode, body)
		for _, name := range []string{"Announced", "Other"} {
			if value := res.Trailer.Get(name); value != "" {
				got += " " + value
			}
		}
		got = strings.ReplaceAll(got, "www.example.com:80 /e", "www.example.com /e")
		got = strings.ReplaceAll(got, "www.example.com:80 /f", "www.example.com /f")
		if got != r.want {
			t.Errorf("%q: %q, want %q", r.request, got, r.want)
		}
		if r.method == "HEAD" && res.ContentLength != 12 {
			t.Errorf("the length of HEAD is %d", res.ContentLength)
		}
	}
	if _, err := reader.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after HTTP/1.0: %v, want the end", err)
	}
	b.stop()
	if opens, recorded := events[audit.FlowOpen](b.recorder), events[audit.HTTPRequest](b.recorder); len(opens) != 1 || len(recorded) != len(requests) {
		t.Errorf("%d flows and %d requests recorded", len(opens), len(recorded))
	}
}

func TestInterimResponses(t *testing.T) {
	b := newBench(t, benchConfig{upstream: upstream(t, true, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		body, _ := io.ReadAll(r.Body) // net/http sends no 100 over HTTP/2 when it has sent another
		w.Header().Set("Link", "</x>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.Header()["Date"] = nil
		fmt.Fprintf(w, "%s %s", r.URL.Path, body)
	})})
	for _, protocol := range []string{"h1", "h2"} {
		var hints, continued int
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
				if code == http.StatusEarlyHints && header.Get("Link") == "</x>" {
					hints++
				}
				return nil
			},
			Got100Continue: func() { continued++ },
		})
		request, err := http.NewRequestWithContext(ctx, "POST", "https://www.example.com/a", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Expect", "100-continue")
		client := b.client(protocol)
		client.Transport.(*http.Transport).ExpectContinueTimeout = 1 << 40 // only an answer sends the body
		res, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if !strings.HasSuffix(string(body), "/a hello") || hints != 1 || continued != 1 || res.Header.Get("Date") != "" || res.Header.Get("Link") != "" {
			t.Errorf("%s: %s, %d hints, continued %d, %v", protocol, body, hints, continued, res.Header)
		}
		if protocol == "h2" {
			continue // the body may cross the answer
		}
		request.URL.Path = "/refuse"
		request.Body = io.NopCloser(unwanted{t})
		request.ContentLength = 5
		if res, err = client.Do(request); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusExpectationFailed {
			t.Errorf("%s: the refused expectation: %d", protocol, res.StatusCode)
		}
	}
}

// unwanted is a body that nobody should want.
type unwanted struct{ t *testing.T }

func (r unwanted) Read([]byte) (int, error) {
	r.t.Error("the body was read")
	return 0, io.EOF
}

// An event stream passes byte by byte, and its head before there is any.
func TestStreamsPassByteByByte(t *testing.T) {
	for _, protocol := range []string{"h1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			next := make(chan byte)
			b := newBench(t, benchConfig{upstream: upstream(t, true, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				flush := http.NewResponseController(w).Flush
				flush()
				for c := range next {
					w.Write([]byte{c})
					flush()
				}
			})})
			res, err := b.client(protocol).Get("https://www.example.com/events")
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			one := make([]byte, 1)
			for _, c := range []byte("data: x\n\n") {
				next <- c
				if _, err := io.ReadFull(res.Body, one); err != nil || one[0] != c {
					t.Fatalf("got %q, %v, want %q", one, err, c)
				}
			}
			close(next)
			if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
				t.Errorf("the rest is %q, %v", rest, err)
			}
		})
	}
}

// A client that sends no more still has its answer.
func TestHalfClosesSurvive(t *testing.T) {
	arrived, answer := make(chan struct{}), make(chan struct{})
	b := newBench(t, benchConfig{upstream: plain(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-answer:
			io.WriteString(w, "late")
		case <-r.Context().Done():
			t.Error("the request was given up")
		}
	})})
	conn := b.dial("www.example.com:80")
	io.WriteString(conn, wellFormed)
	conn.CloseWrite()
	<-arrived
	close(answer)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(res.Body); err != nil || string(body) != "late" {
		t.Errorf("got %q, %v", body, err)
	}
}

// A client that is gone while it waits has its request given up, though nobody reads
// from it.
func TestAGoneClientIsSeen(t *testing.T) {
	for name, before := range map[string]func(*net.TCPConn){
		"half-closed": func(conn *net.TCPConn) { io.WriteString(conn, wellFormed); conn.CloseWrite() },
		"pipelining":  func(conn *net.TCPConn) { io.WriteString(conn, wellFormed+wellFormed) },
	} {
		t.Run(name, func(t *testing.T) {
			arrived, gone := make(chan struct{}), make(chan struct{})
			b := newBench(t, benchConfig{upstream: plain(t, func(_ http.ResponseWriter, r *http.Request) {
				close(arrived)
				<-r.Context().Done()
				close(gone)
			})})
			conn := b.dial("www.example.com:80")
			before(conn)
			<-arrived
			conn.SetLinger(0)
			conn.Close()
			<-gone
			await[audit.FlowClose](t, b.recorder, 1)
			if r := events[audit.HTTPRequest](b.recorder); len(r) != 1 || r[0].Error != errClientGone.Error() || r[0].Status != 0 {
				t.Errorf("recorded %+v", r)
			}
		})
	}
}

// The run's end does not wait for a half-closed client's answer.
func TestTheEndCutsHalfClosedRequests(t *testing.T) {
	arrived := make(chan struct{})
	b := newBench(t, benchConfig{upstream: plain(t, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	})})
	conn := b.dial("www.example.com:80")
	io.WriteString(conn, wellFormed)
	conn.CloseWrite()
	<-arrived
	b.stop()
	if n := len(events[audit.HTTPRequest](b.recorder)); n != 1 {
		t.Errorf("%d requests recorded", n)
	}
}

// FuzzRequests holds the strict reading against that of net/http: what goes on must be
// HTTP to that as well, request by request, and say the same.
func FuzzRequests(f *testing.F) {
	for _, seed := range []string{
		wellFormed + wellFormed,
		"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + wellFormed,
		"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n3;x\r\nabc\r\n0\r\nA: b\r\n\r\n" + wellFormed,
		"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS * HTTP/1.0\r\n\r\n", "CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\nxyz", preface, "PRI * HTTP/2.0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nA: b\n\r\n", "GET /\x80 HTTP/1.1\r\nHost: [::1]:80\r\nExpect: 100-continue\r\n\r\n",
		"GET /a HTTP/1.1\r\nHost: x\r\nConnection: host, a, content-length, transfer-encoding\r\nContent-Length: 02\r\nA: b\r\n\r\nab" + wellFormed,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		in := bufio.NewReaderSize(bytes.NewReader(stream), bufferSize)
		for {
			text, err := readHead(in, nil, maxResponse)
			var h head
			if err == nil {
				err = h.parseRequest(string(text))
			}
			if err != nil || h.method == http.MethodConnect {
				return // it is refused
			}
			x := &exchange{request: &h, host: "h", flow: &flow{proxy: &Proxy{}, destination: netip.MustParseAddrPort("192.0.2.1:80")}}
			var sent bytes.Buffer
			out := bufio.NewWriter(&sent)
			x.writeRequest(out)
			content := bodyOf(&h, in)
			n, from, into := content.relay(out, h.chunked)
			if into != nil {
				t.Fatal(into)
			}
			out.Flush()
			reader := bufio.NewReader(&sent)
			request, err := http.ReadRequest(reader)
			if err != nil {
				t.Fatalf("net/http reads %q as %v", sent.Bytes(), err)
			}
			if request.Method != h.method || request.RequestURI != h.target || h.authority != "" && request.Host != h.authority {
				t.Fatalf("net/http reads %s %s of %s, sent was %+v", request.Method, request.RequestURI, request.Host, h)
			}
			body, err := io.ReadAll(request.Body)
			if (err == nil) != (from == nil) || int64(len(body)) != n {
				t.Fatalf("net/http reads a body of %d bytes, %v; sent were %d, %v", len(body), err, n, from)
			}
			if from != nil {
				return
			}
			if rest, _ := io.ReadAll(reader); len(rest) > 0 {
				t.Fatalf("behind the request is %q", rest)
			}
		}
	})
}

// A client that is silent between two requests has no buffers meanwhile, and is heard all
// the same.
func TestIdleClientsAreServed(t *testing.T) {
	b := newBench(t, benchConfig{upstream: upstream(t, false, echo), wake: 1})
	conn := tls.Client(b.dial("www.example.com:443"), &tls.Config{RootCAs: b.roots, ServerName: "www.example.com"})
	reader := bufio.NewReader(conn)
	for i := range 5 {
		for _, piece := range []string{"P", "OST /x HTTP/1.1\r\nHost: www.example.com\r\nContent-", "Length: 3\r\n\r\nabc"} {
			if _, err := io.WriteString(conn, piece); err != nil {
				t.Fatal(err)
			}
		}
		res, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if body, err := io.ReadAll(res.Body); err != nil || !strings.HasSuffix(string(body), " /x abc") {
			t.Errorf("request %d: %s, %v", i, body, err)
		}
	}
}
