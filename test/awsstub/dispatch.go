package awsstub

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// dispatch finds the service that a request is for: by its host, or, where that
// is an address, by the scope of its signature or the form in its body.
func (s *Stub) dispatch(w http.ResponseWriter, r *http.Request) {
	host := hostname(r.Host)
	service := ""
	if net.ParseIP(host) != nil {
		service = s.addressed(r)
	}
	bucket, region, virtual := strings.Cut(host, ".s3.")
	switch {
	case service == "sts" || strings.HasPrefix(host, "sts."):
		s.sts(w, r)
	case service == "s3" || strings.HasPrefix(host, "s3."):
		s.s3(w, r, strings.TrimPrefix(r.URL.Path, "/"))
	case virtual && bucket != "" && region != "":
		s.s3(w, r, bucket+r.URL.Path)
	default:
		website(w, r)
	}
}

// addressed is the service that a request to an address is for, or "".
func (s *Stub) addressed(r *http.Request) string {
	scope := signed(r).scope
	if len(scope) == 5 {
		return scope[3]
	}
	if r.Method != http.MethodPost || r.URL.Path != "/" || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		return ""
	}
	// Unsigned: a form with an action is for STS, that will refuse it.
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), r.Body))
	if form, parseErr := url.ParseQuery(string(body)); err == nil && parseErr == nil && form.Has("Action") {
		return "sts"
	}
	return ""
}

// website answers for every other host.
func website(w http.ResponseWriter, r *http.Request) {
	n, _ := io.Copy(io.Discard, r.Body) // a client that breaks off reads no answer
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "Hello from %s\n%s %s by %s, a body of %d bytes\n", hostname(r.Host), r.Method, r.URL.Path, r.Proto, n)
}

// hostname is a Host header's without the port.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(strings.Trim(host, "[]"))
}
