package runtime

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// hostPaths are all that this host has of what a run must not see.
func hostPaths(t *testing.T) []string {
	t.Helper()
	var paths []string
	for _, folder := range freshFolders {
		paths = append(paths, folder.path)
	}
	for _, pattern := range slices.Concat(secretPaths, engineSockets) {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, found...)
	}
	for _, home := range homes() {
		for _, name := range homeSecrets {
			paths = append(paths, filepath.Join(home, name))
		}
	}
	sockets, err := hostSockets()
	if err != nil {
		t.Fatal(err)
	}
	paths = append(paths, sockets...)
	return slices.DeleteFunc(paths, func(path string) bool {
		_, err := os.Lstat(path)
		return err != nil
	})
}

// From inside, every secret of this very host is absent or empty.
func TestHostIsHidden(t *testing.T) {
	const script = `
import json, os, stat
workspace = os.getcwd()
for path in json.load(open("paths.json")):
    try: st = os.stat(path)
    except OSError: continue
    if stat.S_ISDIR(st.st_mode):
        # Of the folders above the workspace, only the way to it.
        seen = [e for e in os.listdir(path) if not (workspace + "/").startswith(os.path.join(path, e) + "/")]
        if seen: print(path, "holds", seen)
    elif path in ("/etc/shadow", "/etc/gshadow", "/etc/shadow-", "/etc/gshadow-"):
        if any(line.split(":")[1] != "*" for line in open(path)): print(path, "has passwords")
    elif stat.S_ISCHR(st.st_mode) and st.st_rdev == os.makedev(1, 3):
        pass # covered by /dev/null
    else: print(path, "is", oct(st.st_mode), st.st_size)
print("looked")
`
	cfg := newConfig(t, "/usr/bin/python3", "-c", script)
	paths := hostPaths(t)
	if !slices.Contains(paths, "/etc/shadow") || len(paths) < 10 {
		t.Fatalf("what the host has: %q", paths)
	}
	content, err := json.Marshal(paths)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.Workspace+"/paths.json", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, output := runConfig(t, cfg); output != "looked\n" {
		t.Errorf("of %d paths:\n%s", len(paths), output)
	}
}

// Of devices a run has the usual few, by whatever name, and can make no others.
func TestOnlyTheUsualDevices(t *testing.T) {
	const script = `
import os, stat
usual = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)}
for folder, _, names in os.walk("/dev"):
    for name in names:
        st = os.lstat(os.path.join(folder, name))
        device = (os.major(st.st_rdev), os.minor(st.st_rdev))
        if stat.S_ISBLK(st.st_mode) or stat.S_ISCHR(st.st_mode) and device not in usual and device[0] != 136:
            print("there is", folder, name, device)
def attempt(kind, major, minor):
    path = "/tmp/node"
    try:
        os.mknod(path, kind | 0o600, os.makedev(major, minor))
    except PermissionError:
        return "not made"
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        return "opened"
    except OSError as e:
        return "made, " + e.strerror
    finally:
        os.unlink(path)
for major in list(range(0, 64)) + list(range(120, 128)) + [180, 189, 195, 202, 226, 229, 252, 253, 254, 259, 511]:
    for minor in range(0, 16):
        for kind in stat.S_IFCHR, stat.S_IFBLK:
            if kind == stat.S_IFCHR and ((major, minor) in usual or (major, minor) == (0, 0)): continue # a whiteout is no device
            got = attempt(kind, major, minor)
            if got != "not made": print(kind == stat.S_IFBLK, major, minor, got)
for major, minor in (10, 200), (10, 229), (10, 232), (10, 237), (229, 0), (7, 128):
    if attempt(stat.S_IFCHR, major, minor) != "not made": print("char", major, minor)
print(*(attempt(stat.S_IFCHR, 1, minor) for minor in (3, 5)))
`
	if _, output := runConfig(t, newConfig(t, "/usr/bin/python3", "-c", script)); strings.TrimSpace(output) != "made, Permission denied made, Permission denied" {
		t.Errorf("output:\n%s", output)
	}
}

// A resolver finds what resolve does.
func TestResolver(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir, map[string]string{
		"a/b/file": "", "link": "->a/b", "a/up": "->../a", "loop": "->loop", "gone": "->nowhere/x", "to": "->link",
		"absolute": "->" + dir + "/to/../up",
	})
	known := make(resolver)
	for _, path := range []string{
		"", "a", "a/b/file", "link/file", "to/file/x", "a/up/up/b", "loop", "loop/x", "gone", "gone/x/y", "to/../a", "absolute/b", "no/such",
	} {
		path = filepath.Join(dir, path)
		for range 2 {
			if got, want := known.resolve(path), resolve(path); got != want {
				t.Errorf("%s is %s, want %s", path, got, want)
			}
		}
	}
	for _, path := range []string{"/", ".", "/bin", "/no/such", "/proc/self/root"} {
		if got, want := known.resolve(path), resolve(path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}
