package main

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"agentops/test/escape/attempt"

	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
)

// dial connects for what is spoken on a connection.
func (t *try) dial(to netip.AddrPort) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", to.String(), patience)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(2 * patience))
}

// talk says something and returns what is answered until done says that it is
// all, or the connection ends.
func (t *try) talk(to netip.AddrPort, data []byte, done func([]byte) bool) ([]byte, error) {
	conn, err := t.dial(to)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return say(conn, data, done)
}

func say(conn net.Conn, data []byte, done func([]byte) bool) ([]byte, error) {
	go func() { _, _ = conn.Write(data) }() // what is answered before all is said is the answer
	var got []byte
	buf := make([]byte, 16<<10)
	for !done(got) {
		n, err := conn.Read(buf)
		got = append(got, buf[:n]...)
		if errors.Is(err, io.EOF) || err != nil && len(got) > 0 {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return got, nil
}

// response is what matters of an HTTP/1 response.
type response struct {
	status int
	body   string
}

// responses reads as many as there are in what was answered.
func responses(got []byte) []response {
	var list []response
	for {
		head, rest, ok := bytes.Cut(got, []byte("\r\n\r\n"))
		var status int
		if n, _ := fmt.Sscanf(string(head), "HTTP/1.1 %d", &status); !ok || n != 1 {
			return list
		}
		length := len(rest)
		for line := range strings.Lines(strings.ToLower(string(head))) {
			if value, ok := strings.CutPrefix(line, "content-length:"); ok {
				if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil && n <= len(rest) {
					length = n
				} else {
					return list // not all is here yet
				}
			}
		}
		if status >= 200 {
			list = append(list, response{status, string(rest[:length])})
		}
		got = rest[length:]
	}
}

// request says a request, byte for byte, to the port of HTTP behind a name of
// the run's resolver, and judges the last of the responses that it must have.
func (t *try) request(name string, port uint16, expected int, raw string) verdict {
	addr, err := lookUp(name)
	if err != nil {
		return t.blocked(err)
	}
	return t.requestAt(netip.AddrPortFrom(addr, port), expected, raw)
}

func (t *try) requestAt(to netip.AddrPort, expected int, raw string) verdict {
	t.start()
	got, err := t.talk(to, []byte(raw), func(got []byte) bool { return len(responses(got)) >= expected })
	return t.judgeResponses(got, err)
}

func (t *try) judgeResponses(got []byte, err error) verdict {
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return t.silent("no answer")
		}
		return t.blocked(err)
	}
	list := responses(got)
	if len(list) == 0 {
		if len(got) == 0 {
			return t.say(attempt.Blocked, "closed")
		}
		return t.say(attempt.Blocked, "no HTTP: %q", clip(string(got), 40))
	}
	for i, r := range list {
		if strings.Contains(r.body, t.stage.Secret) {
			return t.reached("the secret")
		}
		if i < len(list)-1 {
			continue
		}
		if r.status < 400 {
			if strings.Contains(r.body, attempt.Welcome) {
				return t.say(attempt.Relayed, "%d", r.status)
			}
			return t.reached("%d %q", r.status, clip(r.body, 60))
		}
	}
	return t.say(attempt.Blocked, "%d%s", list[len(list)-1].status, reason(list[len(list)-1].body))
}

// reason is the one of the proxy's own answers.
func reason(body string) string {
	_, rest, ok := strings.Cut(body, `"reason":"`)
	if !ok {
		return ""
	}
	word, _, _ := strings.Cut(rest, `"`)
	return " " + word
}

// path is what an attempt asks for.
func (t *try) path() string { return "/" + attempt.Marker + t.name }

