package runtime

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// deviceNodes are those of a run's /dev, as Docker's and runc's.
var deviceNodes = []struct {
	name         string
	major, minor uint32
}{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
}

// deviceLinks are what systems have in /dev for programs to find.
var deviceLinks = []struct{ name, target string }{
	{"ptmx", "pts/ptmx"}, {"fd", "/proc/self/fd"},
	{"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
	{"core", "/proc/kcore"},
}

// makeDevices makes the run's /dev aside, to be shown in the tree. libcontainer could,
// at some 40 system calls for each node, link and mount.
func (v *view) makeDevices() error {
	dev := v.devices()
	for _, m := range []struct {
		at, kind, source, data string
		flags                  uintptr
	}{
		{"", "tmpfs", "tmpfs", "mode=755,size=65536k", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_STRICTATIME},
		{"pts", "devpts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"shm", "tmpfs", "shm", "mode=1777", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV},
	} {
		target := filepath.Join(dev, m.at)
		if err := makeFolders(target); err != nil {
			return err
		}
		if err := unix.Mount(m.source, target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount a %s: %w", m.kind, err)
		}
	}
	for _, node := range deviceNodes {
		path := filepath.Join(dev, node.name)
		if err := unix.Mknod(path, unix.S_IFCHR, int(unix.Mkdev(node.major, node.minor))); err != nil {
			return &os.PathError{Op: "mknod", Path: path, Err: err}
		}
		if err := os.Chmod(path, 0o666); err != nil { // whatever the umask is
			return err
		}
	}
	for _, link := range deviceLinks {
		if link.name == "core" {
			if _, err := os.Lstat(link.target); err != nil {
				continue // the kernel has none
			}
		}
		if err := os.Symlink(link.target, filepath.Join(dev, link.name)); err != nil {
			return err
		}
	}
	return nil
}

// devices is where makeDevices does that.
func (v *view) devices() string { return filepath.Join(v.stage, "dev") }
