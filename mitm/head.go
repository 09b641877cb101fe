package mitm

import (
	"fmt"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"agentops/mitm/policy"

	"golang.org/x/net/http/httpguts"
)

// malformed is what is no HTTP/1 in the strict reading, which must be the reading of
// everyone behind us.
type malformed struct {
	status int // of the answer to a client that has sent it
	detail string
}

func (m *malformed) Error() string { return m.detail }

func malform(detail string) *malformed {
	return &malformed{status: http.StatusBadRequest, detail: detail}
}

// head is the head of a request or a response, read in the one way there is.
type head struct {
	method    string
	target    string // path and query, or "*", as they were written
	authority string // the host that is asked for, as it was written; empty: none
	protocol  string // of an extended CONNECT (RFC 8441)

	status int
	reason string // behind the status

	minor  int // of the version, HTTP/1.minor
	fields []field

	bodiless bool  // nothing follows, whatever is said of it
	length   int64 // of the body; noLength: there is none said
	chunked  bool
	close    bool     // the connection ends with the message
	keep     bool     // it goes on, says a Connection field
	options  []string // other names in Connection fields: fields of this connection alone
	upgrade  string   // what the protocol may, or will, be switched to
	expects  bool     // the client waits for an interim response
}

// noLength is the length of a body of which there is said nothing.
const noLength = -1

// field is one line of a head.
type field struct {
	kind        kind
	name, value string // as they were written, without the blanks around
}

// kind is what a field is to us.
type kind uint8

const (
	ordinary kind = iota
	hostField
	lengthField
	codingField
	connectionField
	hopField // it is about one connection
	teField
	trailerField
	upgradeField
	expectField
	acceptField
	agentField
	overrideField // some servers take the method from it
	kinds
)

// kindOf has the names in lower case.
var kindOf = map[string]kind{
	"host": hostField, "content-length": lengthField, "transfer-encoding": codingField,
	"connection": connectionField, "keep-alive": hopField, "proxy-connection": hopField, "http2-settings": hopField,
	"proxy-authenticate": hopField, "proxy-authorization": hopField,
	"te": teField, "trailer": trailerField, "upgrade": upgradeField, "expect": expectField,
	"accept": acceptField, "user-agent": agentField,
	"x-http-method-override": overrideField, "x-http-method": overrideField, "x-method-override": overrideField,
}

// longestName is that of the longest name in kindOf.
const longestName = len("x-http-method-override")

