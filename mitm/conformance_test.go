//go:build conformance

package mitm

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"agentops/mitm/authority"
	"agentops/mitm/policy"
	"agentops/mitm/resolver"

	"github.com/sirupsen/logrus"
)

// The client's side of the proxy is put to h2spec, in front of a server that answers
// everything.
func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name     string
		upstream *httptest.Server
		flags    []string
		failing  []string // known to: docs/conformance.md says of each why
	}{
		{"TLS", upstream(t, true, answerAll), []string{"--tls", "--insecure"}, nil},
		{"prior knowledge", plain(t, answerAll), nil, []string{"Sends invalid connection preface"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			port := strconv.Itoa(conforming(t, c.upstream))
			args := append([]string{"generic", "http2", "hpack", "--strict", "--timeout", "5", "--port", port}, c.flags...)
			// It exits with 1 for any that failed.
			out, _ := exec.CommandContext(t.Context(), "../bin/h2spec", args...).Output()
			t.Logf("%s", out)
			_, failures, _ := strings.Cut(string(out), "Failures:")
			var failed []string
			for line := range strings.Lines(failures) {
				if _, title, ok := strings.Cut(line, "\u00d7 "); ok {
					_, title, _ = strings.Cut(title, ": ")
					failed = append(failed, strings.TrimSpace(title))
				}
			}
			slices.Sort(failed)
			slices.Sort(c.failing)
			if !slices.Equal(failed, c.failing) || !bytes.Contains(out, fmt.Appendf(nil, "146 tests, %d passed, 0 skipped", 146-len(failed))) {
				t.Errorf("failed are %q, known to fail %q", failed, c.failing)
			}
		})
	}
}

func answerAll(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	_, _ = io.WriteString(w, strings.Repeat("x", 100))
}

// conforming starts a proxy whose clients have dialled its own address, and returns
// the port.
func conforming(t *testing.T, upstream *httptest.Server) int {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ca, err := authority.New("test")
	if err != nil {
		t.Fatal(err)
	}
	pin, err := ParsePin("*=" + upstream.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	if upstream.TLS != nil {
		trusted.AddCert(upstream.Certificate())
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	p := New(Config{
		Policy: &policy.Policy{}, Authority: ca, Names: resolver.NewNames(), Dialer: NewDialer([]Pin{pin}, &policy.Policy{}),
		Upstreams: func() *x509.CertPool { return trusted }, Recorder: &recorder{changed: make(chan struct{})}, Log: log,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().(*net.TCPAddr).Port
}
