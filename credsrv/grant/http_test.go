package grant

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const token = "Bearer s3cr3t-of-the-test"

func newHTTP(t *testing.T, dir string, h HTTP) HTTP {
	t.Helper()
	h, err := NewHTTP(h, token, dir)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// A value is read back by who has the key, and is nowhere on the disk, nor in what
// is shown.
func TestHTTPKeepsItsValueToItself(t *testing.T) {
	state := t.TempDir()
	keys := filepath.Join(state, "keys")
	s := Store{Dir: filepath.Join(state, "grants")}
	want := newHTTP(t, keys, HTTP{Name: "api", Host: "api.example.com", Header: "x-API-key"})
	if want.Header != "X-Api-Key" || want.Port != 443 || want.Made.IsZero() {
		t.Errorf("it is %+v", want)
	}
	if err := s.Save(want); err != nil {
		t.Fatal(err)
	}
	g, err := s.Load("api")
	if err != nil {
		t.Fatal(err)
	}
	key, err := OpenKey(keys)
	if err != nil {
		t.Fatal(err)
	}
	value, err := g.(HTTP).Value(key)
	if err != nil || string(value) != token {
		t.Errorf("the value is %q, %v", string(value), err)
	}
	shown, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"version":1,"kind":"http","name":"api","host":"api.example.com","port":443,"header":"X-Api-Key","made":"` + want.Made.Format("2006-01-02T15:04:05Z") + `"}`; string(shown) != want {
		t.Errorf("shown is %s, want %s", shown, want)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", value, g, value, value); strings.Contains(text, "s3cr3t") {
		t.Errorf("printed is %s", text)
	}
	err = filepath.WalkDir(state, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte("s3cr3t")) || info.Mode() != 0o600 {
			t.Errorf("%s, of mode %s, is %q", path, info.Mode(), content)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// The value of one grant is not that of another, and none without its key.
func TestHTTPValueBelongsToItsGrant(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	h := newHTTP(t, dir, HTTP{Name: "api", Host: "api.example.com", Header: "Authorization"})
	newHTTP(t, elsewhere, h)
	key, err := OpenKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	another, err := OpenKey(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	if value, err := h.Value(key); err != nil || value != token {
		t.Fatalf("unchanged: %v", err)
	}
	_, err = h.Value(another)
	wantError(t, err, "the key is another", "agent grant http api")
	for name, change := range map[string]func(*HTTP){
		"name":    func(h *HTTP) { h.Name = "other" },
		"host":    func(h *HTTP) { h.Host = "evil.example.com" },
		"port":    func(h *HTTP) { h.Port = 8443 },
		"header":  func(h *HTTP) { h.Header = "X-Echo" },
		"bit":     func(h *HTTP) { h.sealed[len(h.sealed)-1] ^= 1 },
		"cut off": func(h *HTTP) { h.sealed = h.sealed[:4] },
	} {
		changed := h
		changed.sealed = bytes.Clone(h.sealed)
		change(&changed)
		value, err := changed.Value(key)
		if value != "" {
			t.Errorf("%s: the value was decrypted", name)
		}
		wantError(t, err, "cannot be decrypted", "agent grant http "+changed.Name)
	}
}

func TestHTTPRefused(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys")
	good := HTTP{Name: "api", Host: "api.example.com", Header: "Authorization"}
	for _, test := range []struct {
		change  func(*HTTP)
		value   Secret
		message string
	}{
		{func(h *HTTP) { h.Name = "../x" }, token, "name of a grant"},
		{func(h *HTTP) { h.Host = "" }, token, "not the host"},
		{func(h *HTTP) { h.Host = "*.example.com" }, token, "not the host"},
		{func(h *HTTP) { h.Host = "10.0.0.1" }, token, "not the host"},
		{func(h *HTTP) { h.Host = "a/b" }, token, "not the host"},
		{func(h *HTTP) { h.Host = "a\nb" }, token, "not the host"},
		{func(h *HTTP) { h.Header = "" }, token, "name of a header"},
		{func(h *HTTP) { h.Header = "A B" }, token, "name of a header"},
		{func(h *HTTP) { h.Header = ":authority" }, token, "name of a header"},
		{func(h *HTTP) { h.Header = "A\r\nB" }, token, "name of a header"},
		{func(h *HTTP) { h.Header = "host" }, token, "header Host cannot be granted"},
		{func(h *HTTP) { h.Header = "TRANSFER-encoding" }, token, "header Transfer-Encoding cannot be granted"},
		{func(h *HTTP) { h.Header = "X-HTTP-Method-Override" }, token, "cannot be granted"},
		{func(*HTTP) {}, "", "is empty"},
		{func(*HTTP) {}, "s3cr3t\r\nX: y", "line break"},
		{func(*HTTP) {}, "s3cr3t\x00", "control character"},
		{func(*HTTP) {}, "s3cr3t\t", "with a blank"},
		{func(*HTTP) {}, "s3cr3té", "beyond ASCII"},
		{func(*HTTP) {}, Secret(strings.Repeat("s3cr3t", 4000)), "longer than"},
	} {
		h := good
		test.change(&h)
		_, err := NewHTTP(h, test.value, keys)
		wantError(t, err, test.message, "")
		if err != nil && strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("the value is in %q", err)
		}
	}
	if _, err := os.Stat(keys); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key was made for them: %v", err)
	}
	wantError(t, Store{Dir: t.TempDir()}.Save(HTTP{Name: "api", Host: "a", Port: 1, Header: "Authorization"}), "no value in it", "")
}

func TestKey(t *testing.T) {
	if _, err := OpenKey(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of none: %v", err)
	}
	for _, test := range map[string]struct {
		spoil   func(path string) error
		message string
	}{
		"open to others": {func(path string) error { return os.Chmod(path, 0o640) }, "can be read or written by others"},
		"a user's":       {func(path string) error { return os.Chown(path, 1000, 0) }, "belongs to uid 1000"},
		"cut off":        {func(path string) error { return os.Truncate(path, 31) }, "not of 32 bytes"},
		"a link":         {func(path string) error { return errors.Join(os.Rename(path, path+"2"), os.Symlink(path+"2", path)) }, "others"},
	} {
		dir := t.TempDir()
		if _, err := LoadKey(dir); err != nil {
			t.Fatal(err)
		}
		if err := test.spoil(filepath.Join(dir, keyName)); err != nil {
			t.Fatal(err)
		}
		for _, open := range []func(string) (*Key, error){OpenKey, LoadKey} {
			_, err := open(dir)
			wantError(t, err, test.message, "make the HTTP grants anew")
		}
	}
}

// Agents that come at once end with one key.
func TestKeyIsMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	sealed := make([][]byte, 8)
	var wg sync.WaitGroup
	for i := range sealed {
		wg.Go(func() {
			key, err := LoadKey(dir)
			if err != nil {
				t.Error(err)
				return
			}
			sealed[i] = key.seal([]byte("x"), nil)
		})
	}
	wg.Wait()
	key, err := OpenKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range sealed {
		if got, err := key.open(text, nil); err != nil || string(got) != "x" {
			t.Errorf("opened %q, %v", got, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("in the folder there are %v, %v", entries, err)
	}
}
