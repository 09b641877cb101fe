package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const (
	// Folder is that of ours in every run, read-only.
	Folder = "/agentops"

	initName = "init"
)

// view is the tree that a run sees, put together on the container's thread.
type view struct {
	base  string // the folder on disk that holds all of it
	stage string // a tmpfs with what is made before the run starts
	root  string // the tree, to be the container's root; in stage

	fresh    []string // folders that get an empty tmpfs
	masked   []string // what could not be hidden in the tree itself
	stores   []Mount  // trust stores that could not be written in the tree itself
	javaless bool     // no trust store of a Java was found

	// unfilled are files that only the command reads.
	unfilled []unfilled
}

// unfilled is an open file whose content is still to be written.
type unfilled struct {
	file    *os.File
	content func() io.Reader
}

// newView puts the tree together, but for what fill writes. Nobody but the calling
// thread sees it.
func newView(cfg *Config) (_ *view, err error) {
	v := emptyView(cfg.Folder)
	defer func() {
		if err != nil {
			err = errors.Join(err, v.fill())
		}
	}()
	if err := os.MkdirAll(v.base, 0o700); err != nil {
		return nil, fmt.Errorf("make the run's view: %w", err)
	}
	if err := v.fitForOverlay(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(v.stage, 0o700); err != nil {
		return nil, fmt.Errorf("make the run's view: %w", err)
	}
	if err := v.fillStage(cfg); err != nil {
		return nil, fmt.Errorf("fill /agentops: %w", err)
	}
	if err := v.makeDevices(); err != nil {
		return nil, fmt.Errorf("make the run's /dev: %w", err)
	}
	if err := os.Mkdir(v.root, 0o700); err != nil {
		return nil, fmt.Errorf("make the run's view: %w", err)
	}
	layers, err := v.layers(cfg)
	if err != nil {
		return nil, err
	}
	if err := v.draft(cfg, layers); err != nil {
		return nil, err
	}
	for i := range layers {
		if err := layers[i].mount(v.root); err != nil {
			return nil, err
		}
		if layers[i].upper == "" {
			v.masked = append(v.masked, layers[i].concealed...)
		}
	}
	return v, v.place(cfg)
}

// draft makes what the tree is to hold, in memory: on a disk each file would cost more
// than all else that a run has. That is done in a tree like the run's, but with our
// folders for its changes, which the run's tree then has below the run's own.
func (v *view) draft(cfg *Config, layers []layer) error {
	for i := range layers {
		if err := layers[i].draft(v.root); err != nil {
			return err
		}
	}
	if err := v.settle(); err != nil {
		return err
	}
	if err := v.trust(cfg); err != nil {
		return fmt.Errorf("fill the trust stores: %w", err)
	}
	if err := v.makePlaces(cfg); err != nil {
		return err
	}
	if err := v.withdraw(layers); err != nil {
		return err
	}
	if err := unix.Unmount(v.root, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the draft of the run's view: %w", err)
	}
	return nil
}

// emptyView names the places of a view in a run's folder.
func emptyView(folder string) *view {
	base := viewFolder(folder)
	stage := filepath.Join(base, "stage")
	return &view{base: base, stage: stage, root: filepath.Join(stage, "root")}
}

// viewFolder is where a run's folder holds its changes to the filesystem.
func viewFolder(folder string) string { return filepath.Join(folder, "view") }

// fitForOverlay lays a tmpfs over the base where its filesystem cannot hold an
// overlay's changes, as in a container: they take memory then.
func (v *view) fitForOverlay() error {
	var st unix.Statfs_t
	if err := unix.Statfs(v.base, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: v.base, Err: err}
	}
	unfit := []int64{unix.OVERLAYFS_SUPER_MAGIC, unix.NFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, unix.V9FS_MAGIC,
		unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.MSDOS_SUPER_MAGIC}
	if !slices.Contains(unfit, st.Type) {
		return nil
	}
	return mountTmpfs(v.base)
}

func mountTmpfs(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
	}
	return nil
}

// layers prepares the filesystems of the tree, with everything hidden that the
// run must not see.
func (v *view) layers(cfg *Config) ([]layer, error) {
	if cfg.Rootfs != "" {
		l := layer{lower: cfg.Rootfs, at: "/"}
		v.number(&l, 0)
		return []layer{l}, l.prepare()
	}
	visible := []string{cfg.Workspace}
	for _, m := range cfg.Mounts {
		visible = append(visible, m.Source)
	}
	h, err := hide(append([]string{cfg.Folder, cfg.Live}, cfg.Hidden...), visible)
	if err != nil {
		return nil, fmt.Errorf("find what to hide: %w", err)
	}
	v.fresh = h.fresh
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("list the host's mounts: %w", err)
	}
	skipped := slices.Concat(h.fresh, h.masked, []string{"/proc", "/sys", "/dev"}, visible)
	layers := v.hostLayers(mounts, skipped)
	for i := range layers {
		if err := layers[i].prepare(); err != nil {
			return nil, err
		}
	}
	for _, path := range h.masked {
		l := layerOf(layers, path)
		if l.upper == "" || l.at == path || l.conceal(path) != nil {
			v.masked = append(v.masked, path)
		} else {
			l.concealed = append(l.concealed, path)
		}
	}
	return layers, nil
}

