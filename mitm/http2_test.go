package mitm

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"agentops/audit"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames is a client of HTTP/2 that sends what it likes.
type frames struct {
	t *testing.T
	*http2.Framer
	conn   net.Conn
	stream uint32 // that is looked at
	block  bytes.Buffer
	fields *hpack.Encoder
}

func newFrames(t *testing.T, b *bench) *frames {
	t.Helper()
	return begin(t, tls.Client(b.dial("www.example.com:443"), &tls.Config{RootCAs: b.roots, ServerName: "www.example.com", NextProtos: []string{"h2"}}))
}

// plainFrames is one by prior knowledge.
func plainFrames(t *testing.T, b *bench, settings ...http2.Setting) *frames {
	t.Helper()
	return begin(t, b.dial("www.example.com:80"), settings...)
}

// begin sends what a client begins with.
func begin(t *testing.T, conn net.Conn, settings ...http2.Setting) *frames {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := framesOn(t, conn)
	if err := f.WriteSettings(settings...); err != nil {
		t.Fatal(err)
	}
	return f
}

// framesOn speaks frames of HTTP/2 on a connection, from either end.
func framesOn(t testing.TB, conn net.Conn) *frames {
	f := &frames{conn: conn, Framer: http2.NewFramer(conn, conn)}
	f.t, _ = t.(*testing.T)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.fields = hpack.NewEncoder(&f.block)
	return f
}

// head writes HEADERS with the given fields, names and values in turn.
func (f *frames) head(stream uint32, end bool, fields ...string) error {
	f.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		if err := f.fields.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			return err
		}
	}
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: f.block.Bytes(), EndHeaders: true, EndStream: end})
}

// request asks for something with the given fields, names and values in turn, and
// returns what became of it: its status, or the code with which its stream or the
// connection ends.
func (f *frames) request(stream uint32, fields ...string) string {
	f.t.Helper()
	return f.ask(stream, true, fields...)
}

// ask is request; whole: without a body.
func (f *frames) ask(stream uint32, whole bool, fields ...string) string {
	f.t.Helper()
	if err := f.head(stream, whole, fields...); err != nil {
		f.t.Fatal(err)
	}
	return f.outcome(stream)
}

// outcome is what becomes of a request.
func (f *frames) outcome(stream uint32) string {
	f.t.Helper()
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			f.t.Fatal(err)
		}
		if of := frame.Header().StreamID; of != stream && of != 0 {
			continue
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			return frame.PseudoValue("status")
		case *http2.RSTStreamFrame:
			return "stream " + frame.ErrCode.String()
		case *http2.GoAwayFrame:
			return "connection " + frame.ErrCode.String()
		}
	}
}

// What is malformed goes nowhere, ends with its stream, and is recorded; a request
// behind it is served.
func TestMalformedStreamsGoNowhere(t *testing.T) {
	b := newBench(t, benchConfig{upstream: upstream(t, true, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/good" {
			t.Errorf("the upstream got %s %s %v", r.Method, r.URL, r.Header)
		}
	})})
	const reset = "stream PROTOCOL_ERROR"
	pseudo := func(fields ...string) []string {
		return append([]string{":method", "GET", ":scheme", "https", ":authority", "www.example.com", ":path", "/bad"}, fields...)
	}
	for _, c := range []struct {
		fields []string
		want   string
	}{
		{pseudo("X-Upper", "a"), reset},
		{pseudo("a b", "c"), reset},
		{pseudo("a", "b\x00"), reset},
		{pseudo("a", "b\r\nhost: other.example.com"), reset},
		{pseudo(":path", "/other"), reset},
		{pseudo(":unknown", "a"), reset},
		{pseudo("a", "b", ":path", "/bad"), reset},
		{pseudo(":status", "200"), reset},
		{[]string{":method", "GET", ":scheme", "https", ":authority", "www.example.com"}, reset},
		{[]string{":method", "GET", ":authority", "www.example.com", ":path", "/bad"}, reset},
		{[]string{":method", "GET", ":scheme", "ftp", ":authority", "www.example.com", ":path", "/bad"}, reset},
		{[]string{":method", "GET", ":scheme", "https", ":authority", "user@www.example.com", ":path", "/bad"}, reset},
		{[]string{":method", "GET", ":scheme", "https", ":authority", "www.example.com", ":path", "bad"}, reset},
		{[]string{":method", "CONNECT", ":scheme", "https", ":authority", "www.example.com", ":path", "/bad"}, reset},
		{[]string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "www.example.com", ":path", "/bad"}, reset},
		{pseudo("connection", "close"), reset},
		{pseudo("keep-alive", "a"), reset},
		{pseudo("proxy-connection", "a"), reset},
		{pseudo("transfer-encoding", "chunked"), reset},
		{pseudo("upgrade", "websocket"), reset},
		{pseudo("te", "gzip"), reset},
	} {
		t.Run(fmt.Sprintf("%q", c.fields), func(t *testing.T) {
			before := len(events[audit.Refused](b.recorder))
			f := newFrames(t, b)
			if got := f.request(1, c.fields...); got != c.want {
				t.Errorf("it ends with %s, want %s", got, c.want)
			}
			if got := f.request(3, ":method", "GET", ":scheme", "https", ":authority", "www.example.com", ":path", "/good"); got != "200" {
				t.Errorf("the next ends with %s", got)
			}
			if refused := events[audit.Refused](b.recorder)[before:]; len(refused) != 1 || refused[0].Reason != "malformed" || !strings.HasPrefix(refused[0].Detail, "HTTP/2: ") {
				t.Errorf("recorded %+v", refused)
			}
		})
	}
	b.stop()
	for _, r := range events[audit.HTTPRequest](b.recorder) {
		if r.URL != "https://www.example.com/good" {
			t.Errorf("recorded %+v", r)
		}
	}
}

