package runtime

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// catProgram prints the files that it is given: all that a tree without a shell
// needs to show what is in it.
func catProgram(t *testing.T) []byte {
	t.Helper()
	const source = `
#include <stdio.h>
int main(int argc, char **argv) {
	for (int i = 1; i < argc; i++) {
		FILE *f = fopen(argv[i], "r");
		int c;
		if (!f) { perror(argv[i]); continue; }
		while ((c = getc(f)) != EOF) putchar(c);
		fclose(f);
	}
	return 0;
}`
	path := filepath.Join(t.TempDir(), "cat")
	gcc := exec.Command("gcc", "-static", "-x", "c", "-o", path, "-")
	gcc.Stdin = strings.NewReader(source)
	if out, err := gcc.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// snapshot is everything in a folder, to compare.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&all, "%s %s", path, info.Mode())
		if info.Mode().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&all, " %q", content)
		}
		fmt.Fprintln(&all)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// Whatever a tree has where ours belongs, ours is what the run sees, or the run
// does not start and says why; and nothing outside of the tree changes.
func TestHostileTrees(t *testing.T) {
	needRoot(t)
	cat := catProgram(t)
	outside := t.TempDir()
	for _, name := range []string{"file", "resolv.conf", "hosts", "token", "certs/ca-certificates.crt"} {
		path := filepath.Join(outside, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("the host's\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(name, target string) func(string) error {
		return func(tree string) error { return os.Symlink(target, filepath.Join(tree, name)) }
	}
	file := func(name string) func(string) error {
		return func(tree string) error { return os.WriteFile(filepath.Join(tree, name), []byte("the tree's\n"), 0o644) }
	}
	folder := func(name string) func(string) error {
		return func(tree string) error { return os.MkdirAll(filepath.Join(tree, name, "in it"), 0o755) }
	}
	node := func(name string, mode uint32) func(string) error {
		return func(tree string) error { return unix.Mknod(filepath.Join(tree, name), mode|0o666, 0x103) }
	}
	up := strings.Repeat("../", 20)
	for _, test := range []struct {
		name  string
		spoil func(tree string) error
		fails string // what Create says, where the run cannot be
	}{
		{"nothing hostile", func(string) error { return nil }, ""},
		{"dev is a file", file("dev"), ""},
		{"proc is a file", file("proc"), ""},
		{"sys is a file", file("sys"), ""},
		{"agentops is a file", file("agentops"), ""},
		{"etc is a file", file("etc"), "/etc"},
		{"tmp is a file", file("tmp"), "not a directory"},
		{"dev is a fifo", node("dev", unix.S_IFIFO), ""},
		{"proc is a device", node("proc", unix.S_IFCHR), ""},
		{"dev leads out", link("dev", outside), ""},
		{"dev leads up", link("dev", up+outside), ""},
		{"proc leads nowhere", link("proc", "/no/such"), ""},
		{"sys leads to proc", link("sys", "/proc"), ""},
		{"agentops leads out", link("agentops", outside), ""},
		{"agentops leads to itself", link("agentops", "agentops"), ""},
		{"etc leads out", link("etc", outside), ""},
		{"etc leads up", link("etc", up+outside), ""},
		{"etc leads to itself", link("etc", "etc"), "/etc"},
		{"tmp leads out", link("tmp", outside), "symbolic links"},
		{"tmp leads up", link("tmp", up+outside), "symbolic links"},
		{"resolv.conf leads out", link("etc/resolv.conf", outside+"/resolv.conf"), ""},
		{"resolv.conf leads up", link("etc/resolv.conf", up+outside+"/resolv.conf"), ""},
		{"resolv.conf leads by proc", link("etc/resolv.conf", "/proc/1/root"+outside+"/resolv.conf"), ""},
		{"resolv.conf leads nowhere", link("etc/resolv.conf", "/no/such"), ""},
		{"resolv.conf is a folder", folder("etc/resolv.conf"), ""},
		{"resolv.conf is a device", node("etc/resolv.conf", unix.S_IFCHR), ""},
		{"hosts leads out", link("etc/hosts", outside+"/hosts"), ""},
		{"hosts is a fifo", node("etc/hosts", unix.S_IFIFO), ""},
		{"hosts is a folder", folder("etc/hosts"), ""},
		{"certificates lead out", link("etc/ssl", outside), ""},
		{"certificates lead up", link("etc/ssl", up+outside), ""},
		{"certificates are a folder", folder("etc/ssl/certs/ca-certificates.crt"), ""},
		{"data leads out", link("data", outside), "mkdir"},
		{"data leads up", link("data", up+outside), "mkdir"},
		{"data is a file", file("data"), "not a directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := newConfig(t, "/bin/cat", "/etc/resolv.conf", "/etc/hosts", "/agentops/token", "/data/file")
			cfg.Rootfs = t.TempDir()
			for _, sub := range []string{"bin", "etc", "usr"} {
				if err := os.Mkdir(filepath.Join(cfg.Rootfs, sub), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if strings.HasPrefix(test.name, "etc ") {
				if err := os.Remove(cfg.Rootfs + "/etc"); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(cfg.Rootfs+"/bin/cat", cat, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := test.spoil(cfg.Rootfs); err != nil {
				t.Fatal(err)
			}
			given := t.TempDir()
			if err := os.WriteFile(given+"/file", []byte("given\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			cfg.Mounts = []Mount{{Source: given, Destination: "/data"}}
			host, tree := snapshot(t, outside), snapshot(t, cfg.Rootfs)
			if test.fails != "" {
				c, err := Create(cfg)
				if err == nil {
					t.Errorf("it was created; %v", c.Close())
				} else if !strings.Contains(err.Error(), test.fails) {
					t.Errorf("%v, want an error with %q", err, test.fails)
				}
			} else {
				want := string(cfg.ResolvConf) + string(cfg.Hosts) + "secretgiven\n"
				if status, output := runConfig(t, cfg); status.Code != 0 || output != want {
					t.Errorf("status %+v, output %q, want %q", status, output, want)
				}
			}
			if after := snapshot(t, outside); after != host {
				t.Errorf("outside of the tree there was\n%sand is\n%s", host, after)
			}
			if after := snapshot(t, cfg.Rootfs); after != tree {
				t.Errorf("in the tree there was\n%sand is\n%s", tree, after)
			}
			if left := leftovers(t, cfg); left != nil {
				t.Errorf("left on the host: %q", left)
			}
		})
	}
}

// A tree that is mounted read-only is as good as any: what the run writes is not
// written there.
func TestReadOnlyTree(t *testing.T) {
	needRoot(t)
	source, tree := t.TempDir(), t.TempDir()
	if err := os.Mkdir(source+"/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(source+"/bin/cat", catProgram(t), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := bindReadOnly(source, tree); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(tree, 0); err != nil {
			t.Error(err)
		}
	}()
	cfg := newConfig(t, "/bin/cat", "/etc/hosts")
	cfg.Rootfs = tree
	if status, output := runConfig(t, cfg); status.Code != 0 || output != string(cfg.Hosts) {
		t.Errorf("status %+v, output %q", status, output)
	}
	if entries, err := os.ReadDir(source); err != nil || len(entries) != 1 {
		t.Errorf("the tree holds %v, %v", entries, err)
	}
}
