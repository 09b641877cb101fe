package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// layer is one filesystem of the tree that a run sees, with ours and the run's
// own changes over it.
type layer struct {
	lower string // the folder that is seen, links resolved
	at    string // where, in the run: "/" for the first
	upper string // the run's changes; empty: none can be made
	work  string

	// Ours, made before the run starts, are below the run's, in memory.
	made, madeWork string
	concealed      []string
}

// diskTypes are filesystems that hold a host's programs when they are mounted
// below its root; readOnlyTypes are those of them that no one can change, which
// need no overlay.
var (
	diskTypes     = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "overlay", "nfs", "nfs4"}
	readOnlyTypes = []string{"squashfs", "erofs", "iso9660"}
)

// hostLayers is the host's root and the other filesystems on disks below it, as
// far as they are not in a skipped folder, parents first. An overlay shows one
// filesystem: without a layer of its own a separate /usr would be empty.
func (v *view) hostLayers(mounts []*mountinfo.Info, skipped []string) []layer {
	layers := []layer{{lower: "/", at: "/"}}
	v.number(&layers[0], 0)
	mounts = slices.Clone(mounts)
	slices.SortStableFunc(mounts, func(a, b *mountinfo.Info) int { return strings.Compare(a.Mountpoint, b.Mountpoint) })
	for i, m := range mounts {
		covered := i+1 < len(mounts) && mounts[i+1].Mountpoint == m.Mountpoint
		if m.Mountpoint == "/" || covered || within(m.Mountpoint, skipped...) || !isDir(m.Mountpoint) {
			continue
		}
		l := layer{lower: m.Mountpoint, at: m.Mountpoint}
		switch {
		case slices.Contains(diskTypes, m.FSType):
			v.number(&l, len(layers))
		case !slices.Contains(readOnlyTypes, m.FSType):
			continue
		}
		layers = append(layers, l)
	}
	return layers
}

// The names of layers' folders for changes begin with these.
const (
	upperName = "upper"
	workName  = "work"
)

// number gives a layer its folders for changes.
func (v *view) number(l *layer, n int) {
	l.upper = filepath.Join(v.base, upperName+strconv.Itoa(n))
	l.work = filepath.Join(v.base, workName+strconv.Itoa(n))
	l.made = filepath.Join(v.stage, upperName+strconv.Itoa(n))
	l.madeWork = filepath.Join(v.stage, workName+strconv.Itoa(n))
}

// prepare makes the folders of a layer. The merged root has the mode and owner
// of the upper folder, so that gets the lower's.
func (l *layer) prepare() error {
	if l.upper == "" {
		return nil
	}
	for _, dir := range []string{l.upper, l.work, l.made, l.madeWork} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("make a layer's folder: %w", err)
		}
	}
	return errors.Join(copyAttributes(l.lower, l.upper), copyAttributes(l.lower, l.made))
}

// draft shows the layer in the tree at root, for what is made before the run starts.
func (l *layer) draft(root string) error {
	return l.overlay(root, overlayEscape(l.lower), l.made, l.madeWork, "")
}

// mount shows the layer, with that, in the tree at root. xino: else the files that are
// in memory would take from all others the numbers that they have on one filesystem.
// volatile: changes that are thrown away need not reach the disk, and the end of a run
// would wait until the whole disk is synced.
func (l *layer) mount(root string) error {
	return l.overlay(root, overlayEscape(l.made)+":"+overlayEscape(l.lower), l.upper, l.work, ",xino=on,volatile")
}

func (l *layer) overlay(root, lower, upper, work, options string) error {
	target := filepath.Join(root, l.at)
	if l.upper == "" {
		return bindReadOnly(l.lower, target)
	}
	options = "lowerdir=" + lower + ",upperdir=" + overlayEscape(upper) + ",workdir=" + overlayEscape(work) + options
	err := unix.Mount("overlay", target, "overlay", 0, options)
	if err != nil && l.at != "/" {
		// What an overlay cannot be laid over is still of use.
		l.upper = ""
		return bindReadOnly(l.lower, target)
	}
	if err != nil {
		return fmt.Errorf("mount an overlay over %s: %w", l.lower, err)
	}
	return nil
}

func bindReadOnly(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("bind %s read-only: %w", source, err)
	}
	return nil
}

// overlayEscape quotes a path for overlayfs's options, where ',' separates
// options and ':' lower folders.
func overlayEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace(path)
}

// conceal covers a path of the lower tree with nothing: a folder with an empty
// one, anything else with a whiteout. It is done in the folder of what we make,
// before the overlay is mounted, so that it costs no mount, cannot be undone from
// inside, and leaves a place that the run may fill: packages still install.
// The path has no links in it.
func (l *layer) conceal(path string) error {
	rel, err := filepath.Rel(l.at, path)
	if err != nil || rel == "." || !filepath.IsLocal(rel) {
		return fmt.Errorf("conceal %s: it is not in %s", path, l.at)
	}
	if err := l.copyParents(rel); err != nil {
		return fmt.Errorf("conceal %s: %w", path, err)
	}
	lower, made := filepath.Join(l.lower, rel), filepath.Join(l.made, rel)
	switch {
	case rel == "etc/shadow" || rel == "etc/gshadow":
		err = copyLocked(lower, made)
	case isDir(lower):
		if err = os.Mkdir(made, 0o700); err == nil {
			err = errors.Join(copyAttributes(lower, made),
				unix.Lsetxattr(made, "trusted.overlay.opaque", []byte("y"), 0))
		}
	default:
		err = unix.Mknod(made, unix.S_IFCHR, 0)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("conceal %s: %w", path, err)
	}
	return nil
}

// copyParents makes the folders above rel in the folder of what we make, like the lower's.
func (l *layer) copyParents(rel string) error {
	dir := ""
	for _, name := range strings.Split(filepath.Dir(rel), "/") {
		if name == "." {
			return nil
		}
		dir = filepath.Join(dir, name)
		made := filepath.Join(l.made, dir)
		if err := os.Mkdir(made, 0o700); errors.Is(err, os.ErrExist) {
			continue
		} else if err != nil {
			return err
		}
		if err := copyAttributes(filepath.Join(l.lower, dir), made); err != nil {
			return err
		}
	}
	return nil
}

// copyLocked copies a password file with every password locked, so that
// programs that add users still find the users.
func copyLocked(lower, upper string) error {
	content, err := os.ReadFile(lower)
	if err != nil {
		return err
	}
	if err := os.WriteFile(upper, lockPasswords(content), 0o600); err != nil {
		return err
	}
	return copyAttributes(lower, upper)
}

// lockPasswords replaces the second of the fields of every line.
func lockPasswords(content []byte) []byte {
	var locked bytes.Buffer
	for line := range bytes.Lines(content) {
		fields := bytes.Split(line, []byte(":"))
		if len(fields) < 3 {
			continue
		}
		fields[1] = []byte("*")
		locked.Write(bytes.Join(fields, []byte(":")))
	}
	return locked.Bytes()
}

func copyAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return &os.PathError{Op: "stat", Path: from, Err: err}
	}
	if err := os.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: to, Err: err}
	}
	return nil
}
