package main

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// ask runs the role against a server.
func ask(t *testing.T, handler http.HandlerFunc, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, err bytes.Buffer
	code = credential(args, &out, &err, func(name string) string {
		return map[string]string{"AGENTOPS_CREDENTIAL_URL": server.URL, "AGENTOPS_CREDENTIAL_TOKEN_FILE": token}[name]
	})
	return code, out.String(), err.String()
}

func TestCredentialPrintsTheBodyAlone(t *testing.T) {
	code, stdout, stderr := ask(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/process/prod" || r.Header.Get("Authorization") != "s3cret" || r.Host != r.Context().Value(http.LocalAddrContextKey).(net.Addr).String() {
			t.Errorf("request %s, host %s, headers %v", r.URL, r.Host, r.Header)
		}
		w.Write([]byte(`{"Version":1}`))
	}, "prod")
	if code != 0 || stdout != `{"Version":1}` || stderr != "" {
		t.Errorf("code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

func TestCredentialFailsInOneLine(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		args    []string
		want    string
	}{
		"refused": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Agentops-Error", "not\x1b[2J today")
			w.WriteHeader(503)
		}, []string{"a"}, "not"},
		"no grant": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, []string{"a"}, "404"},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"))
			conn.Close()
		}, []string{"a"}, "cut off"},
		"too long": {func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1<<20)) }, []string{"a"}, "too long"},
		"no name":  {nil, nil, "usage"},
		"a path":   {nil, []string{"../x"}, "usage"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := ask(t, c.handler, c.args...)
			if code != 1 || stdout != "" || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 || strings.Contains(stderr, "\x1b") {
				t.Errorf("code %d, stdout %q, stderr %q, want one line with %q", code, stdout, stderr, c.want)
			}
		})
	}
}

// The token goes to the run's own loopback only.
func TestCredentialTakesNoOtherServer(t *testing.T) {
	for _, url := range []string{"", "http://127.0.0.1", "http://127.0.0.2:80", "http://localhost:80", "https://127.0.0.1:80", "http://127.0.0.1:80@evil.example", "http://127.0.0.1:0"} {
		if port, err := parseURL(url); err == nil {
			t.Errorf("%q is taken, port %d", url, port)
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"))
	f.Add([]byte("HTTP/1.1 503 x\r\nAgentops-Error: y\r\n\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		body, err := parseAnswer(answer)
		if err == nil && !bytes.HasSuffix(answer, body) {
			t.Errorf("%q gave %q", answer, body)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\r\n\x1b") {
			t.Errorf("%q gave the error %q", answer, err)
		}
	})
}
