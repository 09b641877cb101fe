// Package awsstub stands in for AWS on loopback: STS and S3 as far as a run uses
// them, with real signatures, sessions that expire, and failures to order. Every
// other host is an ordinary website.
package awsstub

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// Stub is a running stand-in.
type Stub struct {
	config Config
	ca     *Authority
	secure net.Listener
	plain  net.Listener
	server *http.Server
	done   sync.WaitGroup

	mu       sync.Mutex
	sessions map[string]session // by access key id
	failures []Failure
	calls    int // of AssumeRole
	waiting  int // of them, those that go on
	most     int // of them, at the same time
	changed  chan struct{}
}

// New starts a stand-in on free ports of 127.0.0.1.
func New(config Config) (*Stub, error) {
	config, err := config.ready()
	if err != nil {
		return nil, err
	}
	s := &Stub{config: config, sessions: make(map[string]session), changed: make(chan struct{})}
	if s.ca, err = NewAuthority(); err != nil {
		return nil, err
	}
	if s.plain, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if s.secure, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, errors.Join(err, s.plain.Close())
	}
	s.server = &http.Server{
		Handler:           http.HandlerFunc(s.dispatch),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // clients that break off
		TLSConfig: &tls.Config{
			GetCertificate: s.leaf,
			NextProtos:     []string{"h2", "http/1.1"},
		},
	}
	s.done.Go(func() { _ = s.server.Serve(s.plain) }) // both end with Close
	s.done.Go(func() { _ = s.server.ServeTLS(s.secure, "", "") })
	return s, nil
}

// leaf signs for the name that a client asks for, or else for the address it came to.
func (s *Stub) leaf(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	host := hello.ServerName
	if host == "" {
		host = s.secure.Addr().(*net.TCPAddr).IP.String()
	}
	return s.ca.Leaf(host)
}

// Close ends the stand-in.
func (s *Stub) Close() error {
	err := s.server.Close()
	s.done.Wait()
	return err
}

// URL is where it listens without TLS: http://127.0.0.1:PORT.
func (s *Stub) URL() string { return "http://" + s.plain.Addr().String() }

// TLSAddr is where it listens with TLS, ADDRESS:PORT, for every host.
func (s *Stub) TLSAddr() string { return s.secure.Addr().String() }

// CA is the authority of its certificates, PEM.
func (s *Stub) CA() []byte { return s.ca.PEM() }

// Fail orders the answers to the next calls of AssumeRole, in addition to those
// that are ordered already.
func (s *Stub) Fail(failures ...Failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures = append(s.failures, failures...)
}

// AssumeRoleCalls is how many calls of AssumeRole have come, failed ones too.
func (s *Stub) AssumeRoleCalls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// MostAtOnce is how many calls of AssumeRole went on at the same time, at most.
func (s *Stub) MostAtOnce() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.most
}

// AwaitAssumeRole returns once n calls of AssumeRole have come.
func (s *Stub) AwaitAssumeRole(ctx context.Context, n int) error {
	for {
		s.mu.Lock()
		calls, changed := s.calls, s.changed
		s.mu.Unlock()
		if calls >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d calls of AssumeRole, waited for %d: %w", calls, n, ctx.Err())
		}
	}
}

// begin counts a call of AssumeRole and returns what was ordered for it.
func (s *Stub) begin() (failure Failure, end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	s.waiting++
	s.most = max(s.most, s.waiting)
	close(s.changed)
	s.changed = make(chan struct{})
	if len(s.failures) > 0 {
		failure, s.failures = s.failures[0], s.failures[1:]
	}
	return failure, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.waiting--
	}
}
