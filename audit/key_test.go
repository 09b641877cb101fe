package audit_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"agentops/audit"
)

func TestKeyIsMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "keys")
	ids := make([]string, 16)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			key, err := audit.LoadKey(dir)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = key.ID()
		})
	}
	wg.Wait()
	public, err := audit.ReadPublicKey(filepath.Join(dir, "audit.pub"))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if id != audit.KeyID(public) || len(id) != 16 {
			t.Errorf("a key is %q, audit.pub is of %q", id, audit.KeyID(public))
		}
	}
	for name, want := range map[string]os.FileMode{".": 0o700, "audit.key": 0o600, "audit.pub": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("the mode of %s is %s, want %s", name, info.Mode().Perm(), want)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("in the folder are %v (%v)", entries, err)
	}
	key, err := audit.LoadKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("agentops selftest v1\nreport")
	if !ed25519.Verify(public, message, key.Sign(message)) {
		t.Error("audit.pub does not verify what the key has signed")
	}
}

// A public half that is gone is written again: it has no other source.
func TestPublicHalfIsWrittenAgain(t *testing.T) {
	dir := t.TempDir()
	key, err := audit.LoadKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "audit.pub")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.LoadKey(dir); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(path); err != nil || !bytes.Equal(content, key.PEM()) {
		t.Errorf("audit.pub is %q (%v)", content, err)
	}
}

func TestKeyIsRefused(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		spoil   func(private, public string) error
		problem string
		hint    string
	}{
		"readable by others": {func(private, _ string) error { return os.Chmod(private, 0o640) },
			"can be read or written by others: its mode is -rw-r-----", "chmod 600"},
		"of somebody else": {func(private, _ string) error { return os.Chown(private, 12345, -1) },
			"belongs to uid 12345", "chown it"},
		"no file": {func(private, _ string) error { return errors.Join(os.Remove(private), os.Mkdir(private, 0o700)) },
			"its mode is d", "move it away and rename audit.pub to some other .pub"},
		"empty": {func(private, _ string) error { return os.Truncate(private, 0) },
			"is no Ed25519 key in PKCS #8, PEM", "restore it from a copy"},
		"of another kind": {func(private, _ string) error {
			return os.WriteFile(private, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
		}, "is no Ed25519 key in PKCS #8, PEM", "restore it from a copy"},
		"replaced": {func(private, _ string) error {
			other := t.TempDir()
			_, err := audit.LoadKey(other)
			return errors.Join(err, os.Rename(filepath.Join(other, "audit.key"), private))
		}, "is another than that of its public half audit.pub: one of them was replaced", "put the right one back"},
		"gone": {func(private, _ string) error { return os.Remove(private) },
			"audit.key is gone, and its public half audit.pub is there", "put it back"},
		"no public half": {func(_, public string) error { return os.WriteFile(public, nil, 0o600) },
			"audit.pub is no Ed25519 key in PKIX, PEM", "move"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if name == "of somebody else" && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			dir := t.TempDir()
			if _, err := audit.LoadKey(dir); err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(filepath.Join(dir, "audit.key"), filepath.Join(dir, "audit.pub")); err != nil {
				t.Fatal(err)
			}
			_, err := audit.LoadKey(dir)
			bad, ok := errors.AsType[*audit.KeyError](err)
			if !ok {
				t.Fatalf("the error is %v", err)
			}
			if !strings.Contains(err.Error(), c.problem) || !strings.Contains(err.Error(), dir) || !strings.Contains(bad.Hint, c.hint) {
				t.Errorf("error %q, hint %q; want %q, %q", err, bad.Hint, c.problem, c.hint)
			}
		})
	}
}
