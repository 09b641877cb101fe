package runtime

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// newAuthority is a CA with a name like a run's.
func newAuthority(t *testing.T, name pkix.Name) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: name}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// OpenSSL finds the run's CA by the name that we give its file.
func TestSubjectHash(t *testing.T) {
	for _, name := range []pkix.Name{
		{CommonName: "AgentOps run 20261125-003304-882334e9", Organization: []string{"AgentOps"}},
		{CommonName: "  Spaces   and_UNDERSCORES\t", Country: []string{"DE"}, Organization: []string{"*"}},
	} {
		authority := newAuthority(t, name)
		openssl := exec.Command("openssl", "x509", "-noout", "-subject_hash")
		openssl.Stdin = bytes.NewReader(authority)
		want, err := openssl.Output()
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(authority)
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := subjectHash(certificate.RawSubject); err != nil || got != strings.TrimSpace(string(want)) {
			t.Errorf("%v: %s, %v; want %s", name, got, err, want)
		}
	}
}

// plant makes files in a tree: a target after "->" makes a link, all else is content.
func plant(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, link := strings.CutPrefix(content, "->"); link {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o640)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestTrust(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "file")
	authority := newAuthority(t, pkix.Name{CommonName: "CA"})
	bundle := append([]byte("# roots\n"), authority...)
	store := javaStore(bundle)
	for _, test := range []struct {
		name     string
		tree     map[string]string
		env      []string
		bundles  []string
		stores   []string
		added    []string
		javaless bool
	}{
		{name: "nothing", bundles: []string{"etc/ssl/certs/ca-certificates.crt"}, added: []string{"etc/ssl/certs/agentops.pem"}, javaless: true},
		{name: "Debian", tree: map[string]string{
			"etc/ssl/certs/ca-certificates.crt": "x", "usr/lib/ssl/cert.pem": "->/etc/ssl/certs/ca-certificates.crt", "usr/local/share/x": "",
			"usr/lib/jvm/java-17/lib/security/cacerts": "->/etc/ssl/certs/java/cacerts", "etc/ssl/certs/java/cacerts": "x",
		}, bundles: []string{"etc/ssl/certs/ca-certificates.crt"}, stores: []string{"etc/ssl/certs/java/cacerts"},
			added: []string{"etc/ssl/certs/agentops.pem", "usr/local/share/ca-certificates/agentops.crt"}},
		{name: "Fedora", tree: map[string]string{
			"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem": "x", "etc/pki/tls/certs/ca-bundle.crt": "->/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
			"etc/pki/ca-trust/extracted/java/cacerts": "x", "etc/pki/ca-trust/source/README": "",
		}, bundles: []string{"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"}, stores: []string{"etc/pki/ca-trust/extracted/java/cacerts"},
			added: []string{"etc/pki/tls/certs/agentops.pem", "etc/pki/ca-trust/source/anchors/agentops.crt"}},
		{name: "several Javas", tree: map[string]string{
			"etc/ssl/cert.pem": "x", "opt/jdk-21/lib/security/cacerts": "x", "opt/java/openjdk/lib/security/cacerts": "x",
			"usr/lib/jvm/java-8/jre/lib/security/cacerts": "x", "usr/lib/jvm/java-8/jre/lib/security/jssecacerts": "x",
			"srv/one/lib/security/cacerts": "x", "srv/two/lib/security/cacerts": "x", "srv/two/bin/java": "", "bin/java": "->/srv/two/bin/java",
		}, env: []string{"JAVA_HOME=/srv/one", "PATH=/sbin:/bin"}, bundles: []string{"etc/ssl/cert.pem"}, stores: []string{
			"opt/jdk-21/lib/security/cacerts", "opt/java/openjdk/lib/security/cacerts", "usr/lib/jvm/java-8/jre/lib/security/cacerts",
			"usr/lib/jvm/java-8/jre/lib/security/jssecacerts", "srv/one/lib/security/cacerts", "srv/two/lib/security/cacerts",
		}},
		{name: "hostile", tree: map[string]string{
			"etc/ssl/certs/ca-certificates.crt": "->" + outside, "etc/ssl/cert.pem": "->../../../../../../../../.." + outside, "etc/pki": "->loop", "etc/loop": "->pki",
			"etc/ssl/certs/agentops.pem": "->" + outside, "usr/local/share/ca-certificates": "a file", "usr/lib/jvm": "->/proc/self/root",
			"opt/a/lib/security/cacerts": "->" + outside, "usr/lib/ssl/cert.pem/folder": "",
		}, env: []string{"JAVA_HOME=../../..", "PATH=::relative:/opt"}, added: []string{"etc/ssl/certs/agentops.pem"}, javaless: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := emptyView(t.TempDir())
			for _, dir := range []string{v.base, v.stage, v.root} {
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			plant(t, v.root, test.tree)
			if err := os.WriteFile(outside, []byte("the host's"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := v.trust(&Config{Bundle: bundle, Authority: authority, Env: test.env}); err != nil {
				t.Fatal(err)
			}
			if err := v.fill(); err != nil {
				t.Fatal(err)
			}
			if content, err := os.ReadFile(outside); err != nil || string(content) != "the host's" {
				t.Errorf("outside of the tree: %q, %v", content, err)
			}
			for content, paths := range map[*[]byte][]string{&bundle: test.bundles, &store: test.stores, &authority: test.added} {
				for _, path := range paths {
					if got, err := os.ReadFile(filepath.Join(v.root, path)); err != nil || !bytes.Equal(got, *content) {
						t.Errorf("%s: %d bytes, %v; want %d", path, len(got), err, len(*content))
					}
				}
			}
			if v.javaless != test.javaless {
				t.Errorf("javaless %v, want %v", v.javaless, test.javaless)
			}
			if v.stores != nil {
				t.Errorf("to be mounted: %v", v.stores)
			}
		})
	}
}

// What cannot be written in the tree is mounted on.
func TestStoresThatCannotBeWritten(t *testing.T) {
	needRoot(t)
	v := emptyView(t.TempDir())
	plant(t, v.root, map[string]string{"etc/ssl/certs/ca-certificates.crt": "x", "usr/lib/ssl/cert.pem": "x"})
	v.stage = filepath.Join(v.base, "stage")
	cfg := Config{Bundle: []byte("the bundle")}
	immutable := filepath.Join(v.root, "etc/ssl/certs/ca-certificates.crt")
	if out, err := exec.Command("chattr", "+i", immutable).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	t.Cleanup(func() {
		if err := exec.Command("chattr", "-i", immutable).Run(); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(v.trust(&cfg), v.fill()); err != nil {
		t.Fatal(err)
	}
	want := []Mount{{Source: v.stage + "/agentops/ca-bundle.pem", Destination: "/etc/ssl/certs/ca-certificates.crt", ReadOnly: true}}
	if !slices.Equal(v.stores, want) {
		t.Errorf("to be mounted: %v, want %v", v.stores, want)
	}
}

func TestWithJavaStore(t *testing.T) {
	const option = "JAVA_TOOL_OPTIONS=-Djavax.net.ssl.trustStore=/agentops/cacerts"
	given := []string{"A=b", "JAVA_TOOL_OPTIONS=-Xmx64m", "C=d"}
	if got := withJavaStore(given); !slices.Equal(got, []string{"A=b", option + " -Xmx64m", "C=d"}) || given[1] != "JAVA_TOOL_OPTIONS=-Xmx64m" {
		t.Errorf("%q of %q", got, given)
	}
	if got := withJavaStore([]string{"A=b"}); !slices.Equal(got, []string{"A=b", option}) {
		t.Errorf("%q", got)
	}
}
