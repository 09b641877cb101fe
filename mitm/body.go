package mitm

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
)

const (
	maxResponse  = 1 << 20 // bytes of a head
	maxChunkLine = 4 << 10 // bytes; size and extensions
	maxTrailer   = 4000    // bytes
	bufferSize   = 16 << 10
)

// source is what one side sends. Before it waits for more, what has been made of it
// so far goes out to the other side.
type source struct {
	conn   net.Conn
	before []byte // what was read ahead of it
	to     *bufio.Writer
}

// errSink says that the other side does not take what is read here.
var errSink = errors.New("write to the other side")

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	if len(s.before) > 0 {
		n := copy(p, s.before)
		s.before = s.before[n:]
		return n, nil
	}
	if s.to != nil && s.to.Buffered() > 0 && s.to.Flush() != nil {
		return 0, errSink
	}
	runtime.Gosched() // what comes while others go on needs no look in vain
	return s.conn.Read(p)
}

// readLine returns the next line without its CRLF, which is good until the next read.
func readLine(reader *bufio.Reader, limit int) ([]byte, error) {
	line, err := reader.ReadSlice('\n')
	switch {
	case len(line) > limit || errors.Is(err, bufio.ErrBufferFull):
		return nil, tooLarge(limit)
	case err != nil:
		return nil, unexpected(err)
	}
	return checkLine(line)
}

// readHead appends the lines of a head, each with its CRLF, to text. Empty lines
// before it are nothing (RFC 9112, section 2.2).
func readHead(reader *bufio.Reader, text []byte, most int) ([]byte, error) {
	for {
		begin := len(text)
		for more := true; more; {
			piece, err := reader.ReadSlice('\n')
			if more = errors.Is(err, bufio.ErrBufferFull); err != nil && !more {
				return text, unexpected(err)
			}
			if text = append(text, piece...); len(text) > most {
				return text, tooLarge(most)
			}
		}
		line, err := checkLine(text[begin:])
		switch {
		case err != nil:
			return text, err
		case len(line) == 0 && begin > 0:
			return text[:begin], nil
		case len(line) == 0:
			text = text[:0]
		}
	}
}

func tooLarge(limit int) error {
	return &malformed{status: http.StatusRequestHeaderFieldsTooLarge, detail: "a line or head of more than " + strconv.Itoa(limit) + " bytes"}
}

// unexpected is the error of an end where there must be more.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// body is what follows a head.
type body struct {
	reader  *bufio.Reader
	part    part
	left    int64 // of the piece that is being read, in bytes
	trailer []field
}

type part uint8

const (
	ended part = iota
	inLength
	inChunkSize
	inChunk
	afterChunk
	toTheEnd // of the connection
)

// bodyOf is the body behind a head. That of a length that is not said goes on to the
// connection's end.
func bodyOf(h *head, reader *bufio.Reader) body {
	b := body{reader: reader, left: h.length}
	switch {
	case h.bodiless:
	case h.chunked:
		b.part = inChunkSize
	case h.length == noLength:
		b.part = toTheEnd
	case h.length > 0:
		b.part = inLength
	}
	return b
}

// next returns the next piece of the body, which is good until the next call, and
// io.EOF at its end. Chunks lose their extensions, which are for us, who know none.
func (b *body) next() ([]byte, error) {
	switch b.part {
	case ended:
		return nil, io.EOF
	case toTheEnd:
		return b.take(bufferSize)
	case afterChunk:
		line, err := readLine(b.reader, maxChunkLine)
		if err == nil && len(line) > 0 {
			err = malform("a chunk is longer than it says")
		}
		if err != nil {
			return nil, err
		}
		b.part = inChunkSize
		return b.next()
	case inChunkSize:
		line, err := readLine(b.reader, maxChunkLine)
		if err == nil {
			b.left, err = parseChunkSize(line)
		}
		if err != nil {
			return nil, err
		}
		if b.left == 0 {
			return nil, b.readTrailer()
		}
		b.part = inChunk
	}
	piece, err := b.take(b.left)
	if err != nil {
		return nil, unexpected(err)
	}
	b.left -= int64(len(piece))
	switch {
	case b.left > 0:
	case b.part == inChunk:
		b.part = afterChunk
	default:
		b.part = ended
	}
	return piece, nil
}

// take returns of what is to come what is there already, at least a byte.
func (b *body) take(most int64) ([]byte, error) {
	if _, err := b.reader.Peek(1); err != nil {
		return nil, err
	}
	piece, _ := b.reader.Peek(int(min(most, int64(b.reader.Buffered()))))
	_, err := b.reader.Discard(len(piece)) // it stays where it is until the next read
	return piece, err
}

// readTrailer reads what follows the last chunk, and returns io.EOF.
func (b *body) readTrailer() error {
	for left := maxTrailer; ; {
		line, err := readLine(b.reader, left)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			b.part = ended
			return io.EOF
		}
		left -= len(line) + len("\r\n")
		f, err := parseField(string(line))
		if err == nil && f.kind.framing() {
			err = malform("the field " + strings.ToLower(f.name) + " in a trailer")
		}
		if err != nil {
			return err
		}
		b.trailer = append(b.trailer, f)
	}
}

// relay sends the body on, in chunks or as it is, and returns how much of it has
// come. An error is of one side: of what is read, or of what is written.
func (b *body) relay(to *bufio.Writer, chunked bool) (n int64, from, into error) {
	for {
		piece, err := b.next()
		if errors.Is(err, errSink) {
			return n, nil, to.Flush() // which says again why
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return n, err, nil
		}
		ended := err != nil
		n += int64(len(piece))
		if chunked {
			_, _ = to.Write(append(strconv.AppendInt(to.AvailableBuffer(), int64(len(piece)), 16), "\r\n"...))
		}
		_, err = to.Write(piece)
		if chunked && ended {
			for _, f := range b.trailer {
				writeField(to, f.name, f.value)
			}
		}
		if chunked {
			_, err = to.WriteString("\r\n")
		}
		if ended || err != nil {
			return n, nil, err
		}
	}
}

func writeField(w *bufio.Writer, name, value string) {
	_, _ = w.WriteString(name)
	_, _ = w.WriteString(": ")
	_, _ = w.WriteString(value)
	_, _ = w.WriteString("\r\n") // the writer keeps its error
}

func endHead(w *bufio.Writer) { _, _ = w.WriteString("\r\n") }

// writeFraming writes the field that says how the body is delimited.
func (h *head) writeFraming(w *bufio.Writer, f *field) {
	if f.kind == codingField {
		writeField(w, f.name, "chunked")
		return
	}
	_, _ = w.WriteString(f.name)
	_, _ = w.WriteString(": ")
	_, _ = w.Write(strconv.AppendInt(w.AvailableBuffer(), h.length, 10))
	_, _ = w.WriteString("\r\n")
}
