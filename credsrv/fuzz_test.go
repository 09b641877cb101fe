package credsrv

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"agentops/audit"
	"agentops/credsrv/grant"

	"github.com/sirupsen/logrus"
)

// Whatever bytes come, what is served or refused is in the record, and who does not
// know the token gets no secret.
func FuzzServer(f *testing.F) {
	const token, secret = "the-token", "s3cr3t"
	get := func(path, headers string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: HOST\r\n" + headers + "\r\n"
	}
	known := "Authorization: " + token + "\r\n"
	for _, seed := range []string{
		"", "\x16\x03\x01", "GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		get("/v1/process/aws", known), get("/v1/container/aws", known), get("/v1/process/aws", ""), get("/v1/process/aws", "Authorization: \r\n"),
		get("/v1/process/aws", known+known), get("/v1/process/aws", "Authorization: the-toke\r\n"), get("/v1/process/aws", "Host: evil.test\r\n"+known),
		get("/v1/process/../process/aws", known), get("//v1/process/aws", known), get("/v1/process/%61ws", known), get("/v1/process/a%2fws", known), get("/v1/process/other", known),
		get("http://HOST/v1/process/aws", known), get("/v1/process/aws", known) + get("/v1/process/aws", ""),
		strings.Replace(get("/v1/process/aws", known), "GET", "HEAD", 1), strings.Replace(get("/v1/process/aws", known), "GET", "POST", 1),
		strings.Replace(get("/v1/process/aws", known), "HOST", "evil.test", 1), strings.Replace(get("/v1/process/aws", known), "HTTP/1.1", "HTTP/1.0", 1),
		"POST /v1/process/aws HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\n\r\nhello" + get("/", known),
	} {
		f.Add([]byte(seed))
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	rec := &recorder{}
	g, err := grant.New(grant.AWS{RoleARN: role})
	if err != nil {
		f.Fatal(err)
	}
	now := time.Now()
	source := &Source{
		config:  SourceConfig{Grant: g, Recorder: rec, Log: log},
		current: &Credentials{AccessKeyID: "ASIAX", SecretAccessKey: secret, SessionToken: secret, Obtained: now, Expiration: now.Add(48 * time.Hour)},
	}
	server := NewServer(ServerConfig{Sources: []*Source{source}, Recorder: rec, Log: log})
	server.token = token
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	f.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, raw []byte) {
		rec.mu.Lock()
		rec.events = nil
		rec.mu.Unlock()
		conn, err := net.Dial("tcp4", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write(bytes.ReplaceAll(raw, []byte("HOST"), []byte(listener.Addr().String())))
		_ = conn.(*net.TCPConn).CloseWrite()
		answer, _ := io.ReadAll(conn) // reset, when the server has not read all
		var recorded, granted int
		rec.mu.Lock()
		defer rec.mu.Unlock()
		for _, e := range rec.events {
			e := e.(audit.CredentialServe)
			recorded++
			if e.Status == 200 {
				granted++
			}
		}
		ours := bytes.Count(answer, []byte("\r\n"+ErrorHeader+": ")) + bytes.Count(answer, []byte("HTTP/1.1 200 OK\r\n"))
		if recorded < ours {
			t.Errorf("%d answers, %d of them recorded: %q", ours, recorded, answer)
		}
		if bytes.Contains(answer, []byte(secret)) && granted == 0 || granted > 0 && !bytes.Contains(raw, []byte(token)) {
			t.Errorf("of %d that are recorded, %d were granted: %q", recorded, granted, answer)
		}
	})
}
