package mitm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"agentops/audit"
	"agentops/mitm/policy"
)

// What is spoken within TLS (RFC 7301, RFC 9113).
const (
	alpnHTTP1 = "http/1.1"
	alpnHTTP2 = "h2"
)

// serveTLS ends the client's TLS with a leaf of the run's authority and hands on
// what is in it.
func (f *flow) serveTLS(ctx context.Context, conn *bufferedConn) {
	f.tls = true
	var alpn []string
	var dial dialFunc
	first := &helloConn{bufferedConn: conn}
	client := tls.Server(first, &tls.Config{
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (config *tls.Config, err error) {
			f.sni, f.ja4 = hello.ServerName, ja4(hello)
			if _, err := f.identify(hello.ServerName); err == nil && f.refusal == nil && f.proxy.config.Policy.PassesThrough(f.host(), f.destination.Port()) {
				first.sealed, alpn = true, hello.SupportedProtos
				return nil, errHello
			}
			first.open()
			config, dial, err = f.answerHello(ctx, hello)
			return config, errors.Join(err, conn.SetDeadline(time.Now().Add(f.handshakeTimeout())))
		},
	})
	// Time is set on the connection, not by a context: at the end of one, a
	// goroutine of the handshake's would close the flow while this one has it.
	err := conn.SetDeadline(time.Now().Add(f.handshakeTimeout()))
	if err == nil {
		err = client.Handshake()
	}
	if err == nil || first.sealed {
		err = conn.SetDeadline(time.Time{})
	}
	if err == nil && first.sealed {
		f.sealed = true
		f.serveSealed(ctx, first.again(), alpn)
		return
	}
	if err != nil {
		f.tlsFailure("client", describeClient(err, f.host()))
		f.fail(err)
		f.reset()
		return
	}
	// The handshake has left this goroutine a stack of which the connection, which may
	// be idle for long, needs a part: it goes on by another.
	switch client.ConnectionState().NegotiatedProtocol {
	case alpnHTTP1:
		go f.serveHTTP1(ctx, client, nil)
	case alpnHTTP2:
		go f.serveHTTP2(ctx, client, nil)
	default:
		go f.route(ctx, newBufferedConn(client, f), dial)
	}
}

// answerHello judges a flow by the name in its client hello and makes the answer:
// a leaf, and the protocols that the upstream speaks as well. A refused flow is
// answered too, so that the client can be told why.
func (f *flow) answerHello(ctx context.Context, hello *tls.ClientHelloInfo) (*tls.Config, dialFunc, error) {
	name, err := f.identify(hello.ServerName)
	if err != nil {
		return nil, nil, err
	}
	if f.refusal == nil {
		f.refusal = f.judge(policy.Target{Host: f.host(), Protocol: policy.TCP})
	}
	if err := f.opened("tls"); err != nil {
		return nil, nil, err
	}
	leaf, err := f.proxy.config.Authority.Leaf(name)
	if err != nil {
		return nil, nil, err
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{*leaf},
		MinVersion:   tls.VersionTLS12,

		DynamicRecordSizingDisabled: true,
	}
	// Whose session it was does not matter: each flow is judged by its own hello.
	config.SetSessionTicketKeys([][32]byte{f.proxy.ticketKey})
	offered := hello.SupportedProtos
	dial := func(ctx context.Context) (closeWriter, error) {
		return f.proxy.upstreams.dialTLS(ctx, f, f.host(), nil)
	}
	switch {
	case slices.Contains(offered, alpnHTTP2) && f.refusal == nil:
		// Without an upstream the client is answered all the same, and told.
		config.NextProtos, f.unreachable = f.proxy.upstreams.protocols(ctx, f)
	case slices.Contains(offered, alpnHTTP2) || slices.Contains(offered, alpnHTTP1):
		config.NextProtos = []string{alpnHTTP2, alpnHTTP1}
	case len(offered) > 0 && f.mayBeOpaque():
		upstream, err := f.proxy.upstreams.dialTLS(ctx, f, f.host(), offered)
		if err != nil {
			return nil, nil, err
		}
		if chosen := upstream.ConnectionState().NegotiatedProtocol; chosen != "" {
			config.NextProtos = []string{chosen}
		}
		dial = func(context.Context) (closeWriter, error) { return upstream, nil }
	}
	return config, dial, nil
}

// identify settles what the flow is to, now that the client has sent its SNI or
// none, and returns the name that its leaf is for. The name that belongs to the
// address and the SNI must be one.
func (f *flow) identify(sni string) (string, error) {
	if sni == "" {
		return f.host(), nil
	}
	name, err := policy.Host(sni)
	if err != nil {
		f.refusal = &refusal{reason: policy.Malformed, detail: fmt.Sprintf("SNI: %v", err)}
		return "", err
	}
	if f.name != "" && f.name != name {
		f.refusal = fronting("SNI", name, f.name)
		return name, nil
	}
	if f.refusal == nil {
		f.name = name
	}
	return name, nil
}

// fronting is the refusal of a name that is not the one of its flow.
func fronting(what, name, want string) *refusal {
	return &refusal{reason: policy.Fronting, detail: fmt.Sprintf("%s names %q on a connection to %q", what, name, want)}
}

// tlsFailure records a handshake that did not complete.
func (f *flow) tlsFailure(side, description string) {
	// The error is the journal's own, which ends the run.
	_ = f.proxy.config.Recorder.Append(audit.TLSFailure{Flow: f.id, Side: side, Host: f.host(), Error: description, Process: f.process})
}

// describeClient says what a failed handshake with the client means where the error
// does not.
func describeClient(err error, host string) string {
	advice := "; agent run --passthrough " + host + " leaves its TLS unopened"
	if isAlert(err) && strings.Contains(err.Error(), "certificate") {
		return fmt.Sprintf("%v: the client does not trust this run's authority; it has roots of its own or pins a certificate%s", err, advice)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return fmt.Sprintf("%v: the client broke the handshake off, as some do that do not trust this run's authority%s", err, advice)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Sprintf("%v: the client did not complete the handshake in time", err)
	}
	return err.Error()
}

// isAlert tells an alert of the peer's. crypto/tls keeps its type to itself; the
// alerts about certificates (RFC 8446, section 6.2) all have the word in their text.
func isAlert(err error) bool {
	remote, ok := errors.AsType[*net.OpError](err)
	return ok && remote.Op == "remote error"
}
