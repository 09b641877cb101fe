package mitm

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"agentops/audit"

	"golang.org/x/net/http2"
)

// Who is slow to take an answer gets it all, also when its upstream is gone meanwhile.
func TestAnAnswerOutlivesItsUpstream(t *testing.T) {
	const size = 60 << 10
	whole := false // is the request
	for name, leave := range map[string]func(*frames) bool{
		"it ends":           func(*frames) bool { return false },
		"it says so":        func(f *frames) bool { return f.WriteGoAway(0, http2.ErrCodeInternal, nil) == nil },
		"it takes no more":  func(f *frames) bool { return f.WriteRSTStream(1, http2.ErrCodeCancel) == nil },
		"it says nonsense":  func(f *frames) bool { return f.WriteData(1, true, []byte("more")) == nil },
		"it breaks a frame": func(f *frames) bool { return f.WriteRawFrame(http2.FrameWindowUpdate, 0, 0, []byte{1}) == nil },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, benchConfig{pins: []string{"*=" + framed(t, func(n int, f *frames) {
				_ = f.WriteSettings()
				f.serve(func(frame http2.Frame) bool {
					head, ok := frame.(*http2.MetaHeadersFrame)
					switch {
					case !ok:
						return true
					case n > 0 || head.StreamID > 1:
						return f.head(head.StreamID, true, ":status", "204") == nil
					}
					_ = f.head(1, false, ":status", "200")
					for range 4 {
						_ = f.WriteData(1, false, make([]byte, size/4))
					}
					_ = f.WriteData(1, true, nil)
					return leave(f)
				})
			})}})
			f := plainFrames(t, b, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
			whole = !whole
			if err := f.head(1, whole, get("/")...); err != nil {
				t.Fatal(err)
			}
			f.await(func(frame http2.Frame) bool { d, ok := frame.(*http2.DataFrame); return ok && d.Length == 1 })
			// Another is served behind all that.
			if got := f.request(3, get("/")...); got != "204" {
				t.Errorf("the next ends with %s", got)
			}
			if err := f.WriteWindowUpdate(1, size); err != nil {
				t.Fatal(err)
			}
			got := 1
			f.await(func(frame http2.Frame) bool {
				switch frame := frame.(type) {
				case *http2.DataFrame:
					got += len(frame.Data())
					return frame.StreamEnded()
				case *http2.RSTStreamFrame:
					t.Fatalf("it is reset by %v behind %d bytes", frame.ErrCode, got)
				}
				return false
			})
			if got != size {
				t.Errorf("got %d bytes", got)
			}
			await[audit.HTTPRequest](t, b.recorder, 2)
			for _, r := range events[audit.HTTPRequest](b.recorder) {
				if r.Error != "" {
					t.Errorf("recorded %+v", r)
				}
			}
		})
	}
}

// An upstream that has left cannot keep its connection by what it says then.
func TestAConnectionThatIsLeftEnds(t *testing.T) {
	ended := make(chan struct{})
	b := newBench(t, benchConfig{pins: []string{"*=" + framed(t, func(_ int, f *frames) {
		defer close(ended)
		_ = f.WriteSettings()
		f.serve(func(frame http2.Frame) bool {
			if _, ok := frame.(*http2.MetaHeadersFrame); !ok {
				return true
			}
			_ = f.head(1, true, ":status", "200")
			// In one piece: the head, of a stream that is over, must be there when it leaves.
			var out bytes.Buffer
			leave := http2.NewFramer(&out, nil)
			_ = leave.WriteGoAway(1, http2.ErrCodeNo, nil)
			_ = leave.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88}, EndHeaders: false, EndStream: true})
			_ = leave.WriteContinuation(1, true, nil)
			_, _ = f.conn.Write(out.Bytes())
			return true
		})
	})}})
	if got := plainFrames(t, b).request(1, get("/")...); got != "200" {
		t.Errorf("it ends with %s", got)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the connection stays")
	}
}

// Fields count, whatever is in them.
func TestFieldsOfNothingAreCounted(t *testing.T) {
	b := newBench(t, benchConfig{pins: []string{"*=" + framed(t, func(_ int, f *frames) {
		_ = f.WriteSettings()
		f.answer("200")
	})}, limits: Limits{HeaderBytes: 4 << 10}})
	for count, want := range map[int]string{100: "stream PROTOCOL_ERROR", 200: "431", 300: "connection ENHANCE_YOUR_CALM"} {
		f := plainFrames(t, b)
		block := append([]byte{0x40, 0, 0}, bytes.Repeat([]byte{0x80 | 62}, count-1)...) // and again
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true, EndStream: true}); err != nil {
			t.Fatal(err)
		}
		if got := f.outcome(1); got != want {
			t.Errorf("%d fields end with %s, want %s", count, got, want)
		}
	}
}

