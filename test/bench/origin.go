package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// originName is the name of the origin's certificate.
const originName = "origin.test"

// origin is what all requests end at: nginx with TLS, and two servers that speak no
// protocol that is known.
type origin struct {
	address        string // 127.0.0.1:PORT, HTTP/1.1 and HTTP/2 over TLS
	opaque, stream string // likewise, of the other two
	ca             string // file
	pair           string // file: the certificate and its key, for any who terminate TLS
	size           int64  // bytes of /stream, and of what stream sends
}

// startOrigin starts the servers.
func (b *bench) startOrigin() (*origin, error) {
	o := &origin{ca: filepath.Join(b.folder, "ca.pem"), pair: filepath.Join(b.folder, "origin.pem"), size: 1_000_000_000}
	if b.quick {
		o.size /= 4
	}
	if err := o.writeCertificate(); err != nil {
		return nil, err
	}
	var err error
	if o.opaque, err = b.listen(answerOnce); err != nil {
		return nil, err
	}
	if o.stream, err = b.listen(func(conn net.Conn) error { return sendStream(conn, o.size) }); err != nil {
		return nil, err
	}
	root := filepath.Join(b.folder, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(root, "stream"), nil, 0o644); err != nil {
		return nil, err
	}
	// A hole: it is sent from memory.
	if err := os.Truncate(filepath.Join(root, "stream"), o.size); err != nil {
		return nil, err
	}
	o.address, _, err = b.startNginx("origin", fmt.Sprintf(`
		listen %%s ssl http2 backlog=4096;
		root %s;
		sendfile on;
		location = /1k { default_type text/plain; return 200 "%s"; }`, root, strings.Repeat("x", 1024)))
	if err != nil {
		return nil, err
	}
	return o, nil
}

// startNginx starts an nginx of one server, whose listen directive has %s for the
// address, and returns that and its process id. It speaks the TLS that we do: its default
// is at most 1.2, whose resumed sessions exchange no key, and the longer one of AES's.
func (b *bench) startNginx(name, server string) (address string, pid int, err error) {
	if address, err = freePort(); err != nil {
		return "", 0, err
	}
	dir := filepath.Join(b.folder, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", 0, err
	}
	pair := filepath.Join(b.folder, "origin.pem")
	config := fmt.Sprintf(`daemon off; user root; pid %[1]s/pid; error_log stderr warn;
worker_processes %[2]d; worker_rlimit_nofile 65536;
events { worker_connections 16384; }
http {
	access_log off; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
	keepalive_requests 1000000000; keepalive_timeout 300s;
	ssl_certificate %[3]s; ssl_certificate_key %[3]s; ssl_session_cache shared:tls:10m;
	ssl_protocols TLSv1.2 TLSv1.3; ssl_ciphers ECDHE-ECDSA-AES128-GCM-SHA256; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
	upstream origin { server %[4]s; keepalive 2048; keepalive_requests 1000000000; }
	server { %[5]s
	}
}
`, dir, runtime.NumCPU(), pair, b.originOr(address), fmt.Sprintf(server, address))
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return "", 0, err
	}
	cmd, err := b.serve(address, "nginx", "-p", dir, "-c", path)
	if err != nil {
		return "", 0, err
	}
	return address, cmd.Process.Pid, nil
}

// originOr is where the origin is, once it is.
func (b *bench) originOr(address string) string {
	if b.origin == nil {
		return address
	}
	return b.origin.address
}

// writeCertificate makes an authority and a certificate for the origin's name and
// address.
func (o *origin) writeCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: originName},
		NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		DNSNames: []string{originName}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	write := func(path string, template *x509.Certificate, more ...byte) error {
		der, err := x509.CreateCertificate(rand.Reader, template, root, key.Public(), key)
		if err != nil {
			return err
		}
		return os.WriteFile(path, append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), more...), 0o600)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(write(o.ca, root), write(o.pair, leaf, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...))
}

// listen serves connections, each in its own goroutine, until the bench is closed. The
// error of one is the client's to see.
func (b *bench) listen(serve func(net.Conn) error) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	b.undo = append(b.undo, l.Close)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = serve(conn)
			}()
		}
	}()
	return l.Addr().String(), nil
}

// answerOnce takes a byte, gives one back, and closes.
func answerOnce(conn net.Conn) error {
	first := make([]byte, 1)
	if _, err := io.ReadFull(conn, first); err != nil {
		return err
	}
	_, err := conn.Write(first)
	return err
}

// sendStream takes a byte and sends size of them.
func sendStream(conn net.Conn, size int64) error {
	block := make([]byte, 256<<10)
	if _, err := io.ReadFull(conn, block[:1]); err != nil {
		return err
	}
	for size > 0 {
		n, err := conn.Write(block[:min(size, int64(len(block)))])
		if err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}
