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
	"slices"
	"strconv"
	"strings"
)

// errHello ends a handshake of which only the client hello is wanted.
var errHello = errors.New("the client hello is all")

// helloConn remembers what is read of a client until it is known what becomes of its
// hello.
type helloConn struct {
	*bufferedConn
	seen   bytes.Buffer
	opened bool // it is answered by us, and nothing is to be remembered any more
	sealed bool // it is not, and nothing of ours goes out
}

// open lets the handshake go on.
func (c *helloConn) open() { c.opened, c.seen = true, bytes.Buffer{} }

// again is the connection as it was before the hello.
func (c *helloConn) again() *bufferedConn {
	rest, _ := c.reader.Peek(c.reader.Buffered())
	size := c.seen.Len() + len(rest)
	reader := bufio.NewReaderSize(io.MultiReader(&c.seen, bytes.NewReader(rest), c.closeWriter), size)
	_, _ = reader.Peek(size) // all of it is ahead now, and no more
	return &bufferedConn{closeWriter: c.closeWriter, flow: c.flow, reader: reader}
}

// Read implements net.Conn.
func (c *helloConn) Read(p []byte) (int, error) {
	n, err := c.bufferedConn.Read(p)
	if !c.opened {
		c.seen.Write(p[:n])
	}
	return n, err
}

// Write implements net.Conn.
func (c *helloConn) Write(p []byte) (int, error) {
	if c.sealed {
		return len(p), nil
	}
	return c.bufferedConn.Write(p)
}

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
			written = append(written, strconv.FormatUint(1<<16|uint64(n), 16)[1:]) // of four digits
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
