package test

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"agentops/test/awsstub"
)

// outside is what stands in for the internet: a server on loopback that is every
// host, over TLS with HTTP/1.1 and HTTP/2, and without.
type outside struct {
	tls, plain string // ADDRESS:PORT
	udp        string // likewise: NTP, and what is no NTP is sent back
	ca         string // file
}

func newOutside(t *testing.T) *outside {
	t.Helper()
	return serveOutside(t, newSite(t, filepath.Join(t.TempDir(), "git")))
}

func serveOutside(t *testing.T, handler http.Handler) *outside {
	t.Helper()
	plain := httptest.NewServer(handler)
	t.Cleanup(plain.Close)
	ca, err := awsstub.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	secure := httptest.NewUnstartedServer(handler)
	secure.EnableHTTP2 = true
	certificate := func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName == "" {
			return ca.Leaf("1.2.3.4") // the one address that the scripts ask for by TLS
		}
		return ca.Leaf(hello.ServerName)
	}
	secure.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{GetCertificate: certificate, NextProtos: []string{"h2", "http/1.1"}}, nil
	}}
	secure.StartTLS()
	t.Cleanup(secure.Close)
	o := &outside{
		tls:   secure.Listener.Addr().String(),
		plain: plain.Listener.Addr().String(),
		udp:   newTimeServer(t),
		ca:    filepath.Join(t.TempDir(), "upstream-ca.pem"),
	}
	if err := os.WriteFile(o.ca, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return o
}

// newTimeServer tells clients of NTP the time (RFC 5905), and sends anything else
// back.
func newTimeServer(t *testing.T) string {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			const client, server = 3, 4
			if reply := buf[:n]; n == 48 && reply[0]&7 == client {
				copy(reply[24:], reply[40:]) // when it was asked
				reply[0], reply[1] = reply[0]&0x38|server, 1
				for _, at := range []int{16, 32, 40} {
					now := time.Now()
					binary.BigEndian.PutUint32(reply[at:], uint32(now.Unix()+2208988800)) // since 1900
					binary.BigEndian.PutUint32(reply[at+4:], uint32(uint64(now.Nanosecond())<<32/1e9))
				}
			}
			_, _ = conn.WriteToUDPAddrPort(buf[:n], from) // a client that is gone has no use for it
		}
	}()
	return conn.LocalAddr().String()
}

// digest is the beginning of the SHA-256 of a header's values, "-" of none.
func digest(values []string) string {
	if len(values) == 0 {
		return "-"
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(values, "+"))))[:16]
}

// newSite answers for every host; /repo.git is a repository to clone, and there
// are registries.
func newSite(t *testing.T, root string) http.Handler {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "hello from %s: %s %s, %d bytes, by %s\n", r.Host, r.Method, r.URL.Path, n, r.Proto)
	})
	// What it got in two headers is told by its hash: the secret must not come back.
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "authorization %s x-api-key %s\n", digest(r.Header["Authorization"]), digest(r.Header["X-Api-Key"]))
	})
	mux.HandleFunc("/to", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.RawQuery, http.StatusFound)
	})
	mux.Handle("/repo.git/", &cgi.Handler{
		Path: "/usr/lib/git-core/git-http-backend",
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1"},
	})
	addRegistries(t, mux)
	script := `git init -q -b main work && cd work && echo content > file &&
git add file && git -c user.name=a -c user.email=a@b commit -q -m first && git clone -q --bare . ../repo.git`
	cmd := exec.Command("sh", "-ec", script)
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make a repository: %v\n%s", err, out)
	}
	return mux
}
