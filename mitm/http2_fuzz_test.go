package mitm

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"agentops/audit"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// script are frames that one side sends.
type script struct {
	bytes.Buffer
	*http2.Framer
	block  bytes.Buffer
	fields *hpack.Encoder
}

// spelled is what a script has written.
func spelled(write func(s *script)) []byte {
	s := &script{}
	s.Framer = http2.NewFramer(&s.Buffer, nil)
	s.AllowIllegalWrites = true
	s.fields = hpack.NewEncoder(&s.block)
	write(s)
	return s.Bytes()
}

// head are HEADERS, with the rest of their flags and fields.
func (s *script) head(stream uint32, end bool, fields ...string) {
	_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: s.encode(fields...), EndHeaders: true, EndStream: end})
}

func (s *script) encode(fields ...string) []byte {
	s.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = s.fields.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}) // into memory
	}
	return s.block.Bytes()
}

func post(path string, fields ...string) []string {
	return append([]string{":method", "POST", ":scheme", "http", ":authority", "www.example.com", ":path", path}, fields...)
}

// both are frames that either side may send.
var both = []func(*script){
	func(s *script) { _ = s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}) },
	func(s *script) {
		_ = s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	},
	func(s *script) { _ = s.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0}) },
	func(s *script) { _ = s.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0}) },
	func(s *script) { _ = s.WriteSettingsAck() },
	func(s *script) { _ = s.WritePing(false, [8]byte{1}) },
	func(s *script) { _ = s.WriteGoAway(1, http2.ErrCodeNo, []byte("bye")) },
	func(s *script) { _ = s.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil) },
	func(s *script) { _ = s.WriteRSTStream(1, http2.ErrCodeRefusedStream) },
	func(s *script) { _ = s.WriteRSTStream(3, http2.ErrCodeNo) },
	func(s *script) { _ = s.WriteRSTStream(99, http2.ErrCodeCancel) },
	func(s *script) { _ = s.WriteWindowUpdate(0, 1<<31-1) },
	func(s *script) { _ = s.WriteWindowUpdate(1, 1<<31-1) },
	func(s *script) { _ = s.WriteWindowUpdate(3, 0) },
	func(s *script) { _ = s.WritePriority(1, http2.PriorityParam{StreamDep: 1}) },
	func(s *script) {
		_ = s.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: s.encode(get("/p")...), EndHeaders: true})
	},
	func(s *script) { _ = s.WriteData(0, true, []byte("x")) },
	func(s *script) { _ = s.WriteContinuation(1, true, []byte{0x82}) },
	func(s *script) {
		_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff}, EndHeaders: true})
	},
	func(s *script) { _ = s.WriteRawFrame(http2.FramePing, 0, 0, []byte("short")) },
	func(s *script) { _ = s.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPadded, 1, []byte{9, 0x82}) },
	func(s *script) { _ = s.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{9}) },
	func(s *script) { _ = s.WriteRawFrame(0xbe, 0xff, 1, []byte("unknown")) },
	func(s *script) { _, _ = s.Write([]byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1}) },
}

// seeds are the given scripts, and those with each frame of both behind the first.
func seeds(f *testing.F, scripts ...func(*script)) {
	for _, write := range scripts {
		f.Add(spelled(func(s *script) { _ = s.WriteSettings(); write(s) }))
	}
	for _, odd := range both {
		f.Add(spelled(func(s *script) { _ = s.WriteSettings(); scripts[0](s); odd(s); scripts[1](s) }))
	}
}

// Whatever frames a client sends, nothing panics, its connection ends, and all that the
// upstream understands is recorded.
func FuzzHTTP2Client(f *testing.F) {
	seeds(f,
		func(s *script) { s.head(1, true, get("/1")...) },
		func(s *script) {
			s.head(3, false, post("/3", "content-length", "6", "te", "trailers")...)
			_ = s.WriteDataPadded(3, false, []byte("abc"), []byte{0, 0})
			_ = s.WriteData(3, true, []byte("def"))
		},
		func(s *script) {
			s.head(1, false, post("/t", "trailer", "a")...)
			_ = s.WriteData(1, false, []byte("abc"))
			s.head(1, true, "a", "b")
		},
		func(s *script) {
			block := s.encode(get("/c", "a", "b")...)
			_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:3], EndStream: true, PadLength: 3, Priority: http2.PriorityParam{StreamDep: 3}})
			_ = s.WriteContinuation(1, false, block[3:5])
			_ = s.WriteContinuation(1, true, block[5:])
		},
		func(s *script) { s.head(1, true, get("/x", "host", "evil.test")...) },
		func(s *script) {
			s.head(1, false, post("/l", "content-length", "2")...)
			_ = s.WriteData(1, true, []byte("abc"))
		},
		func(s *script) { s.head(1, true, get("/e", "a", "b\r\nc: d", ":path", "/f")...) },
		func(s *script) { s.head(1, false, get("/two")...); s.head(1, true, get("/other")...) },
		func(s *script) { s.head(5, true, get("/5")...); s.head(3, true, get("/3")...) },
	)
	var mu sync.Mutex
	var got []request
	server := unencrypted(f, func(_ http.ResponseWriter, r *http.Request) {
		seen, err := understood(r.Method, r.Host, r.RequestURI)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			seen.url = err.Error() // which is recorded nowhere
		}
		got = append(got, seen)
	})
	b := newBench(f, benchConfig{upstream: server})
	b.proxy.limits.linger = 10 * time.Millisecond
	mark := spelled(func(s *script) { _ = s.WritePing(false, [8]byte{7: 0x77}) })
	f.Fuzz(func(t *testing.T, said []byte) {
		conn := b.dialFor(t, "www.example.com:80")
		defer conn.Close()
		_, _ = conn.Write(slices.Concat([]byte(http2.ClientPreface), said, mark))
		marked := make(chan struct{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			through := false
			framesOn(t, conn).serve(func(frame http2.Frame) bool {
				if ping, ok := frame.(*http2.PingFrame); ok && ping.IsAck() && ping.Data[7] == 0x77 && !through {
					through = true
					close(marked)
				}
				return true
			})
			drain(conn)
		}()
		select {
		case <-marked: // all was read
		case <-ended:
		case <-time.After(20 * time.Millisecond): // the mark is part of something
		}
		_ = conn.CloseWrite()
		<-ended
		conn.Close()
		b.settle(t)
		mu.Lock()
		forwarded := got
		got = nil
		mu.Unlock()
		b.checkAnyOrder(t, forwarded)
	})
}

