// Package authority is a run's certificate authority. Its key is made for the
// run, stays in memory and is gone with it.
package authority

import (
	"container/list"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

const (
	// A run may go on for months; its authority is worth nothing outside it.
	authorityLife = 365 * 24 * time.Hour
	// Some clients refuse leaves that live long.
	leafLife  = 30 * 24 * time.Hour
	leafRenew = 24 * time.Hour // a leaf with less left is made anew
	clockSkew = time.Hour      // of a client that runs behind
	maxLeaves = 1024
)

// Authority mints leaves. It is safe for concurrent use.
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	leafKey     *ecdsa.PrivateKey // one for all leaves: each is as secret as the other

	minting singleflight.Group

	mu     sync.Mutex
	leaves map[string]*list.Element // of *leaf
	recent list.List                // the last used first
}

type leaf struct {
	name        string
	certificate *tls.Certificate
}

// New makes the authority of a run.
func New(run string) (*Authority, error) {
	a := &Authority{leaves: make(map[string]*list.Element)}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("make the authority's key: %w", err)
	}
	if a.leafKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("make the leaves' key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "AgentOps run " + run, Organization: []string{"AgentOps"}},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(authorityLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("sign the authority's certificate: %w", err)
	}
	if a.certificate, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("parse the authority's certificate: %w", err)
	}
	return a, nil
}

// PEM is the authority's certificate for trust stores.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw})
}

// Leaf returns a certificate for a name or an IP address, with the authority's
// behind it in the chain: some clients look for the issuer there only.
func (a *Authority) Leaf(name string) (*tls.Certificate, error) {
	if certificate := a.cached(name); certificate != nil {
		return certificate, nil
	}
	minted, err, _ := a.minting.Do(name, func() (any, error) {
		if certificate := a.cached(name); certificate != nil {
			return certificate, nil // of a minting that ended between the two looks
		}
		certificate, err := a.mint(name)
		if err == nil {
			a.keep(&leaf{name, certificate})
		}
		return certificate, err
	})
	if err != nil {
		return nil, fmt.Errorf("mint a leaf for %q: %w", name, err)
	}
	return minted.(*tls.Certificate), nil
}

func (a *Authority) cached(name string) *tls.Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	element, ok := a.leaves[name]
	if !ok {
		return nil
	}
	certificate := element.Value.(*leaf).certificate
	if time.Until(certificate.Leaf.NotAfter) < leafRenew {
		return nil
	}
	a.recent.MoveToFront(element)
	return certificate
}

func (a *Authority) keep(l *leaf) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old, ok := a.leaves[l.name]; ok {
		a.recent.Remove(old)
	}
	a.leaves[l.name] = a.recent.PushFront(l)
	if a.recent.Len() > maxLeaves {
		oldest := a.recent.Remove(a.recent.Back()).(*leaf)
		delete(a.leaves, oldest.name)
	}
}

func (a *Authority) mint(name string) (*tls.Certificate, error) {
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(),
		NotBefore:    now.Add(-clockSkew),
		NotAfter:     now.Add(leafLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	if len(name) <= 64 { // ub-common-name, RFC 5280
		template.Subject.CommonName = name
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, a.leafKey.Public(), a.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{
		Certificate: [][]byte{der, a.certificate.Raw},
		PrivateKey:  a.leafKey,
		Leaf:        parsed,
	}, nil
}

// serial is 127 random bits and a one, so that it is positive and never short.
func serial() *big.Int {
	bytes := make([]byte, 16)
	rand.Read(bytes) // never fails
	bytes[0] = bytes[0]&0x7f | 0x40
	return new(big.Int).SetBytes(bytes)
}
