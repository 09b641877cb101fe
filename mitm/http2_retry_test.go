package mitm

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"agentops/audit"

	"golang.org/x/net/http2"
)

// get are the fields of a request, and others.
func get(path string, fields ...string) []string {
	return append([]string{":method", "GET", ":scheme", "http", ":authority", "www.example.com", ":path", path}, fields...)
}

// framed is an upstream of HTTP/2 by prior knowledge: its n-th connection, from 0, is served
// by handle, and closed behind it.
func framed(t testing.TB, handle func(n int, f *frames)) string {
	t.Helper()
	return serveAll(t, func(n int, conn net.Conn) {
		preface := make([]byte, len(http2.ClientPreface))
		if _, err := io.ReadFull(conn, preface); err == nil {
			handle(n, framesOn(t, conn))
		}
	}).Addr().String()
}

// serve hands on each frame until the connection ends, or false is returned.
func (f *frames) serve(handle func(http2.Frame) bool) {
	for {
		frame, err := f.ReadFrame()
		if _, ok := errors.AsType[http2.StreamError](err); ok {
			continue
		}
		if err != nil || !handle(frame) {
			return
		}
	}
}

// answer answers every request in full.
func (f *frames) answer(status string) {
	f.serve(func(frame http2.Frame) bool {
		if head, ok := frame.(*http2.MetaHeadersFrame); ok {
			return f.head(head.StreamID, true, ":status", status) == nil
		}
		return true
	})
}

// Of an upstream that leaves, requests that it has not processed are served by another
// connection, and those that it has by this one.
func TestUnprocessedRequestsAreSentAgain(t *testing.T) {
	const requests = 4
	b := newBench(t, benchConfig{pins: []string{"*=" + framed(t, func(n int, f *frames) {
		_ = f.WriteSettings()
		if n > 0 {
			f.answer("201")
			return
		}
		seen := 0
		f.serve(func(frame http2.Frame) bool {
			if _, ok := frame.(*http2.MetaHeadersFrame); ok {
				if seen++; seen == requests {
					_ = f.WriteGoAway(3, http2.ErrCodeNo, nil)
					_ = f.head(1, true, ":status", "200")
					_ = f.head(3, true, ":status", "200")
				}
			}
			return true
		})
	})}})
	client := b.client("h2c")
	statuses := make(chan int, requests)
	for i := range requests {
		go func() {
			// Of those with a body the client is told, and asks again.
			request, err := http.NewRequest(map[bool]string{true: "GET", false: "POST"}[i%2 == 0], fmt.Sprintf("http://www.example.com/%d", i), strings.NewReader("body"[:i%2*4]))
			if err != nil {
				t.Error(err)
			}
			res, err := client.Do(request)
			if err != nil {
				t.Error(err)
				statuses <- 0
				return
			}
			res.Body.Close()
			statuses <- res.StatusCode
		}()
	}
	got := map[int]int{}
	for range requests {
		got[<-statuses]++
	}
	if got[200] != 2 || got[201] != 2 {
		t.Errorf("answered are %v", got)
	}
	if res, _ := b.get(client, "http://www.example.com/new"); res.StatusCode != 201 {
		t.Errorf("a new request got %d", res.StatusCode)
	}
}

// So is one whose stream was refused.
func TestARefusedStreamIsSentAgain(t *testing.T) {
	b := newBench(t, benchConfig{pins: []string{"*=" + framed(t, func(_ int, f *frames) {
		_ = f.WriteSettings()
		f.serve(func(frame http2.Frame) bool {
			if head, ok := frame.(*http2.MetaHeadersFrame); ok && head.StreamID == 1 {
				return f.WriteRSTStream(1, http2.ErrCodeRefusedStream) == nil
			} else if ok {
				return f.head(head.StreamID, true, ":status", "200") == nil
			}
			return true
		})
	})}})
	if got := plainFrames(t, b).request(1, get("/")...); got != "200" {
		t.Errorf("it ends with %s", got)
	}
	if requests := events[audit.HTTPRequest](b.recorder); len(requests) != 1 || requests[0].Status != 200 {
		t.Errorf("recorded %+v", requests)
	}
}

