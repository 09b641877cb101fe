package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"testing"
)

// addRegistries makes a site a registry of Node's, Java's and Rust's packages, under
// whatever name the clients ask for it. Each has a package, greeting.
func addRegistries(t *testing.T, mux *http.ServeMux) {
	t.Helper()
	text := func(format string, args ...any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, format, args...) }
	}

	archive := packed(t, map[string]string{
		"package/package.json": `{"name": "greeting", "version": "1.0.0"}`,
		"package/index.js":     `console.log("hello from npm's package")`,
	})
	sum := sha1.Sum(archive)
	mux.HandleFunc("/greeting", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"name": "greeting", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {"name": "greeting",
			"version": "1.0.0", "dist": {"tarball": "https://%s/greeting.tgz", "integrity": "sha1-%s"}}}}`,
			r.Host, base64.StdEncoding.EncodeToString(sum[:]))
	})
	mux.HandleFunc("/greeting.tgz", text("%s", archive))

	const pom = `<project><modelVersion>4.0.0</modelVersion><groupId>example</groupId><artifactId>greeting</artifactId>` +
		`<version>1</version><packaging>pom</packaging></project>`
	mux.HandleFunc("/maven2/example/greeting/1/greeting-1.pom", text(pom))
	mux.HandleFunc("/maven2/example/greeting/1/greeting-1.pom.sha1", text("%x", sha1.Sum([]byte(pom))))
	mux.HandleFunc("/maven2/", http.NotFound)

	crate := packed(t, map[string]string{
		"greeting-1.0.0/Cargo.toml": "[package]\nname = \"greeting\"\nversion = \"1.0.0\"\n",
		"greeting-1.0.0/src/lib.rs": "",
	})
	mux.HandleFunc("/config.json", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"dl": "https://%s/crates"}`, r.Host)
	})
	mux.HandleFunc("/gr/ee/greeting", text(`{"name": "greeting", "vers": "1.0.0", "deps": [], "cksum": "%x", "features": {}, "yanked": false}`+"\n",
		sha256.Sum256(crate)))
	mux.HandleFunc("/crates/greeting/1.0.0/download", text("%s", crate))
}

// packed is a gzipped tar archive of files.
func packed(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var archive bytes.Buffer
	zipped := gzip.NewWriter(&archive)
	w := tar.NewWriter(zipped)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zipped.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}
