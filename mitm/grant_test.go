package mitm

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"agentops/audit"
	"agentops/mitm/policy"
)

const secret = "Bearer s3cr3t-of-the-test"

func granted(name, host, header string) Grant {
	return Grant{Name: name, Host: host, Port: 443, Header: header, Value: func() string { return secret }}
}

// showGrants answers with what the upstream got in two headers, but for the secret:
// it must not come back, or no test could look for it.
func showGrants(w http.ResponseWriter, r *http.Request) {
	show := func(name string) string {
		var values []string
		for key, v := range r.Header {
			if strings.EqualFold(strings.ReplaceAll(key, "_", "-"), name) {
				values = append(values, v...)
			}
		}
		return strings.ReplaceAll(strings.Join(values, "+"), secret, "granted")
	}
	if r.URL.Path == "/away" {
		http.Redirect(w, r, "https://other.example.com/", http.StatusTemporaryRedirect)
		return
	}
	fmt.Fprintf(w, "%s authorization=%s key=%s", r.Host, show("authorization"), show("x-api-key"))
}

// The header is on every request to the host that it is granted for, in the place of
// the run's own, and on no other; its use is in the record, its value is not.
func TestGrantedHeaders(t *testing.T) {
	for _, protocol := range []string{"h1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			b := newBench(t, benchConfig{
				upstream: upstream(t, true, showGrants),
				grants:   []Grant{granted("api", "www.example.com", "Authorization"), granted("key", "www.example.com", "X-Api-Key"), granted("far", "far.example.com", "Authorization")},
			})
			client := b.client(protocol)
			for _, c := range []struct {
				url     string
				headers []string // name, value
				want    string
			}{
				{"https://www.example.com/", nil, "authorization=granted key=granted"},
				{"https://www.example.com/", []string{"Authorization", "mine", "X_api_key", "mine"}, "authorization=granted key=granted"},
				{"https://www.example.com/x", []string{"AUTHORIZATION", "mine", "X-API-KEY", "mine"}, "authorization=granted key=granted"},
				{"https://other.example.com/", []string{"Authorization", "mine"}, "authorization=mine key="},
				{"https://www.example.com:8443/", []string{"Authorization", "mine"}, "authorization=mine key="},
				{"https://far.example.com/", []string{"X-Api-Key", "mine"}, "authorization=granted key=mine"},
				{"https://www.example.com/away", nil, "other.example.com authorization= key="},
			} {
				request, err := http.NewRequest(http.MethodGet, c.url, http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				for pair := range slices.Chunk(c.headers, 2) {
					request.Header[pair[0]] = []string{pair[1]}
				}
				res, err := client.Do(request)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || !strings.HasSuffix(string(body), c.want) {
					t.Errorf("%s with %q: %q, %v, want %q", c.url, c.headers, body, err, c.want)
				}
			}
			client.CloseIdleConnections()
			b.stop()
			var used []string
			for _, e := range events[audit.HTTPRequest](b.recorder) {
				used = append(used, strings.TrimPrefix(e.URL, "https://")+" "+strings.Join(e.Grants, "+"))
			}
			slices.Sort(used)
			want := []string{
				"far.example.com/ far", "other.example.com/ ", "other.example.com/ ", "www.example.com/ api+key", "www.example.com/ api+key",
				"www.example.com/away api+key", "www.example.com/x api+key", "www.example.com:8443/ ",
			}
			if !slices.Equal(used, want) {
				t.Errorf("recorded as used are %q, want %q", used, want)
			}
			secretIsNowhere(t, b)
		})
	}
}

func secretIsNowhere(t *testing.T, b *bench) {
	t.Helper()
	for _, e := range b.recorder.events {
		if text := fmt.Sprintf("%+v", e); strings.Contains(text, "s3cr3t") {
			t.Errorf("recorded is %s", text)
		}
	}
}