// Clients share an upstream's connection: who takes nothing of an answer does not keep
// others from theirs.
func TestAStalledClientStopsNobodyElse(t *testing.T) {
	b := newBench(t, benchConfig{upstream: upstream(t, true, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(make([]byte, 1<<20)) // the stalled ones are broken off
	})})
	const stalled = 2 * sharedWindow / streamWindow
	f := newFrames(t, b)
	for i := range uint32(stalled) {
		if got := f.request(2*i+1, ":method", "GET", ":scheme", "https", ":authority", "www.example.com", ":path", "/"); got != "200" {
			t.Fatalf("stream %d ends with %s", 2*i+1, got)
		}
	}
	if _, body := b.get(b.client("h2"), "https://www.example.com/"); len(body) != 1<<20 {
		t.Errorf("got %d bytes", len(body))
	}
}

// A window may be below nothing (RFC 9113, section 6.9.2). The end of a body takes no
// room in it.
func TestABodyEndsInAWindowBelowNothing(t *testing.T) {
	release := make(chan struct{})
	b := newBench(t, benchConfig{upstream: upstream(t, true, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "0123456789")
		_ = http.NewResponseController(w).Flush()
		<-release
	})})
	f := newFrames(t, b)
	if got := f.request(1, ":method", "GET", ":scheme", "https", ":authority", "www.example.com", ":path", "/"); got != "200" {
		t.Fatalf("it ends with %s", got)
	}
	f.await(func(frame http2.Frame) bool { _, ok := frame.(*http2.DataFrame); return ok })
	if err := f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
		t.Fatal(err)
	}
	f.await(func(frame http2.Frame) bool { s, ok := frame.(*http2.SettingsFrame); return ok && s.IsAck() })
	close(release)
	f.await(func(frame http2.Frame) bool { d, ok := frame.(*http2.DataFrame); return ok && d.StreamEnded() })
}

// Who has us answer, and does not read the answers, loses its connection before they fill
// the memory.
func TestUnreadAnswersEndTheConnection(t *testing.T) {
	b := newBench(t, benchConfig{upstream: plain(t, echo)})
	conn := b.dial("www.example.com:80")
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	out.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&out, nil)
	framer.AllowIllegalWrites = true
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	for range 10_000 { // of a stream that depends on itself
		if err := framer.WritePriority(1, http2.PriorityParam{StreamDep: 1}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := conn.Write(out.Bytes())
	for range 500 {
		if err == nil {
			_, err = conn.Write(out.Bytes()[len(out.Bytes())-10_000*14:])
		}
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("70 MB of questions end with %v", err)
	}
	await[audit.FlowClose](t, b.recorder, 1)
	if refused := events[audit.Refused](b.recorder); len(refused) != 1 || !strings.Contains(refused[0].Detail, "ENHANCE_YOUR_CALM") {
		t.Errorf("recorded %+v", refused)
	}
}

// await reads frames up to one.
func (f *frames) await(is func(http2.Frame) bool) {
	f.t.Helper()
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			f.t.Fatal(err)
		}
		if is(frame) {
			return
		}
	}
}
