package runtime

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// newPackage builds a Debian package that does what packages do: it has a setuid
// program, files of a user whom it adds, and scripts.
func newPackage(t *testing.T, path string) {
	t.Helper()
	dir := t.TempDir()
	for name, file := range map[string]struct {
		content string
		mode    os.FileMode
	}{
		"DEBIAN/control":                  {"Package: agentops-test\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: a test\n", 0o644},
		"DEBIAN/postinst":                 {"#!/bin/sh\nset -e\nuseradd --system agentops-test\nchown -R agentops-test /var/lib/agentops-test\nsetcap cap_net_bind_service+ep /usr/bin/agentops-test 2>/dev/null || true\n", 0o755},
		"usr/bin/agentops-test":           {"#!/bin/sh\necho installed\n", 0o755},
		"var/lib/agentops-test/state":     {"", 0o600},
		"etc/agentops-test.d/agentops.rc": {"x\n", 0o644},
	} {
		target := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(target, []byte(file.content), file.mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir+"/usr/bin/agentops-test", 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "-b", dir, path).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// Root in a run keeps what builds need, and nothing of what they try is refused.
func TestBuilds(t *testing.T) {
	cfg := newConfig(t, "sh", "-ec", `
dpkg -i package.deb >/dev/null
agentops-test
stat -c '%a %U' /usr/bin/agentops-test /var/lib/agentops-test/state
dpkg -r agentops-test >/dev/null; test ! -e /usr/bin/agentops-test
/usr/bin/python3 -m venv --without-pip venv; venv/bin/python -c 'import sys; print(sys.prefix == sys.argv[1] + "/venv")' "$PWD"
echo 'int main(void) { return 0; }' >m.c; gcc -o m m.c; ./m
install -o daemon -g daemon -m 6755 m /usr/local/bin/m; stat -c '%a %U' /usr/local/bin/m
mkfifo /tmp/f; mknod /tmp/null c 1 3; ln -s a /tmp/l; setfattr -n user.x -v y m 2>/dev/null || true
tar -cf m.tar --owner=daemon m; mkdir /tmp/out; tar -C /tmp/out -xf m.tar; stat -c %U /tmp/out/m
git init -q repo; git -C repo -c user.name=a -c user.email=b commit -q --allow-empty -m c; git -C repo log --format=%s
su -s /bin/sh daemon -c 'id -un'
chroot / true; nice true; setarch -R true; flock lock true
`)
	newPackage(t, cfg.Workspace+"/package.deb")
	var refused []string
	cfg.Refused = func(r Refusal) error { refused = append(refused, r.Call); return nil }
	status, output := runConfig(t, cfg)
	const want = "installed\n4755 root\n600 agentops-test\nTrue\n6755 daemon\ndaemon\nc\ndaemon\n"
	if status.Code != 0 || !strings.Contains(output, want) {
		t.Errorf("status %+v, output\n%s\nwant\n%s", status, output, want)
	}
	for _, call := range refused {
		// Without the kernel's audit, those who add and change users go on.
		if !strings.HasSuffix(call, "NETLINK_AUDIT)") {
			t.Errorf("refused: %s", call)
		}
	}
}

// A debugger of a process of the run works; one of PID 1 does not.
func TestTracing(t *testing.T) {
	const script = `
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
ATTACH, CONT = 16, 7
pid = os.fork()
if pid == 0:
    signal.pause()
print(libc.ptrace(ATTACH, pid, 0, 0), os.waitpid(pid, 0)[1] & 0xff == 0x7f)
libc.ptrace(CONT, pid, 0, 0)
os.kill(pid, signal.SIGKILL)
print(libc.ptrace(ATTACH, 1, 0, 0), os.strerror(ctypes.get_errno()))
`
	if _, output := runConfig(t, newConfig(t, "/usr/bin/python3", "-c", script)); output != "0 True\n-1 Operation not permitted\n" {
		t.Errorf("output %q", output)
	}
}
