package mitm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/net/http2/hpack"
)

// data takes DATA, in pieces as they come.
func (l *link) data(f frame) error {
	h, err := l.half(f)
	if err != nil {
		return err
	}
	padding, left := 0, f.length
	if f.has(flagPadded) {
		b, err := l.in.ReadByte()
		if err != nil {
			return err
		}
		left--
		if padding = int(b); f.length == 0 || padding > left {
			return &connectionError{codeProtocol, "more padding than there is frame"}
		}
		left -= padding
	}
	l.mu.Lock()
	l.inflow -= int64(f.length)
	over := l.inflow < 0
	late := h == nil || h.received
	if !late {
		h.inflow -= int64(f.length)
		over = over || h.inflow < 0
	}
	l.mu.Unlock()
	if over {
		return &connectionError{codeFlowControl, "more data than its window takes"}
	}
	if l.shared {
		l.credit(nil, int64(f.length))
	}
	if h != nil || !l.shared {
		l.credit(h, int64(f.length-left))
	}
	if late {
		if !l.shared {
			l.credit(nil, int64(left))
		}
		if _, err := l.in.Discard(left + padding); err != nil {
			return err
		}
		e := &connectionError{codeStreamClosed, "data behind the end of its stream"}
		if h != nil {
			return l.end.broken(f.stream, h, e)
		}
		l.reset(f.stream, codeStreamClosed)
		return nil
	}
	for {
		if left > 0 {
			if _, err := l.in.Peek(1); err != nil {
				return err
			}
		}
		p, _ := l.in.Peek(min(left, l.in.Buffered()))
		left -= len(p)
		last := left == 0 && f.has(flagEndStream)
		if len(p) > 0 || last {
			if last {
				l.mu.Lock()
				h.received = true
				l.mu.Unlock()
			}
			if err := h.stream.data(l, h, p, last); err != nil {
				return err
			}
		}
		_, _ = l.in.Discard(len(p))
		if left == 0 {
			_, err := l.in.Discard(padding)
			return err
		}
	}
}

// header takes HEADERS and what continues it.
func (l *link) header(f frame) error {
	if f.stream == 0 {
		return &connectionError{codeProtocol, "HEADERS on stream 0"}
	}
	begin, rest := f, 0
	if f.has(flagPadded) {
		b, err := l.in.ReadByte()
		if err != nil {
			return err
		}
		f.length--
		rest = int(b)
	}
	itself := false
	if f.has(flagPriority) {
		p, err := l.in.Peek(sizeOfPriority)
		if err != nil {
			return err
		}
		itself = binary.BigEndian.Uint32(p)&maxStreamID == f.stream
		_, _ = l.in.Discard(sizeOfPriority)
		f.length -= sizeOfPriority
	}
	if f.length -= rest; f.length < 0 {
		return &connectionError{codeProtocol, "more padding than there is frame"}
	}
	l.fields, l.size = l.fields[:0], 0
	for n := 0; ; n++ {
		for f.length > 0 {
			if l.in.Buffered() == 0 {
				if err := l.conn.SetReadDeadline(time.Now().Add(l.proxy.config.Limits.HeaderTimeout)); err != nil {
					return err
				}
			}
			if _, err := l.in.Peek(1); err != nil {
				return err
			}
			p, _ := l.in.Peek(min(f.length, l.in.Buffered()))
			if _, err := l.decoder.Write(p); err != nil {
				return l.notDecoded(err)
			}
			f.length -= len(p)
			_, _ = l.in.Discard(len(p))
		}
		if _, err := l.in.Discard(rest); err != nil {
			return err
		}
		if l.size > 2*l.most || n > l.most/maxFrame+64 {
			return &connectionError{codeCalm, fmt.Sprintf("a head of more than %d bytes", 2*l.most)}
		}
		if f.has(flagEndHeaders) {
			break
		}
		if err := l.conn.SetReadDeadline(time.Now().Add(l.proxy.config.Limits.HeaderTimeout)); err != nil {
			return err
		}
		p, err := l.in.Peek(frameHead)
		if err != nil {
			return err
		}
		f, rest = parseFrame(p), 0
		_, _ = l.in.Discard(frameHead)
		if f.kind != frameContinuation || f.stream != begin.stream {
			return &connectionError{codeProtocol, "a header block is not continued"}
		}
		if f.length > maxFrame {
			return &connectionError{codeFrameSize, "a frame of more than 16,384 bytes"}
		}
	}
	if err := l.decoder.Close(); err != nil {
		return l.notDecoded(err)
	}
	if err := l.conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	l.mu.Lock()
	h := l.halves[begin.stream]
	late := h != nil && h.received
	if h != nil && begin.has(flagEndStream) {
		h.received = true
	}
	l.mu.Unlock()
	switch {
	case itself:
		return l.end.broken(begin.stream, h, &connectionError{codeProtocol, "a stream that depends on itself"})
	case late:
		return l.end.broken(begin.stream, h, &connectionError{codeStreamClosed, "a head behind the end of its stream"})
	}
	return l.end.headers(begin.stream, h, begin.has(flagEndStream), l.size > l.most)
}

func (l *link) notDecoded(err error) error {
	if errors.Is(err, hpack.ErrStringLength) {
		return &connectionError{codeCalm, fmt.Sprintf("a field of more than %d bytes", 2*l.most)}
	}
	return &connectionError{codeCompression, "a header block that cannot be read: " + err.Error()}
}
