package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
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
)

// outside is what stands in for the internet: a server on loopback that is every
// host, over TLS with HTTP/1.1 and HTTP/2, and without.
type outside struct {
	tls, plain string // ADDRESS:PORT
	ca         string // file
}

func newOutside(t *testing.T) *outside {
	t.Helper()
	dir := t.TempDir()
	handler := newSite(t, filepath.Join(dir, "git"))
	plain := httptest.NewServer(handler)
	t.Cleanup(plain.Close)
	ca, leafFor := newUpstreamCA(t)
	secure := httptest.NewUnstartedServer(handler)
	secure.EnableHTTP2 = true
	certificate := func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName == "" {
			return leafFor("1.2.3.4") // the one address that the scripts ask for by TLS
		}
		return leafFor(hello.ServerName)
	}
	secure.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{GetCertificate: certificate, NextProtos: []string{"h2", "http/1.1"}}, nil
	}}
	secure.StartTLS()
	t.Cleanup(secure.Close)
	o := &outside{
		tls:   secure.Listener.Addr().String(),
		plain: plain.Listener.Addr().String(),
		ca:    filepath.Join(dir, "upstream-ca.pem"),
	}
	if err := os.WriteFile(o.ca, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	return o
}

// newSite answers for every host; /repo.git is a repository to clone.
func newSite(t *testing.T, root string) http.Handler {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "hello from %s: %s %s, %d bytes, by %s\n", r.Host, r.Method, r.URL.Path, n, r.Proto)
	})
	mux.Handle("/repo.git/", &cgi.Handler{
		Path: "/usr/lib/git-core/git-http-backend",
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1"},
	})
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

// newUpstreamCA makes an authority and a function that signs for any name.
func newUpstreamCA(t *testing.T) ([]byte, func(string) (*tls.Certificate, error)) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Upstream CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leafFor := func(name string) (*tls.Certificate, error) {
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{name},
			NotBefore: template.NotBefore, NotAfter: template.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		}
		if isAddress := strings.Trim(name, "0123456789.") == ""; isAddress {
			leaf.DNSNames, leaf.IPAddresses = nil, []net.IP{net.ParseIP(name)}
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, template, key.Public(), key)
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), leafFor
}
