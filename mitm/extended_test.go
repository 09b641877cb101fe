package mitm

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"agentops/audit"
	"agentops/mitm/policy"

	"golang.org/x/net/http2"
)

const settingExtended http2.SettingID = 8 // SETTINGS_ENABLE_CONNECT_PROTOCOL

// websockets is an upstream that echoes what comes on a stream of an extended CONNECT,
// and answers all else with 404. offers has what each of its connections says of it.
func websockets(t *testing.T, seen chan<- string, offers ...bool) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.TLS = &tls.Config{NextProtos: []string{"h2", "http/1.1"}}
	connections := make(chan bool, len(offers))
	for _, offer := range offers {
		connections <- offer
	}
	s.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
		"h2": func(_ *http.Server, conn *tls.Conn, _ http.Handler) {
			defer conn.Close()
			if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err == nil {
				echoStreams(framesOn(t, conn), <-connections, seen)
			}
		},
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func echoStreams(f *frames, offer bool, seen chan<- string) {
	var settings []http2.Setting
	if offer {
		settings = append(settings, http2.Setting{ID: settingExtended, Val: 1})
	}
	if f.WriteSettings(settings...) != nil {
		return
	}
	f.serve(func(frame http2.Frame) bool {
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			protocol := frame.PseudoValue("protocol")
			seen <- fmt.Sprint(frame.PseudoValue("method"), " ", protocol, " ", frame.PseudoValue("scheme"), "://", frame.PseudoValue("authority"), frame.PseudoValue("path"))
			if protocol == "" {
				return f.head(frame.StreamID, true, ":status", "404") == nil
			}
			return f.head(frame.StreamID, false, ":status", "200") == nil
		case *http2.DataFrame:
			err := f.WriteData(frame.StreamID, frame.StreamEnded(), frame.Data())
			return err == nil && (!frame.StreamEnded() || string(frame.Data()) != "leave")
		}
		return true
	})
}

// offered returns what the peer says of extended CONNECT in its first frame.
func (f *frames) offered() (value uint32, said bool) {
	f.t.Helper()
	frame, err := f.ReadFrame()
	if err != nil {
		f.t.Fatal(err)
	}
	settings, ok := frame.(*http2.SettingsFrame)
	if !ok || settings.NumSettings() == 0 {
		f.t.Fatalf("the first frame is %v", frame)
	}
	return settings.Value(settingExtended)
}

// connect asks for a WebSocket, and returns what became of it.
func (f *frames) connect(stream uint32, path string) string {
	f.t.Helper()
	return f.ask(stream, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "www.example.com", ":path", path, "sec-websocket-version", "13")
}

// echoed sends data on a stream and expects it back.
func (f *frames) echoed(stream uint32, text string, last bool) {
	f.t.Helper()
	if err := f.WriteData(stream, last, []byte(text)); err != nil {
		f.t.Fatal(err)
	}
	got := ""
	f.await(func(frame http2.Frame) bool {
		d, ok := frame.(*http2.DataFrame)
		if ok && d.StreamID == stream {
			got += string(d.Data())
		}
		return ok && len(got) >= len(text) && d.StreamEnded() == last
	})
	if got != text {
		f.t.Errorf("got %q back", got)
	}
}

// A WebSocket over HTTP/2 (RFC 8441) goes out as it came in, and its bytes are counted.
func TestWebSocketsOverHTTP2(t *testing.T) {
	seen := make(chan string, 10)
	b := newBench(t, benchConfig{upstream: websockets(t, seen, true)})
	f := newFrames(t, b)
	if value, said := f.offered(); !said || value != 1 {
		t.Fatalf("offered is %d, %t", value, said)
	}
	if got := f.connect(1, "/chat?room=1"); got != "200" {
		t.Fatalf("it ends with %s", got)
	}
	if got, want := <-seen, "CONNECT websocket https://www.example.com/chat?room=1"; got != want {
		t.Errorf("the upstream got %q, want %q", got, want)
	}
	// It is no HTTP, and nobody takes it for such.
	f.echoed(1, "\x81\x01\nGET / HTTP/9.9\r\n\r\n", false)
	f.echoed(1, strings.Repeat("x", 1000), false)
	f.echoed(1, "bye", true)
	await[audit.HTTPRequest](t, b.recorder, 1)
	r := events[audit.HTTPRequest](b.recorder)[0]
	const bytes = int64(len("\x81\x01\nGET / HTTP/9.9\r\n\r\n") + 1000 + len("bye"))
	if r.Method != "CONNECT" || r.URL != "https://www.example.com/chat?room=1" || r.Status != 200 || r.BytesSent != bytes || r.BytesReceived != bytes || r.Error != "" {
		t.Errorf("recorded %+v", r)
	}
}

// A rule for GET is for WebSockets over either version, and one for other methods for none.
func TestWebSocketsOverHTTP2AreJudged(t *testing.T) {
	seen := make(chan string, 10)
	rule := func(text string) policy.Rule {
		r, err := policy.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	b := newBench(t, benchConfig{upstream: websockets(t, seen, true), policy: policy.Policy{
		Mode: policy.Strict, Allow: []policy.Rule{rule("GET www.example.com/get/**"), rule("POST www.example.com/post"), rule("www.example.com/any/**")},
		Deny: []policy.Rule{rule("GET www.example.com/any/denied")},
	}})
	f := newFrames(t, b)
	for i, c := range []struct{ path, want string }{{"/get/a", "200"}, {"/any/a", "200"}, {"/any/denied", "403"}, {"/post", "403"}, {"/other", "403"}} {
		if got := f.connect(uint32(2*i+1), c.path); got != c.want {
			t.Errorf("%s ends with %s, want %s", c.path, got, c.want)
		}
	}
	if n := len(seen); n != 2 {
		t.Errorf("the upstream got %d", n)
	}
}

// What is not offered is not taken, and what is offered no more comes back with words.
func TestWebSocketsOverHTTP2WantAnOffer(t *testing.T) {
	seen := make(chan string, 10)
	b := newBench(t, benchConfig{upstream: websockets(t, seen, true, false)})
	f := newFrames(t, b)
	if got := f.connect(1, "/"); got != "200" {
		t.Fatalf("it ends with %s", got)
	}
	f.echoed(1, "leave", true)
	await[audit.HTTPRequest](t, b.recorder, 1)
	b.proxy.upstreams.serving.Wait() // the connection is gone
	if got := f.connect(3, "/"); got != "502" {
		t.Errorf("it ends with %s where the upstream offers it no more", got)
	}
	late := newFrames(t, b)
	if _, said := late.offered(); said {
		t.Error("it is offered where the upstream does not")
	}
	if got := late.connect(1, "/"); got != "stream PROTOCOL_ERROR" {
		t.Errorf("it ends with %s where it is not offered", got)
	}
	if n := len(seen); n != 1 {
		t.Errorf("the upstream got %d", n)
	}
}