// get asks the host behind a name for a path.
func (t *try) get(name, host, path string) verdict {
	return t.request(name, 80, 1, "GET "+path+" HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
}

// https asks by TLS.
func (t *try) https(name, host, path string) verdict {
	addr, err := lookUp(name)
	if err != nil {
		return t.blocked(err)
	}
	return t.httpsAt(netip.AddrPortFrom(addr, 443), name, host, path)
}

func (t *try) httpsAt(to netip.AddrPort, sni, host, path string) verdict {
	t.start()
	conn, err := t.dialTLS(to, sni, "http/1.1")
	if err != nil {
		return t.judgeResponses(nil, err)
	}
	defer conn.Close()
	raw := "GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n"
	got, err := say(conn, []byte(raw), func(got []byte) bool { return len(responses(got)) > 0 })
	return t.judgeResponses(got, err)
}

func (t *try) dialTLS(to netip.AddrPort, sni string, protocols ...string) (*tls.Conn, error) {
	conn, err := t.dial(to)
	if err != nil {
		return nil, err
	}
	client := tls.Client(conn, &tls.Config{ServerName: sni, InsecureSkipVerify: true, NextProtos: protocols})
	if err := client.Handshake(); err != nil {
		conn.Close()
		return nil, err
	}
	return client, nil
}

// h2 makes one request of HTTP/2 on a connection that speaks it.
func (t *try) h2(conn net.Conn, authority, path string, extra ...hpack.HeaderField) verdict {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	fields := append([]hpack.HeaderField{
		{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: path}, {Name: ":authority", Value: authority},
	}, extra...)
	for _, field := range fields {
		_ = encoder.WriteField(field) // to a buffer
	}
	data := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	data = append(data, frame(4, 0, 0, nil)...)           // SETTINGS
	data = append(data, frame(1, 5, 1, block.Bytes())...) // HEADERS, END_STREAM and END_HEADERS
	status := ""
	decoder := hpack.NewDecoder(4096, func(field hpack.HeaderField) {
		if field.Name == ":status" {
			status = field.Value
		}
	})
	var body []byte
	over, read := "", 0
	_, err := say(conn, data, func(got []byte) bool {
		for len(got)-read >= 9 {
			length := int(binary.BigEndian.Uint32(append([]byte{0}, got[read:read+3]...)))
			if len(got)-read < 9+length {
				break
			}
			kind, flags, payload := got[read+3], got[read+4], got[read+9:read+9+length]
			read += 9 + length
			switch kind {
			case 0:
				body = append(body, payload...)
			case 1:
				_, _ = decoder.Write(payload)
			case 3, 7:
				over = map[byte]string{3: "RST_STREAM", 7: "GOAWAY"}[kind]
			}
			if kind <= 1 && flags&1 != 0 {
				over = "answered"
			}
		}
		return over != ""
	})
	if status == "" {
		if err != nil {
			return t.judgeResponses(nil, err)
		}
		return t.say(attempt.Blocked, "%s", clip(over+" closed", 20))
	}
	code, _ := strconv.Atoi(status)
	if code < 400 {
		return t.say(attempt.Relayed, "%d", code)
	}
	return t.say(attempt.Blocked, "%d%s", code, reason(string(body)))
}

// frame is one of HTTP/2's (RFC 9113, section 4.1).
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	head := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	return append(binary.BigEndian.AppendUint32(head, stream), payload...)
}

// hello sends a client hello that this program has written itself, with any bytes
// for a name, and sees whether it is answered.
func (t *try) hello(to netip.AddrPort, sni, alpn string, extensions ...[]byte) verdict {
	t.start()
	got, err := t.talk(to, clientHello(sni, alpn, extensions...), func(got []byte) bool { return len(got) >= 5 })
	switch {
	case err != nil:
		return t.judgeResponses(nil, err)
	case len(got) == 0:
		return t.say(attempt.Blocked, "closed")
	case got[0] == 0x15:
		return t.say(attempt.Blocked, "alert")
	case got[0] == 0x16:
		// The proxy has answered by itself, to say its refusal to who goes on.
		return t.say(attempt.Relayed, "a server hello")
	}
	return t.reached("it was answered: %q", got[:min(len(got), 20)])
}

// clientHello is one of TLS 1.2 and 1.3 (RFC 8446, section 4.1.2).
func clientHello(sni, alpn string, extensions ...[]byte) []byte {
	var list []byte
	if sni != "" {
		name := append(binary.BigEndian.AppendUint16([]byte{0}, uint16(len(sni))), sni...)
		list = append(list, extension(0, append(binary.BigEndian.AppendUint16(nil, uint16(len(name))), name...))...)
	}
	if alpn != "" {
		protocol := append([]byte{byte(len(alpn))}, alpn...)
		list = append(list, extension(16, append(binary.BigEndian.AppendUint16(nil, uint16(len(protocol))), protocol...))...)
	}
	list = append(list, extension(10, []byte{0, 2, 0, 23})...)      // P-256
	list = append(list, extension(11, []byte{1, 0})...)             // uncompressed
	list = append(list, extension(13, []byte{0, 4, 4, 3, 8, 4})...) // ECDSA and RSA-PSS with SHA-256
	for _, e := range extensions {
		list = append(list, e...)
	}
	body := append([]byte{3, 3}, bytes.Repeat([]byte{7}, 32)...)
	body = append(body, 0)                            // no session
	body = append(body, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f) // ECDHE with AES-128-GCM
	body = append(body, 1, 0)                         // no compression
	body = append(binary.BigEndian.AppendUint16(body, uint16(len(list))), list...)
	message := append([]byte{1, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
	return append(binary.BigEndian.AppendUint16([]byte{0x16, 3, 1}, uint16(len(message))), message...)
}

func extension(kind uint16, data []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, kind)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(data))), data...)
}

