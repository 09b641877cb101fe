package mitm

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"agentops/mitm/policy"
)

// Why an upstream could not be had, as the answer's reason.
const (
	reasonExpired     policy.Reason = "certificate-expired"
	reasonUntrusted   policy.Reason = "certificate-untrusted"
	reasonWrongName   policy.Reason = "certificate-wrong-name"
	reasonCertificate policy.Reason = "client-certificate" // the upstream wants one
	reasonConnection  policy.Reason = "connection-refused"
	reasonTimeout     policy.Reason = "timeout"
	reasonNoHost      policy.Reason = "no-such-host"
	reasonTLS         policy.Reason = "tls"
	reasonBroken      policy.Reason = "broken" // anything else
)

// clientCertificateError is the end of a handshake in which the upstream has asked
// for a certificate of the client.
type clientCertificateError struct{ alert error }

func (e *clientCertificateError) Error() string { return e.alert.Error() }
func (e *clientCertificateError) Unwrap() error { return e.alert }

// upstreamReason is the stable word for an upstream's failure.
func upstreamReason(err error) policy.Reason {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return reasonExpired
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return reasonUntrusted
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return reasonWrongName
	}
	if _, ok := errors.AsType[*clientCertificateError](err); ok {
		return reasonCertificate
	}
	if isAlert(err) {
		// In TLS 1.3 it comes behind the handshake.
		if strings.Contains(err.Error(), "certificate required") {
			return reasonCertificate
		}
		return reasonTLS
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return reasonNoHost
	}
	timeout, ok := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return reasonConnection
	case ok && timeout.Timeout(), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return reasonTimeout
	}
	return reasonBroken
}

// describeUpstream says what can be done about an upstream's failure where the
// error does not.
func describeUpstream(err error, host string) string {
	switch upstreamReason(err) {
	case reasonUntrusted:
		return fmt.Sprintf("%v: give its root with --upstream-ca", err)
	case reasonCertificate:
		return fmt.Sprintf("%v: it wants a certificate of the client, which can only be shown in TLS that is not opened: agent run --passthrough %s", err, host)
	}
	return err.Error()
}