func fieldKind(name string) kind {
	var lower [longestName]byte
	if len(name) > len(lower) {
		return ordinary
	}
	for i := range len(name) {
		c := name[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	return kindOf[string(lower[:len(name)])]
}

// framing reports whether a field of the kind, in a trailer, would change what was
// read before it.
func (k kind) framing() bool {
	return k == codingField || k == lengthField || k == hostField || k == trailerField
}

// values are those of all fields of a kind.
func (h *head) values(k kind) []string {
	var values []string
	for _, f := range h.fields {
		if f.kind == k {
			values = append(values, f.value)
		}
	}
	return values
}

// value is that of the first field of a kind.
func (h *head) value(k kind) string {
	for i := range h.fields {
		if h.fields[i].kind == k {
			return h.fields[i].value
		}
	}
	return ""
}

// methods are those that a server may take a request to have: some take another
// than the first line's from a field.
func (h *head) methods() iter.Seq[string] {
	return func(yield func(string) bool) {
		if !yield(h.method) {
			return
		}
		for i := range h.fields {
			if h.fields[i].kind == overrideField && !yield(strings.ToUpper(h.fields[i].value)) {
				return
			}
		}
	}
}

// isOption reports whether a Connection field names a field, which then is of that
// connection alone.
func (h *head) isOption(name string) bool {
	for _, option := range h.options {
		if strings.EqualFold(option, name) {
			return true
		}
	}
	return false
}

// framed reports whether the body ends otherwise than with the connection.
func (h *head) framed() bool { return h.bodiless || h.chunked || h.length != noLength }

// persists reports whether the connection goes on behind the message.
func (h *head) persists() bool { return !h.close && (h.minor == 1 || h.keep) && h.framed() }

// idempotent reports whether a request may be sent twice (RFC 9110, section 9.2.2).
func (h *head) idempotent() bool {
	switch h.method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

// upgradeTo is the protocol that a request asks to be switched to. An upgrade to
// requests of HTTP/2, which would not be judged, is left out, as a server may (RFC
// 9110, section 7.8), and what is offered beside it.
func (h *head) upgradeTo() string {
	if h.minor == 0 || !h.isOption("upgrade") || strings.Contains(strings.ToLower(h.upgrade), "h2c") {
		return ""
	}
	return h.upgrade
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

// parseRequest reads the lines of a request's head (RFC 9112), each with its CRLF.
// What could be read in two ways is an error, a *malformed.
func (h *head) parseRequest(text string) error {
	first, rest, _ := strings.Cut(text, "\r\n")
	method, first, _ := strings.Cut(first, " ")
	target, version, _ := strings.Cut(first, " ")
	if strings.Contains(version, " ") || version == "" {
		return malform("the first line is not METHOD TARGET VERSION with one space between")
	}
	*h = head{method: method, target: target, fields: h.fields[:0], options: h.options[:0]}
	if !httpguts.ValidHeaderFieldName(method) { // a token as well
		return malform(fmt.Sprintf("the method %q is no token", clip(method, 40)))
	}
	if err := h.parseVersion(version); err != nil {
		return err
	}
	if err := h.parseFields(rest); err != nil {
		return err
	}
	if h.length == noLength && !h.chunked {
		h.length = 0
	}
	h.authority = h.value(hostField)
	if h.minor == 1 && h.authority == "" {
		return malform("there is no Host")
	}
	return h.parseTarget()
}

// parseResponse reads the lines of a response's head in the same way.
func (h *head) parseResponse(text string) error {
	first, rest, _ := strings.Cut(text, "\r\n")
	version, status, _ := strings.Cut(first, " ")
	status, reason, _ := strings.Cut(status, " ")
	*h = head{reason: reason, fields: h.fields[:0], options: h.options[:0]}
	if err := h.parseVersion(version); err != nil {
		return err
	}
	number, err := strconv.ParseUint(status, 10, 16)
	if err != nil || len(status) != 3 || number < 100 {
		return malform(fmt.Sprintf("the status %q is no number of three digits", clip(status, 40)))
	}
	h.status = int(number)
	return h.parseFields(rest)
}

func (h *head) parseVersion(version string) error {
	switch version {
	case "HTTP/1.1":
		h.minor = 1
	case "HTTP/1.0":
	default:
		return malform(fmt.Sprintf("the version %q is neither HTTP/1.1 nor HTTP/1.0", clip(version, 40)))
	}
	return nil
}

// parseFields reads the lines behind the first, and finds how the body is delimited
// (RFC 9112, section 6.3).
func (h *head) parseFields(text string) error {
	h.length = noLength
	var seen [kinds]bool
	for text != "" {
		var line string
		line, text, _ = strings.Cut(text, "\r\n")
		f, err := parseField(line)
		if err != nil {
			return err
		}
		h.fields = append(h.fields, f)
		if f.kind == ordinary || h.method == "" && (f.kind == hostField || f.kind == expectField) {
			continue // of a response, they mean nothing
		}
		once := f.kind == hostField || f.kind == lengthField || f.kind == codingField || f.kind == expectField
		if once && seen[f.kind] {
			return malform("there are two fields " + strings.ToLower(f.name))
		}
		seen[f.kind] = true
		if err := h.note(f); err != nil {
			return err
		}
	}
	switch {
	case h.chunked && h.length != noLength:
		return malform("there are both Content-Length and Transfer-Encoding")
	case h.chunked && h.minor == 0:
		return malform("Transfer-Encoding in HTTP/1.0")
	case h.minor == 0:
		h.expects = false // RFC 9110, section 10.1.1
	}
	return nil
}

// note takes from a field what is for us.
func (h *head) note(f field) error {
	switch f.kind {
	case lengthField:
		length, err := strconv.ParseUint(f.value, 10, 63)
		if err != nil {
			return malform(fmt.Sprintf("the Content-Length %q is no number", clip(f.value, 40)))
		}
		h.length = int64(length)
	case codingField:
		if !strings.EqualFold(f.value, "chunked") {
			return malform(fmt.Sprintf("the Transfer-Encoding %q is not chunked", clip(f.value, 40)))
		}
		h.chunked = true
	case expectField:
		if !strings.EqualFold(f.value, "100-continue") {
			return malform(fmt.Sprintf("the expectation %q is not 100-continue", clip(f.value, 40)))
		}
		h.expects = true
	case trailerField:
		for name := range strings.SplitSeq(f.value, ",") {
			if name = strings.Trim(name, " \t"); fieldKind(name).framing() {
				return malform("the field " + strings.ToLower(name) + " is announced for the trailer")
			}
		}
	case connectionField:
		for option := range strings.SplitSeq(f.value, ",") {
			option = strings.Trim(option, " \t")
			switch {
			case strings.EqualFold(option, "close"):
				h.close = true
			case strings.EqualFold(option, "keep-alive"):
				h.keep = true
			default:
				h.options = append(h.options, option)
			}
		}
	case upgradeField:
		if h.upgrade != "" {
			h.upgrade += ", "
		}
		h.upgrade += f.value
	}
	return nil
}

// parseField reads one line of a head or trailer.
func parseField(line string) (field, error) {
	if line[0] == ' ' || line[0] == '\t' {
		return field{}, malform("a field is folded over two lines, or blanks stand before its name")
	}
	name, value, found := strings.Cut(line, ":")
	if !found || !httpguts.ValidHeaderFieldName(name) {
		return field{}, malform(fmt.Sprintf("the field name %q is no token", clip(name, 40)))
	}
	return field{fieldKind(name), name, strings.Trim(value, " \t")}, nil
}

// parseTarget takes a path, an absolute URL of the same host as Host, or "*" (RFC
// 9112, section 3.2). That of CONNECT is refused with words later on.
func (h *head) parseTarget() error {
	if h.authority != "" && !httpguts.ValidHostHeader(h.authority) {
		return malform(fmt.Sprintf("the Host %q is no host", clip(h.authority, 80)))
	}
	if h.method == http.MethodConnect && h.protocol == "" {
		if _, err := url.ParseRequestURI("http://" + h.target); err != nil || strings.HasPrefix(h.target, "/") {
			return malform("the target of CONNECT is not HOST:PORT")
		}
		return nil
	}
	if h.target == "*" {
		if h.method != http.MethodOptions {
			return malform("the target * is for OPTIONS")
		}
		return nil
	}
	if strings.HasPrefix(h.target, "/") && !strings.ContainsAny(h.target, "%\t") {
		return nil // there is nothing else in it to be wrong
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
	if h.authority != "" && hostPort(scheme, parsed.Host) != hostPort(scheme, h.authority) {
		return malform(fmt.Sprintf("the target names %q, and Host %q", clip(parsed.Host, 80), clip(h.authority, 80)))
	}
	if !httpguts.ValidHostHeader(parsed.Host) {
		return malform(fmt.Sprintf("the host %q in the target is none", clip(parsed.Host, 80)))
	}
	// It goes on as path and query alone, of the same bytes.
	h.authority = parsed.Host
	_, h.target, _ = strings.Cut(h.target, "://")
	if i := strings.IndexAny(h.target, "/?"); i < 0 {
		h.target = "/"
	} else if h.target = h.target[i:]; h.target[0] == '?' {
		h.target = "/" + h.target
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
func parseChunkSize(line []byte) (int64, error) {
	digits, _, _ := strings.Cut(string(line), ";")
	if strings.Trim(digits, "0123456789abcdefABCDEF") != "" {
		return 0, malform(fmt.Sprintf("the chunk size %q is no number", clip(digits, 40)))
	}
	size, err := strconv.ParseUint(digits, 16, 63)
	if err != nil {
		return 0, malform(fmt.Sprintf("the chunk size %q is no number", clip(digits, 40)))
	}
	return int64(size), nil
}
