package grant

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	kindHTTP       = "http"
	maxHeaderName  = 128
	maxHeaderValue = 16 << 10 // bytes; most servers take 8 KiB
)

// HTTP is a header with a secret value, for the requests of runs to one host over
// TLS.
type HTTP struct {
	Name   string // [a-z0-9][a-z0-9._-]{0,31}
	Host   string // a name in lower case and A-labels
	Port   uint16
	Header string // in canonical form
	Made   time.Time

	sealed []byte // its value
}

// NewHTTP returns a grant with a value that is encrypted with the key in a folder,
// which LoadKey makes if need be; Made, and the port when it is 0, are filled in.
// An unusable one is an *Error.
func NewHTTP(h HTTP, value Secret, keys string) (HTTP, error) {
	h.Header = textproto.CanonicalMIMEHeaderKey(h.Header)
	if h.Port == 0 {
		h.Port = 443
	}
	h.Made = time.Now().UTC().Truncate(time.Second)
	if err := h.checkTarget(); err != nil {
		return HTTP{}, err
	}
	if err := checkValue(value); err != nil {
		return HTTP{}, err
	}
	key, err := LoadKey(keys)
	if err != nil {
		return HTTP{}, err
	}
	h.sealed = key.seal([]byte(value), h.binding())
	return h, nil
}

// Value decrypts the header's value. The error is an *Error.
func (h HTTP) Value(key *Key) (Secret, error) {
	value, err := key.open(h.sealed, h.binding())
	if err != nil {
		return "", bad(fmt.Errorf("the value of grant %q cannot be decrypted: the key is another than it was stored with, or the grant was changed", h.Name),
			"make it anew: agent grant http %s --host %s --header %s --value-from ...", h.Name, h.Address(), h.Header)
	}
	return Secret(value), checkValue(Secret(value))
}

// binding is what the value is for: in another grant it cannot be decrypted. None
// of the parts can have a newline in it.
func (h HTTP) binding() []byte {
	return fmt.Appendf(nil, "agentops http grant v1\n%s\n%s\n%s\n", h.Name, h.Address(), h.Header)
}

// GrantName implements Grant.
func (h HTTP) GrantName() string { return h.Name }

// Address is the host with its port.
func (h HTTP) Address() string { return net.JoinHostPort(h.Host, strconv.Itoa(int(h.Port))) }

// Hosts implements Grant: it is for this one alone.
func (h HTTP) Hosts() []string { return []string{h.Address()} }

// Check implements Grant.
func (h HTTP) Check() error {
	if err := h.checkTarget(); err != nil {
		return err
	}
	if len(h.sealed) == 0 {
		return bad(errors.New("there is no value in it"), "make it anew: agent grant http %s ...", h.Name)
	}
	return nil
}

// checkTarget checks all but the value.
func (h HTTP) checkTarget() error {
	if err := checkName(h.Name); err != nil {
		return err
	}
	if _, err := netip.ParseAddr(h.Host); err == nil || !made(h.Host, lower+digits+"-_.", 1, 253) || h.Port == 0 {
		return bad(fmt.Errorf("%q is not the host of a grant", shorten(h.Address())),
			"write one host by its name, HOST or HOST:PORT: an address or a *.suffix could be anybody's")
	}
	return checkHeader(h.Header)
}

// reserved are headers that say where a request goes, how it is framed or what it
// is, which was judged before the header is put on it.
var reserved = []string{
	"Host", "Connection", "Content-Length", "Expect", "Http2-Settings", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
	"Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	"X-Http-Method", "X-Http-Method-Override", "X-Method-Override",
}

func checkHeader(name string) error {
	const token = letters + digits + "!#$%&'*+-.^_`|~" // RFC 9110, section 5.6.2
	if !made(name, token, 1, maxHeaderName) || textproto.CanonicalMIMEHeaderKey(name) != name {
		return bad(fmt.Errorf("%q is not the name of a header", shorten(name)), "write one such as Authorization or X-Api-Key")
	}
	if slices.Contains(reserved, name) {
		return bad(fmt.Errorf("header %s cannot be granted: it says where a request goes or how it is read", name), "write one such as Authorization or X-Api-Key")
	}
	return nil
}

// checkValue says what is wrong with a value, and nothing of what is in it.
func checkValue(value Secret) error {
	const hint = "write the header's whole value, such as Bearer TOKEN, on one line"
	text := string(value)
	switch {
	case text == "":
		return bad(errors.New("the header's value is empty"), hint)
	case len(text) > maxHeaderValue:
		return bad(fmt.Errorf("the header's value is longer than %d bytes", maxHeaderValue), hint)
	case strings.TrimSpace(text) != text:
		return bad(errors.New("the header's value begins or ends with a blank"), hint)
	case strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }):
		return bad(errors.New("the header's value has a line break, a control character or one beyond ASCII in it"), hint)
	}
	return nil
}

// httpDocument is an HTTP grant as it is printed and, with its value, stored.
type httpDocument struct {
	Version int       `json:"version"`
	Kind    string    `json:"kind"` // "http"
	Name    string    `json:"name"`
	Host    string    `json:"host"`
	Port    uint16    `json:"port"`
	Header  string    `json:"header"`
	Made    time.Time `json:"made"`
	Sealed  []byte    `json:"sealed,omitempty"`
}

// MarshalJSON implements json.Marshaler, without the value.
func (h HTTP) MarshalJSON() ([]byte, error) {
	h.sealed = nil
	return json.Marshal(h.stored())
}

func (h HTTP) stored() any {
	return httpDocument{documentVersion, kindHTTP, h.Name, h.Host, h.Port, h.Header, h.Made, h.sealed}
}

func parseHTTP(content []byte) (HTTP, error) {
	var d httpDocument
	if err := decode(content, &d); err != nil {
		return HTTP{}, err
	}
	return HTTP{d.Name, d.Host, d.Port, d.Header, d.Made, d.Sealed}, nil
}