func drain(conn net.Conn) {
	p := make([]byte, 4<<10)
	for {
		if _, err := conn.Read(p); err != nil {
			return
		}
	}
}

// checkAnyOrder finds a record for each request that has come to the upstream. One that
// its client took back may come late.
func (b *bench) checkAnyOrder(t *testing.T, forwarded []request) {
	t.Helper()
	for _, e := range events[audit.HTTPRequest](b.recorder) {
		b.late = append(b.late, request{e.Method, e.URL})
	}
	for _, r := range forwarded {
		i := slices.Index(b.late, r)
		if i < 0 {
			t.Fatalf("the upstream got %q, recorded is %q", r, b.late)
		}
		b.late = slices.Delete(b.late, i, i+1)
	}
	b.late = b.late[max(0, len(b.late)-1000):]
	if opened, closed := events[audit.FlowOpen](b.recorder), events[audit.FlowClose](b.recorder); len(opened) != 1 || len(closed) != 1 {
		t.Errorf("of one flow are recorded %+v, %+v", opened, closed)
	}
}

// Whatever frames an upstream sends, nothing panics, each request comes to an end, and is
// recorded with the status that its client got.
func FuzzHTTP2Upstream(f *testing.F) {
	seeds(f,
		func(s *script) { s.head(1, true, ":status", "204") },
		func(s *script) {
			s.head(3, false, ":status", "103", "link", "a")
			s.head(3, false, ":status", "200", "content-length", "6")
			_ = s.WriteDataPadded(3, false, []byte("abc"), []byte{0, 0})
			_ = s.WriteData(3, true, []byte("def"))
		},
		func(s *script) {
			s.head(1, false, ":status", "200", "trailer", "a")
			_ = s.WriteData(1, false, []byte("abc"))
			s.head(1, true, "a", "b")
		},
		func(s *script) {
			block := s.encode(":status", "404", "a", "b")
			_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block[:2], EndStream: true, PadLength: 3})
			_ = s.WriteContinuation(3, true, block[2:])
		},
		func(s *script) { s.head(1, true, ":status", "101") },
		func(s *script) {
			s.head(1, false, ":status", "200", "content-length", "2")
			_ = s.WriteData(1, true, []byte("abc"))
		},
		func(s *script) { s.head(1, true, ":status", "200", "a", "b\r\nc: d") },
		func(s *script) { s.head(1, true, ":status", "200"); s.head(1, true, ":status", "201") },
		func(s *script) { s.head(2, true, ":status", "200"); s.head(5, true, ":status", "200") },
	)
	var says atomic.Pointer[[]byte]
	address := framed(f, func(_ int, f *frames) {
		heads := 0
		f.serve(func(frame http2.Frame) bool {
			if _, ok := frame.(*http2.MetaHeadersFrame); ok {
				heads++
				_ = f.conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond)) // one may come alone
			}
			return heads < 2
		})
		_ = f.conn.SetReadDeadline(time.Time{})
		_, _ = f.conn.Write(*says.Load())
		_ = f.conn.(closeWriter).CloseWrite()
		drain(f.conn)
	})
	b := newBench(f, benchConfig{pins: []string{"*=" + address}, limits: Limits{HeaderTimeout: time.Second}})
	b.proxy.limits.linger = 10 * time.Millisecond
	asks := slices.Concat([]byte(http2.ClientPreface), spelled(func(s *script) {
		_ = s.WriteSettings()
		s.head(1, true, get("/1")...)
		s.head(3, false, post("/3")...)
		_ = s.WriteData(3, true, []byte("body"))
	}))
	f.Fuzz(func(t *testing.T, said []byte) {
		says.Store(&said)
		conn := b.dialFor(t, "www.example.com:80")
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, err := conn.Write(asks)
		statuses, open := map[string]int{}, 2
		c := framesOn(t, conn)
		c.serve(func(frame http2.Frame) bool {
			url := "http://www.example.com/" + strconv.Itoa(int(frame.Header().StreamID))
			ended := false
			switch frame := frame.(type) {
			case *http2.MetaHeadersFrame:
				if status, err := strconv.Atoi(frame.PseudoValue("status")); err == nil && status >= 200 {
					statuses[url] = status
				}
				ended = frame.StreamEnded()
			case *http2.DataFrame:
				ended = frame.StreamEnded()
			case *http2.RSTStreamFrame:
				ended = true
			}
			if ended {
				open--
			}
			return open > 0
		})
		if open > 0 {
			t.Errorf("%d requests have no end", open)
		}
		conn.Close()
		b.settle(t)
		recorded := events[audit.HTTPRequest](b.recorder)
		if len(recorded) != 2 || recorded[0].URL == recorded[1].URL {
			t.Errorf("recorded %+v, %v", recorded, errors.Join(err))
		}
		for _, r := range recorded {
			if status := statuses[r.URL]; status != 0 && status != r.Status {
				t.Errorf("answered was %d, recorded %+v", status, r)
			}
		}
	})
}
