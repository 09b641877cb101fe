package runtime

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func TestHidden(t *testing.T) {
	for _, path := range []string{"/home", "/mnt", "/media", "/run", "/var/tmp"} {
		if _, output := shell(t, "ls -A "+path); output != "" {
			t.Errorf("%s holds %q", path, output)
		}
	}
	cfg := newConfig(t, "sh", "-c", "find /root /tmp -mindepth 1 -not -path \"$PWD*\" -not -path \"${PWD%/*}\"; ls -A /etc/ssl/private; ls /etc/ssh/ssh_host*key; cut -d: -f2 /etc/shadow | sort -u")
	_, output := runConfig(t, cfg)
	if want := "*\n"; !strings.HasSuffix(output, want) || strings.Count(output, "\n") > 2 {
		t.Errorf("seen: %q", output)
	}
	// Where packages look for users, they still are.
	if status, output := shell(t, "useradd -m someone && id -u someone && touch /home/someone/x"); status.Code != 0 {
		t.Errorf("add a user: %+v %s", status, output)
	}
}

func TestHiddenExtra(t *testing.T) {
	// Not below a folder that is hidden anyway.
	dir, err := os.MkdirTemp("/opt", "runtime-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(dir+"/secret", []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"/folder", 0o751); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/folder/secret", []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := newConfig(t, "sh", "-c", "find "+dir+" -mindepth 1 -printf '%f %m\n'; touch "+dir+"/folder/mine")
	cfg.Hidden = []string{dir + "/secret", dir + "/folder", "/no/such/path", dir + "/no/such"}
	if status, output := runConfig(t, cfg); status.Code != 0 || output != "folder 751\n" {
		t.Errorf("status %+v, output %q", status, output)
	}
}

// A host's daemon listens on a socket of the host's filesystem.
func TestHostSockets(t *testing.T) {
	needRoot(t)
	dir, err := os.MkdirTemp("/opt", "runtime-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	listener, err := net.Listen("unix", dir+"/daemon.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if status, output := shell(t, "ls "+dir+"; test -e "+dir+"/daemon.sock"); status.Code != 1 || output != "" {
		t.Errorf("status %+v, output %q", status, output)
	}
}

func TestBoundSockets(t *testing.T) {
	table := "Num       RefCount Protocol Flags    Type St Inode Path\n" +
		"0000: 00000002 00000000 00010000 0001 01  1451 /run/a b.sock\n" +
		"0000: 00000002 00000000 00010000 0001 01  1452 @abstract /not\n" +
		"0000: 00000003 00000000 00000000 0001 03  1453\n"
	if got := boundSockets([]byte(table)); len(got) == 0 || got[len(got)-1] != "/run/a b.sock" {
		t.Errorf("sockets %q", got)
	}
}

func TestWorkspaceAndMounts(t *testing.T) {
	cfg := newConfig(t, "sh", "-c", "echo new >file; cat /data/file; echo changed >/data/file; pwd; touch /etc/gone /usr/bin/gone; mknod node b 254 0")
	source := t.TempDir()
	if err := os.WriteFile(source+"/file", []byte("given\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg.Mounts = []Mount{{Source: source, Destination: "/data", ReadOnly: true}}
	_, output := runConfig(t, cfg)
	want := "given\nsh: 1: cannot create /data/file: Read-only file system\n" + cfg.Workspace + "\nmknod: node: Operation not permitted\n"
	if output != want {
		t.Errorf("output %q, want %q", output, want)
	}
	if content, _ := os.ReadFile(cfg.Workspace + "/file"); string(content) != "new\n" {
		t.Errorf("the workspace's file holds %q", content)
	}
	for _, path := range []string{"/etc/gone", "/usr/bin/gone"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is on the host", path)
		}
	}
}

// What a run changes goes to its folder on the disk, what was made for it does not. All
// of it is one filesystem to the run.
func TestChanges(t *testing.T) {
	cfg := newConfig(t, "sh", "-c", `set -e
		stat -c %d / /etc /etc/passwd /etc/ssl/certs/ca-certificates.crt /usr/bin/env | sort -u | wc -l >seen
		echo new >/etc/new; echo more >>/etc/ssl/certs/ca-certificates.crt; mkdir /etc/ssl/mine; rm /etc/passwd
		cat /etc/ssl/certs/ca-certificates.crt >>seen; ls -A /etc/ssl/private >>seen`)
	c, err := Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if seen, err := os.ReadFile(cfg.Workspace + "/seen"); err != nil || string(seen) != "1\nthe bundle\nmore\n" {
		t.Errorf("seen: %q, %v", seen, err)
	}
	upper := filepath.Join(viewFolder(cfg.Folder), upperName+"0")
	var changes []string
	err = filepath.WalkDir(upper, func(path string, _ os.DirEntry, err error) error {
		changes = append(changes, strings.TrimPrefix(path, upper))
		return err
	})
	want := []string{"", "/etc", "/etc/new", "/etc/passwd", "/etc/ssl", "/etc/ssl/certs", "/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/mine"}
	if err != nil || !slices.Equal(changes, want) {
		t.Errorf("on the disk: %q, %v; want %q", changes, err, want)
	}
}

func TestWorkspaceInHiddenHome(t *testing.T) {
	needRoot(t)
	dir, err := os.MkdirTemp("/root", "runtime-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	cfg := newConfig(t, "sh", "-c", "ls -A /root; pwd; touch here")
	cfg.Workspace = dir
	if _, output := runConfig(t, cfg); output != filepath.Base(dir)+"\n"+dir+"\n" {
		t.Errorf("output %q", output)
	}
	if _, err := os.Stat(dir + "/here"); err != nil {
		t.Error(err)
	}
}

func TestDevices(t *testing.T) {
	before, err := exec.Command("ls", "-la", "/dev", "/dev/pts").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, output := shell(t, "ls /dev | tr '\\n' ' '; mknod /dev/mem c 1 1; mknod /dev/n c 1 3 && echo x >/dev/n; rm -r /dev/null; ls /sys/fs/cgroup/devices >/dev/null; echo a >/sys/fs/cgroup/devices/devices.allow")
	want := "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero mknod: /dev/mem: Operation not permitted\n"
	if !strings.HasPrefix(strings.ReplaceAll(output, "core ", ""), want) || !strings.Contains(output, "Read-only file system") {
		t.Errorf("output %q", output)
	}
	after, err := exec.Command("ls", "-la", "/dev", "/dev/pts").Output()
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Errorf("the host's /dev changed:\n%s\n%s", before, after)
	}
}

func TestPrivileges(t *testing.T) {
	_, output := shell(t, "grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs)' /proc/self/status | tr -d '\\t'; umask; echo 1 >/proc/sys/kernel/panic; mount -t tmpfs t /mnt 2>&1 | head -1; ulimit -n")
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"CapInh:0000000000000000\nCapPrm:00000000a80405fb\nCapEff:00000000a80405fb\nCapBnd:00000000a80405fb\nCapAmb:0000000000000000\nNoNewPrivs:1\n0022\n",
		"/proc/sys/kernel/panic: Read-only file system", "permission denied",
	} {
		if !strings.Contains(output, want) {
			t.Errorf("output %q lacks %q", output, want)
		}
	}
}

// tree is a small root filesystem: the image of init as its only program.
func tree(t *testing.T) string {
	t.Helper()
	needRoot(t)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		busybox = ""
	}
	dir := t.TempDir()
	for _, sub := range []string{"bin", "etc", "usr"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	image := initImage
	if busybox != "" {
		if image, err = os.ReadFile(busybox); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/bin/program", image, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The only program in the tree is init: without a command it exits with 125.
func TestRootfs(t *testing.T) {
	cfg := newConfig(t, "/bin/program")
	cfg.Rootfs = tree(t)
	if status, output := runConfig(t, cfg); status.Code != 125 {
		t.Errorf("status %+v, output %q", status, output)
	}
	for _, name := range []string{"agentops", "proc", "dev", "tmp", "etc/hosts"} {
		if _, err := os.Lstat(filepath.Join(cfg.Rootfs, name)); err == nil {
			t.Errorf("/%s was made in the tree itself", name)
		}
	}
}

func TestHostileRootfs(t *testing.T) {
	outside := t.TempDir()
	for _, test := range []struct{ path, target string }{
		{"dev", outside}, {"proc", outside}, {"sys", "../../../../../../.." + outside}, {"agentops", outside},
		{"etc/resolv.conf", "/proc/1/root" + outside + "/file"}, {"etc/resolv.conf", outside + "/file"},
		{"etc/hosts", "../../../../../.." + outside + "/file"}, {"etc", outside}, {"tmp", outside},
		{"etc/ssl", outside}, {"dev", "/proc"}, {"agentops", "/"}, {"agentops", "loop"}, {"loop", "agentops"},
	} {
		t.Run(test.path+" to "+test.target, func(t *testing.T) {
			cfg := newConfig(t, "/bin/program")
			cfg.Rootfs = tree(t)
			path := filepath.Join(cfg.Rootfs, test.path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(test.target, path); err != nil {
				t.Fatal(err)
			}
			if test.path == "tmp" { // the workspace's place is not there
				if c, err := Create(cfg); err == nil {
					t.Error("created", c.Close())
				}
			} else if status, output := runConfig(t, cfg); status.Code != 125 {
				t.Errorf("status %+v, output %q", status, output)
			}
			if entries, err := os.ReadDir(outside); err != nil || len(entries) != 0 {
				t.Errorf("outside of the tree: %v, %v", entries, err)
			}
			if left := leftovers(t, cfg); left != nil {
				t.Errorf("left on the host: %q", left)
			}
		})
	}
}

func TestHostLayers(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mounts := []*mountinfo.Info{
		{Mountpoint: "/", FSType: "ext4"},
		{Mountpoint: at("var/lib"), FSType: "xfs"},
		{Mountpoint: at("var"), FSType: "ext4"},
		{Mountpoint: at("usr"), FSType: "squashfs"},
		{Mountpoint: at("ram"), FSType: "tmpfs"},
		{Mountpoint: at("home"), FSType: "ext4"},
		{Mountpoint: at("home/one"), FSType: "ext4"},
		{Mountpoint: at("twice"), FSType: "ext4"},
		{Mountpoint: at("twice"), FSType: "btrfs"},
		{Mountpoint: dir + "/no folder", FSType: "ext4"},
	}
	var got []string
	for _, l := range (&view{base: "/base"}).hostLayers(mounts, []string{dir + "/home"}) {
		got = append(got, strings.TrimPrefix(l.at, dir)+" "+l.upper)
	}
	want := []string{"/ /base/upper0", "/twice /base/upper1", "/usr ", "/var /base/upper3", "/var/lib /base/upper4"}
	if strings.Join(got, ",") != strings.Join(want, ",") {
		t.Errorf("layers %q, want %q", got, want)
	}
}

func TestLockPasswords(t *testing.T) {
	got := lockPasswords([]byte("root:$y$j9T$x:20228:0:99999:7:::\nempty::1:::::\nnonsense\n"))
	if want := "root:*:20228:0:99999:7:::\nempty:*:1:::::\n"; string(got) != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestUnifiedPath(t *testing.T) {
	for membership, want := range map[string]string{
		"0::/agentops-1\n": "/agentops-1",
		"4:memory:/x\n1:cpu:/agentops-1\n0::/x y/z\n": "/x y/z",
		"1:cpu:/x\n": "",
		"":           "",
	} {
		got, err := unifiedPath(membership)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", membership, got, err, want)
		}
	}
	v1 := &mountinfo.Info{Mountpoint: "/sys/fs/cgroup/cpu", FSType: "cgroup"}
	if got := fmt.Sprint(hierarchies([]*mountinfo.Info{v1, v1})); got != "[/sys/fs/cgroup/cpu]" {
		t.Errorf("hierarchies %s", got)
	}
}

// Where the table of mounts has it first, it is.
func TestUnifiedMount(t *testing.T) {
	mounts, err := listCgroupMounts()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(mounts, func(m *mountinfo.Info) bool { return m.FSType == "cgroup2" })
	point, err := unifiedMount()
	if (err == nil) != (i >= 0) || i >= 0 && point != mounts[i].Mountpoint {
		t.Errorf("%q, %v, of %v", point, err, mounts)
	}
}

// Who expects moves stays where it is.
func TestExpectMoves(t *testing.T) {
	where := func() string {
		content, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	before := where()
	ExpectMoves()
	if after := where(); after != before {
		t.Errorf("moved from\n%sto\n%s", before, after)
	}
}
