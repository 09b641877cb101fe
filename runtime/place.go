package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// place puts everything into the tree that is not the kernel's own: empty
// folders, what the user gives, and last what nothing may cover.
//
// libcontainer could, at some 40 system calls for each mount. Here each path is
// resolved by the kernel with the tree as its root, links and all, and what is
// found is mounted on by its descriptor: no link leads out of the tree.
func (v *view) place(cfg *Config) error {
	root, err := unix.Open(v.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: v.root, Err: err}
	}
	defer unix.Close(root)
	for _, folder := range freshFolders {
		if path := resolve(folder.path); within(path, v.fresh...) {
			if err := placeFresh(root, path, folder.mode); err != nil {
				return fmt.Errorf("mount an empty %s: %w", folder.path, err)
			}
		}
	}
	for _, m := range v.mounts(cfg) {
		if err := placeMount(root, m); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.Source, m.Destination, err)
		}
	}
	return nil
}

// mounts is what is shown in the tree, in that order.
func (v *view) mounts(cfg *Config) []Mount {
	stage := func(name string) string { return filepath.Join(v.stage, name) }
	mounts := append([]Mount{{Source: cfg.Workspace, Destination: cfg.Workspace}}, cfg.Mounts...)
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		mounts = append(mounts, Mount{Source: stage(name), Destination: "/etc/" + name, ReadOnly: true})
	}
	mounts = append(mounts, v.stores...)
	return append(mounts, Mount{Source: stage("agentops"), Destination: Folder, ReadOnly: true})
}

// makePlaces makes what is to be mounted on, as far as it can be before anything is.
// What it cannot make place will, or say why not.
func (v *view) makePlaces(cfg *Config) error {
	root, err := unix.Open(v.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: v.root, Err: err}
	}
	defer unix.Close(root)
	covered := slices.Clone(v.fresh)
	for _, m := range v.mounts(cfg) {
		if within(m.Destination, covered...) {
			continue
		}
		covered = append(covered, m.Destination)
		if target, err := m.openTarget(root); err == nil {
			unix.Close(target)
		}
	}
	return nil
}

// openTarget opens what is mounted on in the tree.
func (m *Mount) openTarget(root int) (int, error) {
	if isDir(m.Source) {
		return openFolder(root, m.Destination)
	}
	return openFile(root, m.Destination)
}

// placeFresh mounts an empty folder in the tree.
func placeFresh(root int, path, mode string) error {
	target, err := openFolder(root, path)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	return unix.Mount("tmpfs", "/proc/thread-self/fd/"+strconv.Itoa(target), "tmpfs", flags, "mode="+mode)
}

// placeMount shows a folder of the host, with what is mounted in it, or a file
// in the tree. Nothing of the host's becomes a device or changes the user there.
func placeMount(root int, m Mount) error {
	source, err := unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(source)
	attributes := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if m.ReadOnly {
		attributes.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	err = unix.MountSetattr(source, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attributes)
	if errors.Is(err, unix.ENOSYS) {
		return errors.New("mount_setattr is missing: Linux 5.12 or later is needed")
	}
	if err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	target, err := m.openTarget(root)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	const both = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	return os.NewSyscallError("move_mount", unix.MoveMount(source, "", target, "", both))
}

// openIn opens a path as if root were /.
func openIn(root int, path string, flags uint64) (int, error) {
	for {
		fd, err := unix.Openat2(root, path, &unix.OpenHow{
			Flags:   flags | unix.O_PATH | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err == unix.EAGAIN || err == unix.EINTR {
			continue // something was renamed meanwhile
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return fd, nil
	}
}

// openFolder opens a folder in the tree, which it makes if need be.
func openFolder(root int, path string) (int, error) {
	fd, err := openIn(root, path, unix.O_DIRECTORY)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	parent, err := openFolder(root, filepath.Dir(path))
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	name := filepath.Base(path)
	if err := unix.Mkdirat(parent, name, 0o755); err != nil {
		return -1, &os.PathError{Op: "mkdir", Path: path, Err: err} // a link to nothing, too
	}
	fd, err = unix.Openat(parent, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// openFile opens a file in the tree, which it makes if need be.
func openFile(root int, path string) (int, error) {
	fd, err := openIn(root, path, 0)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	parent, err := openFolder(root, filepath.Dir(path))
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	name := filepath.Base(path)
	fd, err = unix.Openat(parent, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return -1, &os.PathError{Op: "create", Path: path, Err: err}
	}
	return fd, nil
}
