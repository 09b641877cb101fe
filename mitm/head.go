package mitm

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"agentops/mitm/policy"

	"golang.org/x/net/http/httpguts"
)

// head is what the head of a request says of what follows it.
type head struct {
	method  string
	target  string
	length  int64 // of the body
	chunked bool
	upgrade bool // another protocol may follow
}

// checkLine takes the CRLF off a line (RFC 9112, section 2.2) in which there are
// no control characters but tabs.
func checkLine(line []byte) ([]byte, error) {
	n := len(line)
	if n < 2 || line[n-2] != '\r' {
		return nil, malform("a line ends in a bare LF")
	}
	line = line[:n-2]
	for _, b := range line {
		if b < ' ' && b != '\t' || b == 0x7f {
			return nil, malform(fmt.Sprintf("the control character %#02x in a head", b))
		}
	}
	return line, nil
}

// parseHead reads the lines of a request's head (RFC 9112), each with its CRLF. What
// could be read in two ways is an error, a *malformed.
func parseHead(text string) (h head, err error) {
	lines := strings.Split(strings.TrimSuffix(text, "\r\n"), "\r\n")
	request := strings.Split(lines[0], " ")
	if len(request) != 3 {
		return h, malform("the first line is not METHOD TARGET VERSION with one space between")
	}
	h.method, h.target = request[0], request[1]
	version := request[2]
	switch {
	case !httpguts.ValidHeaderFieldName(h.method): // a token as well
		return h, malform(fmt.Sprintf("the method %q is no token", clip(h.method, 40)))
	case version != "HTTP/1.1" && version != "HTTP/1.0":
		return h, malform(fmt.Sprintf("the version %q is neither HTTP/1.1 nor HTTP/1.0", clip(version, 40)))
	}
	fields := make(map[string][]string)
	for _, line := range lines[1:] {
		name, value, err := parseField(line)
		if err != nil {
			return h, err
		}
		fields[name] = append(fields[name], value)
	}
	if err := h.frame(fields, version); err != nil {
		return h, err
	}
	return h, h.checkTarget(fields["host"])
}

// parseField reads one line of a head or trailer; the name comes in lower case.
func parseField(line string) (name, value string, err error) {
	if line[0] == ' ' || line[0] == '\t' {
		return "", "", malform("a field is folded over two lines, or blanks stand before its name")
	}
	name, value, found := strings.Cut(line, ":")
	if !found || !httpguts.ValidHeaderFieldName(name) {
		return "", "", malform(fmt.Sprintf("the field name %q is no token", clip(name, 40)))
	}
	return strings.ToLower(name), strings.Trim(value, " \t"), nil
}

// forbiddenTrailers would change what was read before them.
var forbiddenTrailers = map[string]bool{"transfer-encoding": true, "content-length": true, "host": true, "trailer": true}

// frame finds how the body is delimited (RFC 9112, section 6.3).
func (h *head) frame(fields map[string][]string, version string) error {
	for _, name := range []string{"host", "content-length", "transfer-encoding", "expect"} {
		if len(fields[name]) > 1 {
			return malform("there are two fields " + name)
		}
	}
	if lengths := fields["content-length"]; lengths != nil {
		length, err := strconv.ParseUint(lengths[0], 10, 63)
		if err != nil {
			return malform(fmt.Sprintf("the Content-Length %q is no number", clip(lengths[0], 40)))
		}
		h.length = int64(length)
	}
	if codings := fields["transfer-encoding"]; codings != nil {
		switch {
		case fields["content-length"] != nil:
			return malform("there are both Content-Length and Transfer-Encoding")
		case version == "HTTP/1.0":
			return malform("Transfer-Encoding in HTTP/1.0")
		case !strings.EqualFold(codings[0], "chunked"):
			return malform(fmt.Sprintf("the Transfer-Encoding %q is not chunked", clip(codings[0], 40)))
		}
		h.chunked = true
	}
	if expected := fields["expect"]; expected != nil && !strings.EqualFold(expected[0], "100-continue") {
		return malform(fmt.Sprintf("the expectation %q is not 100-continue", clip(expected[0], 40)))
	}
	for _, names := range fields["trailer"] {
		for name := range strings.SplitSeq(names, ",") {
			if name = strings.ToLower(strings.Trim(name, " \t")); forbiddenTrailers[name] {
				return malform("the field " + name + " is announced for the trailer")
			}
		}
	}
	if version == "HTTP/1.1" && (len(fields["host"]) == 0 || fields["host"][0] == "") {
		return malform("there is no Host")
	}
	h.upgrade = len(fields["upgrade"]) > 0 || h.method == "CONNECT"
	return nil
}

// checkTarget takes a path, an absolute URL of the same host as Host, or "*" (RFC
// 9112, section 3.2). That of CONNECT is refused with words later on.
func (h *head) checkTarget(hosts []string) error {
	if len(hosts) > 0 && !httpguts.ValidHostHeader(hosts[0]) {
		return malform(fmt.Sprintf("the Host %q is no host", clip(hosts[0], 80)))
	}
	if h.method == "CONNECT" {
		if _, err := url.ParseRequestURI("http://" + h.target); err != nil || strings.HasPrefix(h.target, "/") {
			return malform("the target of CONNECT is not HOST:PORT")
		}
		return nil
	}
	if h.target == "*" {
		if h.method != "OPTIONS" {
			return malform("the target * is for OPTIONS")
		}
		return nil
	}
	parsed, err := url.ParseRequestURI(h.target)
	if err != nil {
		return malform("the target is no URL")
	}
	if strings.HasPrefix(h.target, "/") {
		return nil
	}
	scheme := strings.ToLower(parsed.Scheme)
	if scheme != "http" && scheme != "https" || parsed.Opaque != "" || parsed.Host == "" || parsed.User != nil {
		return malform("the target is neither a path nor a URL of HTTP")
	}
	if len(hosts) > 0 && hostPort(scheme, parsed.Host) != hostPort(scheme, hosts[0]) {
		return malform(fmt.Sprintf("the target names %q, and Host %q", clip(parsed.Host, 80), clip(hosts[0], 80)))
	}
	return nil
}

// hostPort is the one form of HOST[:PORT], or else the text itself.
func hostPort(scheme, text string) string {
	name, port, err := net.SplitHostPort(text)
	if err != nil {
		name, port = text, map[string]string{"http": "80", "https": "443"}[scheme]
	}
	host, err := policy.Host(name)
	if err != nil {
		return text
	}
	return net.JoinHostPort(host, port)
}

// parseChunkSize reads the first line of a chunk (RFC 9112, section 7.1).
func parseChunkSize(line string) (int64, error) {
	digits, _, _ := strings.Cut(line, ";")
	if strings.Trim(digits, "0123456789abcdefABCDEF") != "" {
		return 0, malform(fmt.Sprintf("the chunk size %q is no number", clip(digits, 40)))
	}
	size, err := strconv.ParseUint(digits, 16, 63)
	if err != nil {
		return 0, malform(fmt.Sprintf("the chunk size %q is no number", clip(digits, 40)))
	}
	return int64(size), nil
}