// Heads do not pile up for an upstream that does not read.
func TestHeadsForAnUpstreamThatDoesNotRead(t *testing.T) {
	release := make(chan struct{})
	var dialled atomic.Int32
	again := make(chan struct{})
	b := newBench(t, benchConfig{pins: []string{"*=" + framed(t, func(n int, _ *frames) {
		if dialled.Add(1) == 2 {
			close(again)
		}
		<-release
	})}})
	defer close(release)
	f := plainFrames(t, b)
	go f.serve(func(http2.Frame) bool { return true })
	large := strings.Repeat("x", 15<<10)
	for i := range uint32(2000) { // 30 MB
		if err := errors.Join(f.head(2*i+1, true, get("/"+large)...), f.WriteRSTStream(2*i+1, http2.ErrCodeCancel)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-again:
			return // the first was given up
		default:
		}
	}
	t.Error("all of it waits for the upstream")
}

// Nor for a client.
func TestHeadsForAClientThatDoesNotRead(t *testing.T) {
	b := newBench(t, benchConfig{pins: []string{"*=" + framed(t, func(_ int, f *frames) {
		_ = f.WriteSettings()
		f.serve(func(frame http2.Frame) bool {
			if _, ok := frame.(*http2.MetaHeadersFrame); ok {
				for range 1500 {
					if f.head(1, false, ":status", "103", "link", strings.Repeat("x", 15<<10)) != nil {
						break
					}
				}
			}
			return true
		})
	})}})
	if err := plainFrames(t, b).head(1, true, get("/")...); err != nil {
		t.Fatal(err)
	}
	await[audit.FlowClose](t, b.recorder, 1)
	if closed := events[audit.FlowClose](b.recorder); closed[0].Error != errOverrun.Error() {
		t.Errorf("recorded %+v", closed[0])
	}
}

// What the kernel does not take is kept to an end.
func TestWhatIsHeldIsBounded(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSocket(conn.(tcpConn))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.hold(func() {})
	for range 30 {
		if _, err = s.Write(make([]byte, 1<<20)); err != nil {
			break
		}
	}
	if err == nil {
		t.Error("30 MB are kept")
	}
}

// What comes with a client's error is sent on, and with it what others have sent.
func TestAnErrorKeepsNobodyWaiting(t *testing.T) {
	got := make(chan struct{})
	b := newBench(t, benchConfig{pins: []string{"*=" + framed(t, func(_ int, f *frames) {
		_ = f.WriteSettings()
		f.serve(func(frame http2.Frame) bool {
			head, ok := frame.(*http2.MetaHeadersFrame)
			if ok && head.StreamID == 3 {
				close(got)
				return false
			}
			return !ok || f.head(1, true, ":status", "200") == nil
		})
	})}})
	b.proxy.limits.linger = time.Hour
	f := plainFrames(t, b)
	var out bytes.Buffer
	f.request(1, get("/")...) // the next finds the upstream connected
	both := framesOn(t, f.conn)
	both.Framer = http2.NewFramer(&out, nil)
	if err := errors.Join(both.head(3, true, get("/")...), both.WriteRawFrame(http2.FrameContinuation, 0, 3, nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.conn.Write(out.Bytes()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-got:
	case <-time.After(10 * time.Second):
		t.Error("the request waits for the client to go")
	}
	f.conn.Close()
}

// A stream that is ended for a malformed frame is over, with its record, and on an upstream's
// connection, with an answer.
func TestAMalformedPriorityEndsItsStream(t *testing.T) {
	t.Run("of a client", func(t *testing.T) {
		got := make(chan struct{})
		b := newBench(t, benchConfig{pins: []string{"*=" + framed(t, func(_ int, f *frames) {
			_ = f.WriteSettings()
			f.serve(func(frame http2.Frame) bool {
				if _, ok := frame.(*http2.MetaHeadersFrame); ok {
					close(got)
				}
				return true
			})
		})}})
		f := plainFrames(t, b)
		if err := f.head(1, true, get("/")...); err != nil {
			t.Fatal(err)
		}
		<-got
		if err := f.WriteRawFrame(http2.FramePriority, 0, 1, []byte{1}); err != nil {
			t.Fatal(err)
		}
		if got := f.outcome(1); got != "stream FRAME_SIZE_ERROR" {
			t.Errorf("it ends with %s", got)
		}
		await[audit.HTTPRequest](t, b.recorder, 1)
	})
	t.Run("of an upstream", func(t *testing.T) {
		b := newBench(t, benchConfig{pins: []string{"*=" + framed(t, func(_ int, f *frames) {
			f.AllowIllegalWrites = true
			_ = f.WriteSettings()
			f.serve(func(frame http2.Frame) bool {
				if head, ok := frame.(*http2.MetaHeadersFrame); ok {
					return f.WritePriority(head.StreamID, http2.PriorityParam{StreamDep: head.StreamID}) == nil
				}
				return true
			})
		})}})
		if got := plainFrames(t, b).request(1, get("/")...); got != "502" {
			t.Errorf("it ends with %s", got)
		}
	})
}
