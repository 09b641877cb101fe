package mitm

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
)

// ofOneConnection tells fields that have nothing to look for in HTTP/2 (RFC 9113, section
// 8.2.2).
func ofOneConnection(name string) bool {
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", "http2-settings":
		return true
	}
	return false
}

// checkField checks the name and value of a field (RFC 9113, section 8.2.1).
func checkField(f *hpack.HeaderField) error {
	if !httpguts.ValidHeaderFieldName(f.Name) {
		return malform(fmt.Sprintf("the field name %q is no token", clip(f.Name, 40)))
	}
	for i := range len(f.Name) {
		if c := f.Name[i]; c >= 'A' && c <= 'Z' {
			return malform(fmt.Sprintf("the field name %q is not in lower case", clip(f.Name, 40)))
		}
	}
	if !httpguts.ValidHeaderFieldValue(f.Value) {
		return malform(fmt.Sprintf("a control character in the field %s", clip(f.Name, 40)))
	}
	return nil
}

// checkTrailer checks what follows a body.
func checkTrailer(fields []hpack.HeaderField) error {
	for i := range fields {
		f := &fields[i]
		if strings.HasPrefix(f.Name, ":") {
			return malform("the field " + clip(f.Name, 40) + " in a trailer")
		}
		if err := checkField(f); err != nil {
			return err
		}
		if fieldKind(f.Name).framing() || ofOneConnection(f.Name) {
			return malform("the field " + f.Name + " in a trailer")
		}
	}
	return nil
}

// parseHeaders reads the head of a request of HTTP/2 (RFC 9113, section 8.3), as
// strictly as parseRequest that of HTTP/1. extended: it may be an extended CONNECT (RFC
// 8441, section 4).
func (h *head) parseHeaders(fields []hpack.HeaderField, extended bool) error {
	*h = head{minor: 1, length: noLength, fields: make([]field, 0, len(fields))}
	var pseudo [5]*string
	names := [...]string{":method", ":scheme", ":authority", ":path", ":protocol"}
fields:
	for i := range fields {
		f := &fields[i]
		if strings.HasPrefix(f.Name, ":") {
			if len(h.fields) > 0 {
				return malform("the field " + clip(f.Name, 40) + " behind others")
			}
			for n, name := range names {
				if f.Name != name || n == 4 && !extended {
					continue
				}
				if pseudo[n] != nil {
					return malform("there are two fields " + name)
				}
				pseudo[n] = &f.Value
				continue fields
			}
			return malform(fmt.Sprintf("the field %q is not known", clip(f.Name, 40)))
		}
		if err := checkField(f); err != nil {
			return err
		}
		if ofOneConnection(f.Name) {
			return malform("the field " + f.Name + " is of one connection, and not for HTTP/2")
		}
		kind := fieldKind(f.Name)
		switch kind {
		case teField:
			if f.Value != "trailers" {
				return malform("a TE that is not trailers")
			}
		case lengthField:
			before := h.length
			if err := h.note(field{kind, f.Name, f.Value}); err != nil {
				return err
			}
			if before != noLength {
				return malform("there are two fields content-length")
			}
		case hostField:
			if h.authority != "" {
				return malform("there are two fields host")
			}
			h.authority = f.Value
		case expectField, trailerField:
			if err := h.note(field{kind, f.Name, f.Value}); err != nil {
				return err
			}
		}
		h.fields = append(h.fields, field{kind, f.Name, f.Value})
	}
	value := func(n int) string {
		if pseudo[n] == nil {
			return ""
		}
		return *pseudo[n]
	}
	if h.method = value(0); !httpguts.ValidHeaderFieldName(h.method) {
		return malform(fmt.Sprintf("the method %q is no token", clip(h.method, 40)))
	}
	if named := value(2); pseudo[2] != nil {
		if h.authority != "" && hostPort("https", h.authority) != hostPort("https", named) {
			return malform(fmt.Sprintf("there are :authority %q and Host %q", clip(named, 80), clip(h.authority, 80)))
		}
		h.authority = named
	}
	if strings.Contains(h.authority, "@") || h.authority != "" && !httpguts.ValidHostHeader(h.authority) {
		return malform(fmt.Sprintf("the host %q is none", clip(h.authority, 80)))
	}
	if h.protocol = value(4); pseudo[4] != nil && (h.method != http.MethodConnect || !httpguts.ValidHeaderFieldName(h.protocol)) {
		return malform(fmt.Sprintf("the method %s with :protocol %q", clip(h.method, 40), clip(h.protocol, 40)))
	}
	if h.method == http.MethodConnect && h.protocol == "" {
		if pseudo[1] != nil || pseudo[3] != nil {
			return malform("CONNECT with a path")
		}
		return nil
	}
	if scheme := value(1); scheme != "http" && scheme != "https" {
		return malform(fmt.Sprintf("the scheme %q is not of HTTP", clip(scheme, 40)))
	}
	h.target = value(3)
	if !strings.HasPrefix(h.target, "/") && h.target != "*" {
		return malform("the path does not begin with a slash")
	}
	for i := range len(h.target) {
		if c := h.target[i]; c <= ' ' || c == 0x7f {
			return malform("a blank or control character in the path")
		}
	}
	return h.parseTarget()
}

// response is the head of a response, without what is of one connection.
type response struct {
	status int
	length int64
	fields []hpack.HeaderField
}

// responseHead reads one (RFC 9113, section 8.3.2).
func responseHead(fields []hpack.HeaderField) (response, error) {
	r := response{length: noLength}
	if len(fields) == 0 || fields[0].Name != ":status" {
		return r, malform("there is no :status")
	}
	status, err := strconv.ParseUint(fields[0].Value, 10, 16)
	if err != nil || len(fields[0].Value) != 3 || status < 100 || status == http.StatusSwitchingProtocols {
		return r, malform(fmt.Sprintf("the status %q is none", clip(fields[0].Value, 40)))
	}
	r.status = int(status)
	kept := fields[:1]
	for i := range fields[1:] {
		f := &fields[i+1]
		if err := checkField(f); err != nil {
			return r, err
		}
		if ofOneConnection(f.Name) {
			continue
		}
		if f.Name == "content-length" {
			n, err := strconv.ParseUint(f.Value, 10, 63)
			if err != nil || r.length != noLength && r.length != int64(n) {
				return r, malform(fmt.Sprintf("the Content-Length %q is no number", clip(f.Value, 40)))
			}
			r.length = int64(n)
		}
		kept = append(kept, *f)
	}
	r.fields = kept
	return r, nil
}