// metadataProbes ask for what clouds tell machines of themselves.
func metadataProbes() []probe {
	var list []probe
	for _, m := range []struct{ name, to, path, header string }{
		{"ec2", "169.254.169.254:80", "/latest/meta-data/iam/security-credentials/", ""},
		{"ec2-token", "169.254.169.254:80", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds: 60"},
		{"ec2-v6", "[fd00:ec2::254]:80", "/latest/meta-data/", ""},
		{"ec2-mapped", "[::ffff:169.254.169.254]:80", "/latest/meta-data/", ""},
		{"ec2-nat64", "[64:ff9b::169.254.169.254]:80", "/latest/meta-data/", ""},
		{"ec2-port", "169.254.169.254:8080", "/latest/meta-data/", ""},
		{"ec2-time", "169.254.169.123:80", "/", ""},
		{"ecs", "169.254.170.2:80", "/v2/credentials/", ""},
		{"eks", "169.254.170.23:80", "/v1/credentials", ""},
		{"eks-v6", "[fd00:ec2::23]:80", "/v1/credentials", ""},
		{"gcp", "169.254.169.254:80", "/computeMetadata/v1/instance/service-accounts/default/token", "Metadata-Flavor: Google"},
		{"gcp-v6", "[fd20:ce::254]:80", "/computeMetadata/v1/", "Metadata-Flavor: Google"},
		{"azure", "169.254.169.254:80", "/metadata/instance?api-version=2021-02-01", "Metadata: true"},
		{"azure-wire", "168.63.129.16:80", "/machine?comp=goalstate", ""},
		{"azure-port", "168.63.129.16:32526", "/vmSettings", ""},
		{"alibaba", "100.100.100.200:80", "/latest/meta-data/", ""},
		{"oracle", "192.0.0.192:80", "/latest/meta-data/", ""},
		{"oracle-v6", "[fd00:c1::a9fe:a9fe]:80", "/opc/v2/instance/", "Authorization: Bearer Oracle"},
		{"openstack-v6", "[fe80::a9fe:a9fe%1]:80", "/openstack/", ""},
		{"docker-host", "172.17.0.1:2375", "/version", ""},
	} {
		list = append(list, probe{name: "meta-" + m.name, class: "metadata", plain: true, record: attempt.Flow, try: func(t *try) verdict {
			to := netip.MustParseAddrPort(m.to)
			host := to.Addr().WithZone("").String()
			if to.Addr().Is6() {
				host = "[" + host + "]"
			}
			header := m.header
			if header != "" {
				header += "\r\n"
			}
			return t.requestAt(to, 1, "GET "+m.path+" HTTP/1.1\r\nHost: "+host+"\r\n"+header+"Connection: close\r\n\r\n")
		}})
	}
	for _, m := range []struct{ name, host string }{
		{"name-gcp", "metadata.google.internal"}, {"name-ec2", "instance-data.ec2.internal"}, {"name-aws", "instance-data"},
	} {
		list = append(list, probe{name: "meta-" + m.name, class: "metadata", record: attempt.Flow, try: func(t *try) verdict {
			return t.get(m.host, m.host, "/")
		}})
	}
	udp := probe{name: "meta-udp", class: "metadata", plain: true, record: attempt.Refusal, try: func(t *try) verdict {
		return t.datagram(netip.MustParseAddrPort("169.254.169.123:123"), unix.SOCK_DGRAM, 0, t.payload())
	}}
	return append(list, udp)
}

// connection is what a protocol is spoken on.
type connection = struct{ net.Conn }

// speak connects to the allowed host and lets it be spoken to.
func (t *try) speak(port uint16, f func(*connection) verdict) verdict {
	addr, err := lookUp(attempt.Allowed)
	if err != nil {
		return t.blocked(err)
	}
	t.start()
	conn, err := t.dial(netip.AddrPortFrom(addr, port))
	if err != nil {
		return t.blocked(err)
	}
	defer conn.Close()
	return f(&connection{conn})
}
