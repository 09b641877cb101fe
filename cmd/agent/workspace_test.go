package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadSettings(t *testing.T) {
	for name, c := range map[string]struct{ content, err, hint string }{
		"empty":       {"", "", ""},
		"all":         {"name: x\ngrants: [a]\ncommand: [b]\nenv: [C=d]\nmounts: ['./e:/f:ro']\nrootfs: g\ncap_add: [k]\nlimits: {memory: 1g, cpus: 0.5, pids: 7, open_files: 8}\nnetwork:\n  policy: strict\n  allow: [h]\n  deny: [i]\n  resolve: ['j=127.0.0.1']\n  passthrough: [k]\n  max_flows: 9\n  max_header: 8k\n  handshake_timeout: 1s\n  header_timeout: 2s\n  idle_timeout: 1m30s\n", "", ""},
		"misspelt":    {"name: x\ngrant: [a]\n", `agent.yaml:2: unknown field "grant"`, `"grants"`},
		"nested":      {"network:\n  alow: [a]\n", `agent.yaml:2: unknown field "alow"`, `"allow"`},
		"bad limit":   {"network:\n  deny: [a]\n  idle_timeout: 5\n", `agent.yaml:3: network.idle_timeout: "5" is no time from 1ms to 24h, such as 30s`, ""},
		"wrong type":  {"grants: {a: b}\n", "agent.yaml:1: ", ""},
		"twice":       {"name: a\nname: b\n", "agent.yaml:2: ", ""},
		"no YAML":     {"name: [\n", "agent.yaml:1: ", ""},
		"two of them": {"name: a\n---\nname: b\n", "one document", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, workspaceFile), []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := readSettings(dir)
			if c.err == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Fatalf("%v, want an error with %q", err, c.err)
			}
			if hint, ok := errors.AsType[*hintError](err); c.hint != "" && (!ok || !strings.Contains(hint.hint, c.hint)) {
				t.Errorf("%v has no hint with %s", err, c.hint)
			}
		})
	}
	if _, err := readSettings(t.TempDir()); err != nil {
		t.Errorf("without the file: %v", err)
	}
}

func TestRunNeedsRoot(t *testing.T) {
	var stderr strings.Builder
	dir := t.TempDir()
	e := &env{args: []string{"run", "--", "true"}, stdout: &stderr, stderr: &stderr, getenv: func(string) string { return dir + "/made" }, dir: dir, uid: 1000}
	if code := run(e); code != exitOurs || !strings.Contains(stderr.String(), "agent: error: agent run needs root") || !strings.Contains(stderr.String(), "agent: hint: sudo") {
		t.Errorf("code %d: %s", code, &stderr)
	}
	if made, err := os.ReadDir(dir); err != nil || len(made) != 0 {
		t.Errorf("made: %v, %v", made, err)
	}
}

func TestRunIDsSortByTime(t *testing.T) {
	last := newRunID()
	for range 3 {
		id := newRunID()
		for id[:19] == last[:19] { // the same millisecond
			id = newRunID()
		}
		if id <= last {
			t.Errorf("%s comes after %s", id, last)
		}
		last = id
	}
}
