package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"agentops/credsrv/grant"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

const testValue = "Bearer s3cr3t-of-the-test"

// valueOf decrypts what was stored.
func (b *grantBench) valueOf(name string) string {
	b.Helper()
	g, err := b.store().Load(name)
	if err != nil {
		b.Fatal(err)
	}
	key, err := grant.OpenKey(filepath.Join(b.dir, "state", "keys"))
	if err != nil {
		b.Fatal(err)
	}
	value, err := g.(grant.HTTP).Value(key)
	if err != nil {
		b.Fatal(err)
	}
	return string(value)
}

// pipe makes stdin of a text.
func (b *grantBench) pipe(text string) {
	b.Helper()
	b.write("stdin", text)
	file, err := os.Open(filepath.Join(b.dir, "stdin"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { file.Close() })
	b.stdin = file
}

// A value comes from where it is said to be, and is shown by nothing.
func TestGrantHTTP(t *testing.T) {
	b := newGrantBench(t)
	b.env = map[string]string{"TOKEN": testValue}
	b.write("value", testValue+"\r\n")
	b.pipe(testValue + "\n")
	for name, from := range map[string]string{"a": "env:TOKEN", "b": "file:value", "c": "stdin"} {
		stdout, stderr := b.ok("http", name, "--host", "API.example.com.", "--header", "authorization", "--value-from", from)
		if want := "grant " + name + ": Authorization for api.example.com:443; use it with agent run --grant " + name + "\n"; stdout != want || stderr != "" {
			t.Errorf("%s: %q, %q", from, stdout, stderr)
		}
		if got := b.valueOf(name); got != testValue {
			t.Errorf("%s: the value is %q", from, got)
		}
	}
	b.ok("aws", "--role", testRole, "--no-verify")
	stdout, _ := b.ok("http", "d", "--host", "api.example.com:8443", "--header", "x-api-key", "--value-from", "env:TOKEN", "--json")
	var shown struct {
		Kind, Host, Header string
		Port               int
	}
	if err := json.Unmarshal([]byte(stdout), &shown); err != nil || shown.Kind != "http" || shown.Host != "api.example.com" || shown.Port != 8443 || shown.Header != "X-Api-Key" {
		t.Errorf("as JSON: %s, %v", stdout, err)
	}
	all := stdout
	for _, args := range [][]string{{"list"}, {"list", "--json"}, {"show", "d"}, {"show", "d", "--json"}} {
		stdout, _ := b.ok(args...)
		all += stdout
		for _, part := range []string{"http", "api.example.com", "8443", "X-Api-Key"} {
			if !strings.Contains(stdout, part) {
				t.Errorf("%q lacks %q:\n%s", args, part, stdout)
			}
		}
	}
	if strings.Contains(all, "s3cr3t") || strings.Contains(all, "sealed") {
		t.Errorf("the value is shown:\n%s", all)
	}
	b.ok("revoke", "d")
	b.refused("there is no such grant", "there are: a, aws, b, c;", "show", "d")
}

func TestGrantHTTPRefused(t *testing.T) {
	b := newGrantBench(t)
	b.env = map[string]string{"TOKEN": testValue, "LINES": "s3cr3t\nX: y", "EMPTY": ""}
	b.write("value", testValue)
	b.write("empty", "\n")
	b.write("open", testValue)
	if err := os.Chmod(filepath.Join(b.dir, "open"), 0o640); err != nil {
		t.Fatal(err)
	}
	b.pipe("")
	with := func(host, header, from string) []string {
		return []string{"http", "x", "--host", host, "--header", header, "--value-from", from}
	}
	for _, test := range []struct {
		args          []string
		message, hint string
	}{
		{[]string{"http"}, "one name is wanted", "agent grant http NAME"},
		{[]string{"http", "x"}, "no host was given", "--host"},
		{[]string{"http", "x", "--host", "a.example"}, "it is not said where", "env:VARIABLE"},
		{with("a.example", "", "env:TOKEN"), "not the name of a header", "X-Api-Key"},
		{with("a.example", "Connection", "env:TOKEN"), "cannot be granted", "X-Api-Key"},
		{with("*.example", "Authorization", "env:TOKEN"), "may not be in a name", "--host"},
		{with("10.0.0.5", "Authorization", "env:TOKEN"), "is not the host of a grant", "by its name"},
		{with("[::1]:443", "Authorization", "env:TOKEN"), "is not the host of a grant", "by its name"},
		{with("a.example:0", "Authorization", "env:TOKEN"), "is no port", "--host"},
		{with("a.example", "Authorization", "TOKEN"), "it is not said where", "env:VARIABLE"},
		{with("a.example", "Authorization", "env:"), "it is not said where", "env:VARIABLE"},
		{with("a.example", "Authorization", "env:NONE"), "variable NONE is not set", "--preserve-env=NONE"},
		{with("a.example", "Authorization", "env:EMPTY"), "variable EMPTY is not set, or empty", ""},
		{with("a.example", "Authorization", "env:LINES"), "line break", "one line"},
		{with("a.example", "Authorization", "file:gone"), "no such file", "chmod 600"},
		{with("a.example", "Authorization", "file:open"), "others can read or write", "chmod 600"},
		{with("a.example", "Authorization", "file:/dev/zero"), "not a regular file", "stdin"},
		{with("a.example", "Authorization", "file:empty"), "value is empty", "Bearer TOKEN"},
		{with("a.example", "Authorization", "stdin"), "value is empty", "Bearer TOKEN"},
	} {
		b.refused(test.message, test.hint, test.args...)
		if _, _, stderr := b.run(test.args...); strings.Contains(stderr, "s3cr3t") {
			t.Errorf("%q tells the value: %s", test.args, stderr)
		}
	}
	if _, err := os.Stat(filepath.Join(b.dir, "state")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a state folder was made: %v", err)
	}
	b.ok(with("a.example", "Authorization", "env:TOKEN")...)
	if err := os.Chmod(filepath.Join(b.dir, "state", "keys", "grants.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.refused("can be read or written by others", "chmod 600", with("a.example", "Authorization", "env:TOKEN")...)
}

// What is typed at a terminal is not shown there.
func TestGrantHTTPAsksAtATerminal(t *testing.T) {
	b := newGrantBench(t)
	keyboard, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer keyboard.Close()
	if b.stdin, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	defer b.stdin.Close()
	typed := make(chan error, 1)
	go func() {
		for {
			settings, err := unix.IoctlGetTermios(int(b.stdin.Fd()), unix.TCGETS)
			if err != nil {
				typed <- err
				return
			}
			if settings.Lflag&unix.ECHO == 0 { // it waits for the value
				break
			}
			runtime.Gosched()
		}
		_, err := keyboard.Write([]byte(testValue + "\n"))
		typed <- err
	}()
	_, stderr := b.ok("http", "x", "--host", "a.example", "--header", "Authorization", "--value-from", "stdin")
	if err := <-typed; err != nil {
		t.Fatal(err)
	}
	if stderr != "value of Authorization for a.example: \n" || b.valueOf("x") != testValue {
		t.Errorf("it asks %q and stores %q", stderr, b.valueOf("x"))
	}
	// The terminal shows what is typed from now on.
	if _, err := keyboard.Write([]byte("end\n")); err != nil {
		t.Fatal(err)
	}
	shown, err := bufio.NewReader(keyboard).ReadString('d')
	if err != nil || strings.Contains(shown, "s3cr3t") {
		t.Errorf("the terminal shows %q, %v", shown, err)
	}
}