// A client that lists the header as one of its connection's own does not take it off.
func TestGrantedHeaderIsNotHopByHop(t *testing.T) {
	b := newBench(t, benchConfig{upstream: upstream(t, false, showGrants), grants: []Grant{granted("api", "www.example.com", "Authorization")}})
	conn := tls.Client(b.dial("www.example.com:443"), &tls.Config{RootCAs: b.roots, ServerName: "www.example.com"})
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: www.example.com\r\nAuthorization: mine\r\nConnection: close, Authorization\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if want := "authorization=granted"; err != nil || !strings.Contains(string(body), want) {
		t.Errorf("got %q, %v", body, err)
	}
}

// It never goes out in the clear, to a server that is not who it should be, or to one
// that is asked to send it back.
func TestGrantedHeadersStaySecret(t *testing.T) {
	seen := func(w http.ResponseWriter, r *http.Request) {
		for name, values := range r.Header {
			if strings.Contains(strings.Join(values, ""), "s3cr3t") {
				t.Errorf("%s is in %s %s", name, r.Method, r.URL)
			}
		}
	}
	grants := []Grant{granted("api", "www.example.com", "Authorization")}
	t.Run("without TLS", func(t *testing.T) {
		b := newBench(t, benchConfig{upstream: plain(t, seen), grants: grants})
		for _, protocol := range []string{"h1", "h2c"} {
			client := b.client(protocol)
			res, err := client.Get("http://www.example.com:443/")
			if err != nil {
				t.Fatal(err)
			}
			if problem := problemOf(t, res); res.StatusCode != 403 || problem["reason"] != string(policy.Exposed) || problem["file"] != "grant api" {
				t.Errorf("%s: %d %v", protocol, res.StatusCode, problem)
			}
			if res, _ := b.get(client, "http://www.example.com/"); res.StatusCode != 200 {
				t.Errorf("%s, at another port: %d", protocol, res.StatusCode)
			}
			client.CloseIdleConnections()
		}
		b.stop()
		if refused := events[audit.Refused](b.recorder); len(refused) != 2 || refused[0].Reason != "exposed" {
			t.Errorf("recorded %+v", refused)
		}
		for _, e := range events[audit.HTTPRequest](b.recorder) {
			if e.Grants != nil {
				t.Errorf("recorded %+v", e)
			}
		}
	})
	t.Run("TRACE", func(t *testing.T) {
		b := newBench(t, benchConfig{upstream: upstream(t, true, seen), grants: grants})
		for _, headers := range []http.Header{{}, {"X-Http-Method-Override": {"trace"}}} {
			method := http.MethodTrace
			if len(headers) > 0 {
				method = http.MethodPost
			}
			request, err := http.NewRequest(method, "https://www.example.com/", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			request.Header = headers
			res, err := b.client("h1").Do(request)
			if err != nil {
				t.Fatal(err)
			}
			if problem := problemOf(t, res); res.StatusCode != 403 || problem["reason"] != string(policy.Exposed) {
				t.Errorf("%v: %d %v", headers, res.StatusCode, problem)
			}
		}
	})
	t.Run("a server of another name", func(t *testing.T) {
		server := httptest.NewTLSServer(http.HandlerFunc(seen))
		t.Cleanup(server.Close)
		b := newBench(t, benchConfig{upstream: server, grants: []Grant{granted("api", "www.elsewhere.test", "Authorization")}})
		for _, trusted := range []bool{true, false} {
			if !trusted {
				b.distrust()
			}
			if res, body := b.get(b.client("h1"), "https://www.elsewhere.test/"); res.StatusCode != 502 || strings.Contains(body, "s3cr3t") {
				t.Errorf("%d %s", res.StatusCode, body)
			}
		}
		b.stop()
		for _, e := range events[audit.HTTPRequest](b.recorder) {
			if e.Grants != nil || e.Error == "" {
				t.Errorf("recorded %+v", e)
			}
		}
		secretIsNowhere(t, b)
	})
}
