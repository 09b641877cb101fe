package mitm

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"agentops/audit"
)

// scripted is an upstream that answers by the text: the how-manieth request of the
// how-manieth connection it is, both from 0. Behind an empty answer, and one that ends
// with "!", which is not sent, it closes the connection.
type scripted struct {
	net.Listener
	answer func(connection, request int, r *http.Request) string
	mu     sync.Mutex
	heads  []string // as they came
	wg     sync.WaitGroup
}

func newScripted(t *testing.T, answer func(connection, request int, r *http.Request) string) *scripted {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{Listener: listener, answer: answer}
	var conns []net.Conn
	s.wg.Go(func() {
		for n := 0; ; n++ {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			conns = append(conns, conn)
			s.mu.Unlock()
			s.wg.Go(func() {
				defer conn.Close()
				s.serve(conn, n)
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		s.mu.Lock()
		for _, conn := range conns {
			conn.Close()
		}
		s.mu.Unlock()
		s.wg.Wait()
	})
	return s
}

func (s *scripted) serve(conn net.Conn, connection int) {
	var seen bytes.Buffer
	reader := bufio.NewReaderSize(io.TeeReader(conn, &seen), 16)
	for request := 0; ; request++ {
		seen.Reset()
		r, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.heads = append(s.heads, seen.String())
		s.mu.Unlock()
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		text, closes := strings.CutSuffix(s.answer(connection, request, r), "!")
		if _, err := io.WriteString(conn, text); err != nil || closes || text == "" {
			return
		}
	}
}

func (s *scripted) bench(t *testing.T) *bench {
	t.Helper()
	return newBench(t, benchConfig{pins: []string{"*=" + s.Addr().String()}})
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// What could be read in two ways is read by nobody.
func TestMalformedResponsesAreNotPassedOn(t *testing.T) {
	for name, response := range map[string]string{
		"no HTTP":                       "SSH-2.0-x\r\n\r\n",
		"an empty line before it":       "\r\n" + ok,
		"another version":               "HTTP/2.0 200 OK\r\n\r\n",
		"a status that is none":         "HTTP/1.1 2000 OK\r\n\r\n",
		"a status below 100":            "HTTP/1.1 099 OK\r\n\r\n",
		"a signed status":               "HTTP/1.1 +20 OK\r\n\r\n",
		"two Content-Lengths":           "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
		"a signed Content-Length":       "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
		"a list of Content-Lengths":     "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
		"Content-Length and chunked":    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"another transfer coding":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n!",
		"two transfer codings":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunked in HTTP/1.0":           "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"a folded field":                "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nok",
		"a blank before the colon":      "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
		"a bare LF":                     "HTTP/1.1 200 OK\r\nA: b\nContent-Length: 2\r\n\r\nok",
		"a bare CR":                     "HTTP/1.1 200 OK\r\nA: b\rContent-Length: 2\r\n\r\nok",
		"a NUL":                         "HTTP/1.1 200 OK\r\nA: \x00\r\n\r\nok",
		"a head that is too large":      "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("b", maxResponse) + "\r\n\r\n",
		"half a head":                   "HTTP/1.1 200 OK\r\nContent-Le!",
		"nothing":                       "",
		"a trailer's framing announced": "HTTP/1.1 200 OK\r\nTrailer: Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"a protocol not asked for":      "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			b := newScripted(t, func(connection, request int, _ *http.Request) string {
				if connection > 0 || request > 0 {
					return ok
				}
				return response
			}).bench(t)
			conn := b.dial("www.example.com:80")
			reader := bufio.NewReader(conn)
			for i, want := range []int{502, 200} { // the client's connection is none the worse
				io.WriteString(conn, wellFormed)
				res, err := http.ReadResponse(reader, nil)
				if err != nil {
					t.Fatal(err)
				}
				if res.StatusCode != want {
					t.Errorf("response %d: %d", i, res.StatusCode)
				}
				io.Copy(io.Discard, res.Body)
			}
			conn.Close()
			b.stop()
			if r := events[audit.HTTPRequest](b.recorder); len(r) != 2 || r[0].Status != 502 || r[0].Error == "" || r[0].Upstream == "" || r[1].Status != 200 || r[1].Error != "" {
				t.Errorf("recorded %+v", r)
			}
		})
	}
}

// An end that is none is not made one.
func TestResponsesThatBreakOffAreSeenTo(t *testing.T) {
	for name, c := range map[string]struct{ response, version string }{
		"a length":                 {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nsome!", "1.1"},
		"chunks":                   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n!", "1.1"},
		"a chunk":                  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nsome!", "1.1"},
		"a malformed chunk":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsomething\r\n0\r\n\r\n", "1.1"},
		"a trailer that frames":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n0\r\nContent-Length: 4\r\n\r\n", "1.1"},
		"chunks for HTTP/1.0":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n!", "1.0"},
		"a length, for HTTP/1.0":   {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nsome!", "1.0"},
		"trailer without its end":  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n!", "1.1"},
		"a chunk without its CRLF": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome!", "1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newScripted(t, func(int, int, *http.Request) string { return c.response }).bench(t)
			conn := b.dial("www.example.com:80")
			fmt.Fprintf(conn, "GET / HTTP/%s\r\nHost: www.example.com\r\n\r\n", c.version)
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err == nil {
				_, err = io.ReadAll(res.Body)
			}
			if err == nil {
				t.Error("the client takes it for whole")
			}
			b.stop()
			if r := events[audit.HTTPRequest](b.recorder); len(r) != 1 || r[0].Error == "" {
				t.Errorf("recorded %+v", r)
			}
		})
	}
}

// A response goes on with the framing that its client understands.
func TestResponsesAreFramedForTheirClient(t *testing.T) {
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nsome\r\n0\r\nA: b\r\n\r\n"
	for name, c := range map[string]struct{ request, response, want string }{
		"chunks":                     {"GET / HTTP/1.1", chunked, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n0\r\nA: b\r\n\r\n"},
		"chunks for HTTP/1.0":        {"GET / HTTP/1.0", chunked, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nsome"},
		"chunks for HTTP/1.0, kept":  {"GET / HTTP/1.0\r\nConnection: keep-alive", chunked, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nsome"},
		"a length for HTTP/1.0":      {"GET / HTTP/1.0\r\nConnection: keep-alive", ok, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok"},
		"to the end":                 {"GET / HTTP/1.1", "HTTP/1.1 200 OK\r\n\r\nsome!", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n0\r\n\r\n"},
		"HTTP/1.0 to the end":        {"GET / HTTP/1.1", "HTTP/1.0 200 OK\r\nConnection: x\r\nX: y\r\n\r\nsome!", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n0\r\n\r\n"},
		"HEAD, and a body":           {"HEAD / HTTP/1.1", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"},
		"HEAD of chunks":             {"HEAD / HTTP/1.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"},
		"204 with a length":          {"GET / HTTP/1.1", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"},
		"304 with a length":          {"GET / HTTP/1.1", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"},
		"no reason":                  {"GET / HTTP/1.1", "HTTP/1.1 299\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n"},
		"interim ones":               {"GET / HTTP/1.1", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + ok, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + ok},
		"interim ones for HTTP/1.0":  {"GET / HTTP/1.0\r\nConnection: keep-alive", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok"},
		"what is of one connection":  {"GET / HTTP/1.1", "HTTP/1.1 200 OK\r\nkeep-alive: timeout=5\r\nContent-length: 2\r\nX: y\r\nZ: 1\r\nConnection: keep-alive, x, content-length\r\nz: 2\r\nUpgrade: h2c\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-length: 2\r\nZ: 1\r\nz: 2\r\n\r\nok"},
		"the client wants no other":  {"GET / HTTP/1.1\r\nConnection: close", ok, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"},
		"the upstream wants no more": {"GET / HTTP/1.1", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok!", ok},
	} {
		t.Run(name, func(t *testing.T) {
			b := newScripted(t, func(int, int, *http.Request) string { return c.response }).bench(t)
			conn := b.dial("www.example.com:80")
			fmt.Fprintf(conn, "%s\r\nHost: www.example.com\r\n\r\n", c.request)
			got := make([]byte, len(c.want))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != c.want {
				t.Fatalf("got %q, %v, want %q", got, err, c.want)
			}
			conn.CloseWrite()
			if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
				t.Errorf("behind it is %q, %v", rest, err)
			}
		})
	}
}

// A request goes on as it came, but for what is of one connection.
func TestRequestsKeepTheirFields(t *testing.T) {
	for request, want := range map[string]string{
		"GET /a HTTP/1.1\r\nx-b: 1\r\nhost: WWW.example.com\r\nX-B:2 \r\nUser-agent:  me\t\r\n\r\n":                                                                                                                              "GET /a HTTP/1.1\r\nx-b: 1\r\nhost: WWW.example.com\r\nX-B: 2\r\nUser-agent: me\r\n\r\n",
		"POST /b HTTP/1.1\r\nHost: www.example.com\r\nConnection: Host, x, Content-Length, keep-alive\r\nX: y\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nContent-Length: 01\r\nTE: gzip, trailers\r\nHTTP2-Settings: x\r\n\r\n_": "POST /b HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 1\r\nTE: trailers\r\n\r\n_",
		"POST /c HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: CHUNKED\r\nTrailer: A\r\n\r\n1;x\r\n_\r\n0\r\nA: b\r\n\r\n":                                                                                             "POST /c HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n1\r\n_\r\n0\r\nA: b\r\n\r\n",
		"GET http://www.example.com?x=http://y/ HTTP/1.1\r\nHost: www.example.com:80\r\n\r\n":                                                                                                                                    "GET /?x=http://y/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
		"POST /d HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n_":                                                                                                            "POST /d HTTP/1.1\r\nContent-Length: 1\r\nHost: www.example.com:8080\r\n\r\n_",
		"GET /e HTTP/1.1\r\nHost: www.example.com\r\nUpgrade: x\r\n\r\n":                                                                                                                                                         "GET /e HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
	} {
		s := newScripted(t, func(int, int, *http.Request) string { return ok })
		b := s.bench(t)
		port := "80"
		if strings.Contains(want, ":8080") {
			port = "8080"
		}
		conn := b.dial("www.example.com:" + port)
		io.WriteString(conn, request)
		if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 200 {
			t.Fatalf("%q: %+v, %v", request, res, err)
		}
		b.stop()
		s.Close()
		s.mu.Lock()
		if got := strings.Join(s.heads, ""); !strings.HasPrefix(want, got) || !strings.Contains(got, "\r\n\r\n") {
			t.Errorf("the upstream got %q, want %q", got, want)
		}
		s.mu.Unlock()
	}
}

// A connection that the upstream has kept may end as the next request comes. That is
// sent again if it may be, once.
func TestRequestsAreRepeatedOnDeadConnections(t *testing.T) {
	for _, c := range []struct {
		method string
		want   []int // of connections that die before the second request's answer
	}{
		{"GET", []int{200, 200, 502}}, {"DELETE", []int{200, 200, 502}}, {"POST", []int{200, 502, 502}},
	} {
		for dying, want := range c.want {
			b := newScripted(t, func(connection, request int, _ *http.Request) string {
				if request == 0 && connection == 0 || connection >= dying {
					return ok
				}
				return "" // as if it had not come
			}).bench(t)
			client := b.client("h1")
			b.get(client, "http://www.example.com/first")
			request, err := http.NewRequest(c.method, "http://www.example.com/second", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			res, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != want {
				t.Errorf("%s, %d connections die: %d, want %d", c.method, dying, res.StatusCode, want)
			}
			client.CloseIdleConnections()
			b.stop()
			if n := len(events[audit.HTTPRequest](b.recorder)); n != 2 {
				t.Errorf("%d requests recorded", n)
			}
		}
	}
}

// What an upstream says unasked is no answer to the next request, which goes to another
// connection.
func TestUnaskedResponsesAreNobodys(t *testing.T) {
	const forged = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
	for name, later := range map[string]bool{"with the response": false, "behind it": true} {
		t.Run(name, func(t *testing.T) {
			sent := make(chan struct{})
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				for n := 0; ; n++ {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					wg.Go(func() {
						defer conn.Close()
						reader := bufio.NewReader(conn)
						answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d", n)
						for {
							r, err := http.ReadRequest(reader)
							if err != nil {
								return
							}
							switch {
							case r.URL.Path != "/0":
								io.WriteString(conn, answer)
							case !later:
								io.WriteString(conn, answer+forged)
							default:
								io.WriteString(conn, answer)
								<-sent // the client has it
								io.WriteString(conn, forged)
								sent <- struct{}{}
							}
						}
					})
				}
			})
			b := newBench(t, benchConfig{pins: []string{"*=" + listener.Addr().String()}})
			client := b.client("h1")
			for i, want := range []string{"0", "1", "1"} { // connections
				if _, body := b.get(client, fmt.Sprintf("http://www.example.com/%d", i)); body != want {
					t.Errorf("request %d is answered with %q, want %s", i, body, want)
				}
				if later && i == 0 {
					sent <- struct{}{}
					<-sent
				}
			}
			b.stop()
			listener.Close()
		})
	}
}

// Who is refused has the answer, whatever is still to come of the request.
func TestRefusalsOfRequestsThatAreStillComing(t *testing.T) {
	b := newScripted(t, func(int, int, *http.Request) string {
		t.Error("the upstream was reached")
		return ok
	}).bench(t)
	for _, head := range []string{"Content-Length: 1000000\r\n", "Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\nContent-Length: 5\r\n"} {
		conn := b.dial("www.example.com:80")
		io.WriteString(conn, "POST / HTTP/1.1\r\nHost: other.example.com\r\n"+head+"\r\nsome")
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if problem := problemOf(t, res); res.StatusCode != 403 || problem["reason"] != "fronting" || !res.Close {
			t.Errorf("%q: %d %v, closes %t", head, res.StatusCode, problem, res.Close)
		}
		conn.Close()
	}
}

// An upstream that has had enough of a request is heard, and what would follow is not
// waited for.
func TestAnswersBeforeTheRequestsEnd(t *testing.T) {
	b := newBench(t, benchConfig{upstream: plain(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	})})
	conn := b.dial("www.example.com:80")
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 1000000\r\n\r\nsome")
	reader := bufio.NewReader(conn)
	res, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusRequestEntityTooLarge || !res.Close {
		t.Errorf("%d, closes %t", res.StatusCode, res.Close)
	}
	if _, err := reader.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("behind it: %v", err)
	}
	conn.Close()
	await[audit.FlowClose](t, b.recorder, 1)
	if r := events[audit.HTTPRequest](b.recorder); len(r) != 1 || r[0].Status != 413 || r[0].BytesSent != 4 {
		t.Errorf("recorded %+v", r)
	}
}

// FuzzResponses holds the strict reading against that of net/http.
func FuzzResponses(f *testing.F) {
	for _, seed := range []string{
		ok, "HTTP/1.0 200\r\n\r\nx", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n1;x\r\na\r\n0\r\nA: b\r\n\r\n",
		"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", "HTTP/1.1 200 OK\r\nConnection: close, content-length\r\nContent-Length: 03\r\n\r\nabc", "HTTP/1.1 304 \r\nKeep-Alive: x\r\nx:\t\x80\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		in := bufio.NewReaderSize(bytes.NewReader(stream), bufferSize)
		text, err := readHead(in, nil, maxResponse)
		var h head
		if err == nil {
			err = h.parseResponse(string(text))
		}
		if err != nil || h.status < 200 {
			return
		}
		h.bodiless = h.status == http.StatusNoContent || h.status == http.StatusNotModified
		chunked := !h.bodiless && h.length == noLength
		var sent bytes.Buffer
		out := bufio.NewWriter(&sent)
		h.writeResponse(out, chunked)
		endHead(out)
		content := bodyOf(&h, in)
		n, from, into := content.relay(out, chunked)
		if into != nil {
			t.Fatal(into)
		}
		out.Flush()
		reader := bufio.NewReader(&sent)
		res, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatalf("net/http reads %q as %v", sent.Bytes(), err)
		}
		body, err := io.ReadAll(res.Body)
		if res.StatusCode != h.status || (err == nil) != (from == nil) || int64(len(body)) != n {
			t.Fatalf("net/http reads %d and %d bytes, %v; sent were %d and %d, %v", res.StatusCode, len(body), err, h.status, n, from)
		}
		if rest, _ := io.ReadAll(reader); from == nil && len(rest) > 0 {
			t.Fatalf("behind the response is %q", rest)
		}
	})
}

// Bodies pass whole, whatever their size is to a buffer's or a record's, in both ways at
// once, and are counted.
func TestBodiesOfAnySizePass(t *testing.T) {
	b := newBench(t, benchConfig{upstream: upstream(t, false, func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		if r.ContentLength > 0 {
			w.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
		}
		io.Copy(w, r.Body)
	})})
	client := b.client("h1")
	sizes := []int{0, 1, 3000, bufferSize - 1, bufferSize, bufferSize + 1, 3*bufferSize - 7, 5 << 20}
	for _, size := range sizes {
		body := make([]byte, size)
		for i := range body {
			body[i] = byte(i ^ i>>8 ^ i>>16)
		}
		for _, chunked := range []bool{false, true} {
			request, err := http.NewRequest(http.MethodPost, "https://www.example.com/", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if chunked {
				request.ContentLength = -1
				request.Body = io.NopCloser(bytes.NewReader(body))
			}
			res, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("of %d bytes (chunked: %t) came back %d, %v", size, chunked, len(got), err)
			}
		}
	}
	client.CloseIdleConnections()
	b.stop()
	requests := events[audit.HTTPRequest](b.recorder)
	if len(requests) != 2*len(sizes) {
		t.Fatalf("%d requests recorded", len(requests))
	}
	for i, r := range requests {
		if size := int64(sizes[i/2]); r.BytesSent != size || r.BytesReceived != size || r.Error != "" {
			t.Errorf("recorded %+v", r)
		}
	}
}