// layerOf is the layer that holds a path: the deepest comes last.
func layerOf(layers []layer, path string) *layer {
	i := len(layers) - 1
	for ; i > 0 && !within(path, layers[i].at); i-- {
	}
	return &layers[i]
}

// settle makes the places in the tree that something is mounted on what they
// must be. The tree may be anyone's, with links for them that lead elsewhere;
// it is the run's copy that is changed.
func (v *view) settle() error {
	for _, name := range []string{"proc", "sys", "dev", "agentops"} {
		path := filepath.Join(v.root, name)
		if st, err := os.Lstat(path); err == nil && !st.IsDir() {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("replace /%s: %w", name, err)
			}
		}
	}
	etc, err := securejoin.SecureJoin(v.root, "/etc")
	if err != nil {
		return fmt.Errorf("find /etc: %w", err)
	}
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return fmt.Errorf("make /etc: %w", err)
	}
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		path := filepath.Join(etc, name)
		st, err := os.Lstat(path)
		if err == nil && st.Mode().IsRegular() {
			continue
		}
		if err == nil {
			err = os.RemoveAll(path)
		}
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			err = os.WriteFile(path, nil, 0o644)
		}
		if err != nil {
			return fmt.Errorf("replace /etc/%s: %w", name, err)
		}
	}
	return nil
}

// fillStage writes what is mounted into the tree to a tmpfs, never to a disk:
// there are tokens among it.
func (v *view) fillStage(cfg *Config) error {
	if err := mountTmpfs(v.stage); err != nil {
		return err
	}
	files := map[string]File{
		"resolv.conf": {Content: cfg.ResolvConf},
		"hosts":       {Content: cfg.Hosts},
		"hostname":    {Content: []byte(hostname(cfg.Hostname) + "\n")},

		"agentops/" + initName: {Content: cfg.Init, Mode: 0o555},
	}
	for name, file := range cfg.Files {
		files["agentops/"+name] = file
	}
	for name, file := range files {
		mode := file.Mode.Perm()
		if mode == 0 {
			mode = 0o444
		}
		if err := writeFile(filepath.Join(v.stage, name), bytes.NewReader(file.Content), mode); err != nil {
			return err
		}
	}
	return nil
}

// writeFile writes a new file, and the folders above it, with that very mode.
func writeFile(path string, content io.Reader, mode os.FileMode) error {
	file, err := makeFile(path, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Close())
}

// writeLater makes a new file that fill writes.
func (v *view) writeLater(path string, content func() io.Reader, mode os.FileMode) error {
	file, err := makeFile(path, mode)
	if err == nil {
		v.unfilled = append(v.unfilled, unfilled{file, content})
	}
	return err
}

// fill writes the files that are long. It may be called on any thread.
func (v *view) fill() error {
	var errs []error
	for _, u := range v.unfilled {
		_, err := io.Copy(u.file, u.content())
		errs = append(errs, err, u.file.Close())
	}
	v.unfilled = nil
	return errors.Join(errs...)
}

// withdraw opens the draft's files that fill writes where they are in memory, so that
// nothing of the draft is in use any more.
func (v *view) withdraw(layers []layer) error {
	root := resolve(v.root) + "/"
	for i, u := range v.unfilled {
		path, err := os.Readlink(descriptor(int(u.file.Fd())))
		if err != nil {
			return fmt.Errorf("find a file of the draft: %w", err)
		}
		path, found := strings.CutPrefix(path, root)
		if !found {
			continue
		}
		l := layerOf(layers, "/"+path)
		made := filepath.Join(l.made, strings.TrimPrefix("/"+path, l.at))
		file, err := os.OpenFile(made, os.O_WRONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return fmt.Errorf("find a file of the draft: %w", err)
		}
		v.unfilled[i].file = file
		if err := u.file.Close(); err != nil {
			return fmt.Errorf("withdraw the draft: %w", err)
		}
	}
	return nil
}

// makeFile makes a new file, and the folders above it, with that very mode.
func makeFile(path string, mode os.FileMode) (*os.File, error) {
	if err := makeFolders(filepath.Dir(path)); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return nil, err
	}
	if err := file.Chmod(mode); err != nil { // whatever the umask is
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// makeFolders makes folders that every user of the run can pass.
func makeFolders(dir string) error {
	if isDir(dir) {
		return nil
	}
	if err := makeFolders(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// hostname cuts a name to what the kernel keeps.
func hostname(name string) string {
	const most = 64
	return name[:min(len(name), most)]
}

// discard takes the tree apart, on the container's thread, and removes the
// run's changes from the disk.
func (v *view) discard() error {
	for _, dir := range []string{v.root, v.stage, v.base} {
		// EINVAL: nothing is mounted there.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return removeView(v.base)
}

// removeView removes a view's folders. It goes into those only on which nothing
// is ever mounted; a mount that is left makes it fail, not delete what is seen
// there.
func removeView(base string) error {
	entries, err := os.ReadDir(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove the run's changes: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(base, entry.Name())
		remove := os.Remove
		if strings.HasPrefix(entry.Name(), upperName) || strings.HasPrefix(entry.Name(), workName) {
			remove = os.RemoveAll
		}
		if err := remove(path); err != nil {
			return fmt.Errorf("remove the run's changes: %w", err)
		}
	}
	if err := os.Remove(base); err != nil {
		return fmt.Errorf("remove the run's changes: %w", err)
	}
	return nil
}
