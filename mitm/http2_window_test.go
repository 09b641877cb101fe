package mitm

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// sender sends bodies as fast as its peer's windows let it.
type sender struct {
	*frames
	initial, link int
	streams       map[uint32]*sent
}

// sent is one body.
type sent struct{ left, window, peak int }

func newSender(f *frames) *sender {
	return &sender{frames: f, initial: defaultWindow, link: defaultWindow, streams: make(map[uint32]*sent)}
}

// begin sends size bytes on a stream, as they may go.
func (s *sender) begin(stream uint32, size int) {
	s.streams[stream] = &sent{left: size, window: s.initial}
}

// took notes what the peer takes, and sends that.
func (s *sender) took(frame http2.Frame) error {
	switch frame := frame.(type) {
	case *http2.SettingsFrame:
		if value, ok := frame.Value(http2.SettingInitialWindowSize); ok {
			s.initial = int(value)
		}
	case *http2.WindowUpdateFrame:
		if frame.StreamID == 0 {
			s.link += int(frame.Increment)
		} else if to := s.streams[frame.StreamID]; to != nil {
			to.window += int(frame.Increment)
		}
	}
	for id, to := range s.streams {
		for to.peak = max(to.peak, to.window); to.left > 0 && to.window > 0 && s.link > 0; {
			n := min(to.left, to.window, s.link, maxFrame)
			to.left, to.window, s.link = to.left-n, to.window-n, s.link-n
			if err := s.WriteData(id, to.left == 0, make([]byte, n)); err != nil {
				return err
			}
		}
	}
	return nil
}

// An upstream may send the more ahead the faster it is taken, up to a bound for a stream, and
// another for all of a client's connection.
func TestWindowsOfUpstreamsGrowToTheirBounds(t *testing.T) {
	const streams, size, taken = 8, 12 << 20, 4 << 20 // they do not end
	peaks := make(chan []int, 1)
	b := newBench(t, benchConfig{pins: []string{"*=" + framed(t, func(_ int, f *frames) {
		s := newSender(f)
		if f.WriteSettings() != nil {
			return
		}
		f.serve(func(frame http2.Frame) bool {
			if head, ok := frame.(*http2.MetaHeadersFrame); ok {
				if head.PseudoValue("path") == "/peaks" {
					var all []int
					for _, to := range s.streams {
						all = append(all, to.peak)
					}
					peaks <- all
					return f.head(head.StreamID, true, ":status", "200") == nil
				}
				_ = f.head(head.StreamID, false, ":status", "200")
				s.begin(head.StreamID, size)
			}
			return s.took(frame) == nil
		})
	})}})
	client := b.client("h2c")
	for range streams {
		res, err := client.Get("http://www.example.com/")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close() // it stays open
		if _, err := io.CopyN(io.Discard, res.Body, taken); err != nil {
			t.Fatal(err)
		}
	}
	b.get(client, "http://www.example.com/peaks")
	all, most := 0, 0
	for _, peak := range <-peaks {
		all, most = all+peak-streamWindow, max(most, peak)
	}
	if most <= streamWindow || most > mostAhead || all > mostGrown {
		t.Errorf("the largest window is of %d bytes, and beyond the first all are of %d", most, all)
	}
}

// What a client may send ahead is bounded.
func TestWindowsOfAClient(t *testing.T) {
	const size = 4 << 20
	b := newBench(t, benchConfig{upstream: plain(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		w.Header().Set("Got", fmt.Sprint(n, err))
	})})
	f := plainFrames(t, b)
	s := newSender(f)
	f.await(func(frame http2.Frame) bool {
		if err := s.took(frame); err != nil {
			t.Fatal(err)
		}
		return s.initial == streamWindow
	})
	if err := f.head(1, false, post("/")...); err != nil {
		t.Fatal(err)
	}
	s.begin(1, size)
	most := 0
	f.await(func(frame http2.Frame) bool {
		if err := s.took(frame); err != nil {
			t.Fatal(err)
		}
		most = max(most, s.link)
		head, ok := frame.(*http2.MetaHeadersFrame)
		if ok {
			for _, field := range head.RegularFields() {
				if field.Name == "got" && field.Value != fmt.Sprint(size, nil) {
					t.Errorf("got %s", field.Value)
				}
			}
		}
		return ok
	})
	if peak := s.streams[1].peak; peak <= defaultWindow || peak > streamWindow || most > linkWindow {
		t.Errorf("the largest windows are of %d bytes, and %d in all", peak, most)
	}
}

// expect reads data of a stream until there are n bytes, and fails if there are more.
func (f *frames) expect(n int) {
	f.t.Helper()
	got, marked := 0, false
	f.await(func(frame http2.Frame) bool {
		switch frame := frame.(type) {
		case *http2.DataFrame:
			got += len(frame.Data())
		case *http2.PingFrame:
			return frame.IsAck()
		}
		if got >= n && !marked {
			marked = true
			if err := f.WritePing(false, [8]byte{}); err != nil {
				f.t.Error(err)
			}
		}
		return false
	})
	if got != n {
		f.t.Errorf("got %d bytes, want %d", got, n)
	}
}

// steps changes the windows of a stream on which 100 bytes are sent, to which 10 may go at
// first: up, below nothing, and up again.
func (f *frames) steps() {
	initial := func(n uint32) {
		if err := f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: n}); err != nil {
			f.t.Error(err)
		}
	}
	f.expect(10)
	initial(30)
	f.expect(20)
	initial(5)
	f.expect(0)
	for _, step := range []struct{ more, want int }{{30, 5}, {65, 65}} {
		if err := f.WriteWindowUpdate(f.stream, uint32(step.more)); err != nil {
			f.t.Error(err)
		}
		f.expect(step.want)
	}
}

// Windows change as their peer says, of streams that are under way, too.
func TestWindowsThatChangeUnderWay(t *testing.T) {
	ten := http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10}
	t.Run("of a client", func(t *testing.T) {
		b := newBench(t, benchConfig{upstream: plain(t, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Repeat("x", 100))
		})})
		f := plainFrames(t, b, ten)
		f.stream = 1
		if err := f.head(1, true, get("/")...); err != nil {
			t.Fatal(err)
		}
		f.steps()
	})
	t.Run("of an upstream", func(t *testing.T) {
		done := make(chan struct{})
		b := newBench(t, benchConfig{pins: []string{"*=" + framed(t, func(_ int, f *frames) {
			_ = f.WriteSettings(ten)
			f.serve(func(frame http2.Frame) bool {
				head, ok := frame.(*http2.MetaHeadersFrame)
				if ok && head.PseudoValue("path") == "/body" {
					f.stream = head.StreamID
					f.steps()
					close(done)
				}
				return !ok || f.head(head.StreamID, true, ":status", "200") == nil
			})
		})}})
		client := b.client("h2c")
		b.get(client, "http://www.example.com/") // its settings are known behind this
		res, err := client.Post("http://www.example.com/body", "text/plain", strings.NewReader(strings.Repeat("x", 100)))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		<-done
	})
}
