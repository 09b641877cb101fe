package mitm

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"
)

// errHello ends a handshake of which only the client hello is wanted.
var errHello = errors.New("the client hello is all")

// readHello reads a client hello, however it is cut into records and segments, and
// returns the connection as it was before. The hello is nil when there was no
// whole one by the deadline; who goes on finds out why.
func readHello(conn *bufferedConn, deadline time.Time) (*tls.ClientHelloInfo, *bufferedConn, error) {
	if err := conn.SetReadDeadline(deadline); err != nil {
		return nil, nil, err
	}
	var seen bytes.Buffer
	var hello *tls.ClientHelloInfo
	// That it fails is meant; a hello that is none fails again for who goes on.
	_ = tls.Server(listening{conn, io.TeeReader(conn, &seen)}, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			hello = h
			return nil, errHello
		},
	}).Handshake()
	rest, err := conn.reader.Peek(conn.reader.Buffered())
	if err != nil {
		return nil, nil, err
	}
	// What is in the way of a connection that may be idle for long is small.
	reader := bufio.NewReaderSize(io.MultiReader(&seen, bytes.NewReader(rest), conn.closeWriter), 16)
	again := &bufferedConn{closeWriter: conn.closeWriter, flow: conn.flow, reader: reader}
	return hello, again, conn.SetReadDeadline(time.Time{})
}

// listening is a connection on which nothing is said.
type listening struct {
	net.Conn
	reader io.Reader
}

func (l listening) Read(p []byte) (int, error)  { return l.reader.Read(p) }
func (l listening) Write(p []byte) (int, error) { return len(p), nil }
func (l listening) Close() error                { return nil }

// ja4 is the fingerprint of a client hello that FoxIO calls JA4
// (github.com/FoxIO-LLC/ja4): what the client is able to, whatever it asks for.
func ja4(hello *tls.ClientHelloInfo) string {
	version := "00"
	if offered := slices.DeleteFunc(slices.Clone(hello.SupportedVersions), isGrease); len(offered) > 0 {
		version = cmp.Or(map[uint16]string{
			tls.VersionTLS13: "13", tls.VersionTLS12: "12", tls.VersionTLS11: "11", tls.VersionTLS10: "10",
		}[slices.Max(offered)], version)
	}
	const serverName, alpn = 0, 16
	ciphers := hexes(hello.CipherSuites)
	extensions := hexes(hello.Extensions)
	named := "i"
	if slices.Contains(hello.Extensions, serverName) {
		named = "d"
	}
	first := "00"
	if len(hello.SupportedProtos) > 0 && hello.SupportedProtos[0] != "" {
		p := hello.SupportedProtos[0]
		first = string([]byte{p[0], p[len(p)-1]})
		if !isAlphanumeric(p[0]) || !isAlphanumeric(p[len(p)-1]) {
			digits := hex.EncodeToString([]byte(p))
			first = digits[:1] + digits[len(digits)-1:]
		}
	}
	count := func(list []string) int { return min(len(list), 99) }
	head := fmt.Sprintf("t%s%s%02d%02d%s", version, named, count(ciphers), count(extensions), first)

	slices.Sort(ciphers)
	others := hexes(slices.DeleteFunc(slices.Clone(hello.Extensions), func(e uint16) bool { return e == serverName || e == alpn }))
	slices.Sort(others)
	able := strings.Join(others, ",")
	var schemes []uint16
	for _, s := range hello.SignatureSchemes {
		schemes = append(schemes, uint16(s))
	}
	if signs := hexes(schemes); len(signs) > 0 && able != "" {
		able += "_" + strings.Join(signs, ",")
	}
	return head + "_" + shortHash(strings.Join(ciphers, ",")) + "_" + shortHash(able)
}

// hexes writes numbers as JA4 does; GREASE (RFC 8701) is left out.
func hexes(numbers []uint16) []string {
	var written []string
	for _, n := range numbers {
		if !isGrease(n) {
			written = append(written, fmt.Sprintf("%04x", n))
		}
	}
	return written
}

func isGrease(n uint16) bool { return n&0x0f0f == 0x0a0a && n>>8 == n&0xff }

func isAlphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func shortHash(text string) string {
	if text == "" {
		return "000000000000"
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])[:12]
}
