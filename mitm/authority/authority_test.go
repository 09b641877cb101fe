package authority

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"
	"sync"
	"testing"
)

func newAuthority(t testing.TB) *Authority {
	t.Helper()
	a, err := New("test")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestLeafIsTrustedByWhoTrustsTheAuthority(t *testing.T) {
	a := newAuthority(t)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(a.PEM()) {
		t.Fatal("PEM is no certificate")
	}
	long := strings.Repeat("a.", 60) + "example.com"
	for _, name := range []string{"example.com", "under_score.example.com", "192.0.2.1", "2001:db8::1", long} {
		certificate, err := a.Leaf(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := certificate.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := certificate.Leaf.Verify(x509.VerifyOptions{DNSName: "other.example", Roots: roots}); err == nil {
			t.Errorf("the leaf for %s is good for another name", name)
		}
		if len(certificate.Certificate) != 2 {
			t.Errorf("%s: chain of %d, want the authority behind the leaf", name, len(certificate.Certificate))
		}
	}
}

func TestAuthoritiesDoNotTrustEachOther(t *testing.T) {
	one, other := newAuthority(t), newAuthority(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(other.PEM())
	certificate, err := one.Leaf("example.com")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := certificate.Leaf.Verify(x509.VerifyOptions{Roots: roots}); err == nil {
		t.Error("a leaf of one run is trusted in another")
	}
}

func TestOneMintingPerName(t *testing.T) {
	a := newAuthority(t)
	var wg sync.WaitGroup
	got := make([]*tls.Certificate, 50)
	for i := range got {
		wg.Go(func() {
			certificate, err := a.Leaf("example.com")
			if err != nil {
				t.Error(err)
			}
			got[i] = certificate
		})
	}
	wg.Wait()
	again, err := a.Leaf("example.com")
	if err != nil {
		t.Fatal(err)
	}
	if again != got[0] {
		t.Error("a name that was asked for is minted again")
	}
}

func TestCacheIsBoundedAndKeepsTheLastUsed(t *testing.T) {
	a := newAuthority(t)
	first, err := a.Leaf("first.example")
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxLeaves {
		if i == maxLeaves/2 {
			if again, _ := a.Leaf("first.example"); again != first {
				t.Error("a leaf in use was dropped")
			}
		}
		if _, err := a.Leaf(fmt.Sprintf("%d.example", i)); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.leaves) != maxLeaves || a.recent.Len() != maxLeaves {
		t.Errorf("%d leaves in the map, %d in the list, want %d", len(a.leaves), a.recent.Len(), maxLeaves)
	}
	if again, _ := a.Leaf("first.example"); again != first {
		t.Error("the last used leaf was dropped before older ones")
	}
}

func BenchmarkMint(b *testing.B) {
	a := newAuthority(b)
	for b.Loop() {
		if _, err := a.mint("example.com"); err != nil {
			b.Fatal(err)
		}
	}
}
