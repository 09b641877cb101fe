package mitm

import (
	"bytes"
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
	begin, bounded := f, !f.has(flagEndHeaders) || l.in.Buffered() < f.length
	if bounded {
		if err := l.until(time.Now().Add(l.proxy.config.Limits.HeaderTimeout)); err != nil {
			return err
		}
	}
	block, err := l.payload(f)
	if err != nil {
		return err
	}
	if f.has(flagPadded) {
		if len(block) == 0 || int(block[0]) >= len(block) {
			return &connectionError{codeProtocol, "more padding than there is frame"}
		}
		block = block[1 : len(block)-int(block[0])]
	}
	itself := false
	if f.has(flagPriority) {
		if len(block) < sizeOfPriority {
			return &connectionError{codeProtocol, "more padding than there is frame"}
		}
		itself = binary.BigEndian.Uint32(block)&maxStreamID == f.stream
		block = block[sizeOfPriority:]
	}
	if !f.has(flagEndHeaders) {
		if block, err = l.continued(begin.stream, bytes.Clone(block)); err != nil {
			return err
		}
	}
	l.fields, l.size = l.fields[:0], 0
	if _, err := l.decoder.Write(block); err != nil {
		return l.notDecoded(err)
	}
	if err := l.decoder.Close(); err != nil {
		return l.notDecoded(err)
	}
	if l.size > 2*l.most {
		return l.tooLong()
	}
	if bounded {
		if err := l.until(time.Time{}); err != nil {
			return err
		}
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
	err = l.end.headers(begin.stream, h, begin.has(flagEndStream), l.size > l.most)
	clear(l.fields) // they may be large
	if cap(l.fields) > manyFields {
		l.fields = nil
	}
	return err
}

// continued reads the rest of a header block, which is decoded as one: the decoder would
// look at it from the beginning again with each frame, and keep the room for it.
func (l *link) continued(stream uint32, block []byte) ([]byte, error) {
	for n := 0; ; n++ {
		p, err := l.in.Peek(frameHead)
		if err != nil {
			return nil, err
		}
		f := parseFrame(p)
		_, _ = l.in.Discard(frameHead)
		if f.kind != frameContinuation || f.stream != stream {
			return nil, &connectionError{codeProtocol, "a header block is not continued"}
		}
		if f.length > maxFrame {
			return nil, &connectionError{codeFrameSize, "a frame of more than 16,384 bytes"}
		}
		if p, err = l.payload(f); err != nil {
			return nil, err
		}
		if block = append(block, p...); len(block) > 2*l.most || n > l.most/maxFrame+64 {
			return nil, l.tooLong()
		}
		if f.has(flagEndHeaders) {
			return block, nil
		}
	}
}

func (l *link) tooLong() error {
	return &connectionError{codeCalm, fmt.Sprintf("a head of more than %d bytes", 2*l.most)}
}

func (l *link) notDecoded(err error) error {
	if errors.Is(err, hpack.ErrStringLength) {
		return &connectionError{codeCalm, fmt.Sprintf("a field of more than %d bytes", 2*l.most)}
	}
	return &connectionError{codeCompression, "a header block that cannot be read: " + err.Error()}
}