// Whoever takes no streams is not asked for ever.
func TestAnUpstreamThatTakesNoStreamsIsGivenUp(t *testing.T) {
	for name, greet := range map[string]func(*frames) error{
		"it leaves":  func(f *frames) error { return errors.Join(f.WriteSettings(), f.WriteGoAway(0, http2.ErrCodeNo, nil)) },
		"none":       func(f *frames) error { return f.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams}) },
		"it is gone": func(*frames) error { return io.EOF },
	} {
		t.Run(name, func(t *testing.T) {
			var dialled atomic.Int32
			b := newBench(t, benchConfig{pins: []string{"*=" + framed(t, func(_ int, f *frames) {
				dialled.Add(1)
				if greet(f) != nil {
					return
				}
				f.serve(func(frame http2.Frame) bool {
					if head, ok := frame.(*http2.MetaHeadersFrame); ok {
						return f.WriteRSTStream(head.StreamID, http2.ErrCodeRefusedStream) == nil
					}
					return true
				})
			})}})
			f := plainFrames(t, b)
			for i := range uint32(10) {
				if got := f.request(2*i+1, get("/")...); got != "502" && got != "stream REFUSED_STREAM" {
					t.Errorf("it ends with %s", got)
				}
			}
			if n := dialled.Load(); n > 10*2*mostTries || name == "none" && n > mostTries {
				t.Errorf("it was dialled %d times", n)
			}
		})
	}
}

// More streams than an upstream takes go to more connections, and none fails.
func TestMoreStreamsThanAnUpstreamTakes(t *testing.T) {
	const most, all = 10, 55
	for _, warm := range []bool{true} { // at first, clients are told of some that are refused, and ask again
		t.Run(fmt.Sprintf("warm: %t", warm), func(t *testing.T) {
			var mu sync.Mutex
			conns, open := map[string]int{}, 0
			full := make(chan struct{})
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/first" {
					return
				}
				mu.Lock()
				if conns[r.RemoteAddr]++; conns[r.RemoteAddr] > most {
					t.Errorf("%d streams on a connection", conns[r.RemoteAddr])
				}
				if open++; open == all {
					close(full)
				}
				mu.Unlock()
				<-full
			}))
			server.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: most}
			server.EnableHTTP2 = true
			server.StartTLS()
			t.Cleanup(server.Close)
			b := newBench(t, benchConfig{upstream: server})
			client := b.client("h2")
			if warm {
				b.get(client, "https://www.example.com/first")
			}
			var wg sync.WaitGroup
			for range all {
				wg.Go(func() {
					res, err := client.Get("https://www.example.com/")
					if err != nil {
						t.Error(err)
						return
					}
					res.Body.Close()
					if res.StatusCode != http.StatusOK {
						t.Errorf("status %d", res.StatusCode)
					}
				})
			}
			wg.Wait()
			if len(conns) != (all+most-1)/most {
				t.Errorf("there were %d connections", len(conns))
			}
		})
	}
}

// An upstream that has not said how many streams it takes gets no more than all take.
func TestBeforeAnUpstreamHasSaidHowManyStreamsItTakes(t *testing.T) {
	const all = 150
	seen := make(chan int)
	b := newBench(t, benchConfig{pins: []string{"*=" + framed(t, func(n int, f *frames) {
		f.serve(func(frame http2.Frame) bool {
			if _, ok := frame.(*http2.MetaHeadersFrame); ok {
				select {
				case seen <- n:
				case <-t.Context().Done():
					return false
				}
			}
			return true
		})
	})}})
	f := plainFrames(t, b)
	for i := range uint32(all) {
		if err := f.head(2*i+1, true, get("/")...); err != nil {
			t.Fatal(err)
		}
	}
	got := map[int]int{}
	for range all {
		got[<-seen]++
	}
	if got[0] != firstStreams || got[1] != all-firstStreams {
		t.Errorf("the connections got %v", got)
	}
}

// A client that speaks HTTP/2 is served by an upstream that has ceased to.
func TestAnUpstreamThatSpeaksHTTP2NoMore(t *testing.T) {
	var only1 atomic.Bool
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if only1.CompareAndSwap(false, r.URL.Path == "/last") && r.URL.Path == "/last" {
			w.Header().Set("Connection", "close")
		}
		_, _ = io.WriteString(w, r.Proto)
	}))
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if !only1.Load() {
			return nil, nil
		}
		config := server.TLS.Clone()
		config.NextProtos, config.GetConfigForClient = []string{"http/1.1"}, nil
		return config, nil
	}}
	server.StartTLS()
	t.Cleanup(server.Close)
	b := newBench(t, benchConfig{upstream: server})
	client := b.client("h2")
	for i, want := range []string{"HTTP/2.0", "HTTP/2.0", "HTTP/1.1", "HTTP/1.1"} {
		path := map[bool]string{true: "last", false: ""}[i == 1]
		if res, body := b.get(client, "https://www.example.com/"+path); body != want || res.Proto != want {
			t.Errorf("request %d is answered by %s, in %s", i, body, res.Proto)
		}
	}
	b.stop()
	requests := events[audit.HTTPRequest](b.recorder)
	if len(requests) != 6 || requests[3].Upstream != "" || requests[2].Upstream != "" || !strings.Contains(requests[2].Error, errOnlyHTTP1.Error()) {
		t.Errorf("recorded %+v", requests)
	}
}
