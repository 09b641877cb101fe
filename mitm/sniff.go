package mitm

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"time"

	"agentops/mitm/policy"
)

type protocol int

const (
	protocolOpaque protocol = iota // anything else, or a client that waits for the server
	protocolTLS
	protocolHTTP
)

const (
	// silentAfter is how long a client may say nothing before it is taken to
	// wait for the server to speak first.
	silentAfter = 200 * time.Millisecond
	maxMethod   = 20 // bytes; the longest registered one has 17
)

// serverFirst are the ports of protocols in which the server speaks first, for
// which no client need be waited: FTP, SSH, telnet, SMTP, POP3, IMAP, MySQL, VNC.
var serverFirst = map[uint16]bool{21: true, 22: true, 23: true, 25: true, 110: true, 143: true, 587: true, 3306: true, 5900: true}

// errSilent is returned for a client that says nothing.
var errSilent = errors.New("the client said nothing")

// silence is how long the flow's client may take to speak. Where an opaque flow
// will not be had anyway, there is no server to wait for.
func (f *flow) silence() time.Duration {
	switch {
	case !f.mayBeOpaque():
		return f.handshakeTimeout()
	case serverFirst[f.destination.Port()]:
		return 0
	}
	return silentAfter
}

// mayBeOpaque reports whether the flow may go on whatever it speaks.
func (f *flow) mayBeOpaque() bool {
	return f.judge(policy.Target{Host: f.host(), Protocol: policy.NotHTTP}) == nil
}

// sniff tells from a client's first bytes what it speaks, and leaves them to be
// read. The error is errSilent or the connection's.
func sniff(conn *bufferedConn, silence time.Duration) (protocol, error) {
	if err := conn.SetReadDeadline(time.Now().Add(silence)); err != nil {
		return 0, err
	}
	first, err := conn.reader.Peek(1)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, errors.Join(errSilent, conn.SetReadDeadline(time.Time{}))
	}
	if err != nil {
		return 0, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(conn.flow.handshakeTimeout())); err != nil {
		return 0, err
	}
	found := protocolOpaque
	switch {
	case first[0] == 0x16: // a TLS record with a handshake message (RFC 8446, section 5.1)
		if head, err := conn.reader.Peek(2); err == nil && head[1] == 3 {
			found = protocolTLS
		}
	case isTokenByte(first[0]):
		if beginsRequest(conn.reader) {
			found = protocolHTTP
		}
	}
	// A client that broke off in its first bytes is opaque: what it sent is
	// seen when it is read.
	return found, conn.SetReadDeadline(time.Time{})
}

// beginsRequest looks for an HTTP/1 request line (RFC 9112, section 3), or the
// preface of HTTP/2, which is made to look like one, and no further than it must.
func beginsRequest(reader *bufio.Reader) bool {
	for n := 2; n <= maxMethod+2; n++ {
		head, err := reader.Peek(n)
		if err != nil {
			return false
		}
		switch last, before := head[n-1], head[n-2]; {
		case before == ' ':
			method := head[:n-2]
			return last == '/' || last == '*' || last == 'h' || last == 'H' || bytes.Equal(method, []byte("CONNECT"))
		case last != ' ' && !isTokenByte(last):
			return false
		}
	}
	return false
}

// isTokenByte takes what methods in use are made of, a part of RFC 9110's token.
func isTokenByte(c byte) bool {
	return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '-' || c == '_'
}
