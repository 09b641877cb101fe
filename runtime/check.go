package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// systemFolders cannot be a workspace or be mounted into a run, nor can what
// holds one of them: the run could change the host through them.
var systemFolders = []string{
	"/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/media", "/mnt", "/opt",
	"/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/local",
	"/usr/sbin", "/var", "/var/cache", "/var/lib", "/var/log", "/var/run", "/var/tmp",
}

// kernelFolders cannot be either, nor can what is in them.
var kernelFolders = []string{"/proc", "/sys", "/dev", "/run", "/boot"}

// Checker says what of the host a run may be given.
type Checker struct {
	// guarded looks once what runs must not see, which takes a while.
	guarded func() (guarded, error)
}

// guarded is what of this host runs must not see, links resolved.
type guarded struct {
	system  []string // systemFolders
	homes   []string
	secrets []string // where secrets are
	engines []string // sockets that give the host to who can write to them
}

// NewChecker makes a checker. hidden are the Config's.
func NewChecker(hidden ...string) *Checker {
	return &Checker{guarded: sync.OnceValues(func() (guarded, error) { return findGuarded(hidden) })}
}

// Workspace returns a workspace's path with its links resolved, or why a run cannot
// work there.
func (c *Checker) Workspace(path string) (string, error) {
	real, err := existing(path)
	if err != nil {
		return "", fmt.Errorf("workspace %s: %w", path, err)
	}
	if !isDir(real) {
		return "", fmt.Errorf("workspace %s: not a folder", path)
	}
	if err := c.exposes(real); err != nil {
		return "", fmt.Errorf("workspace %s: %w", path, err)
	}
	return real, nil
}

// Mount returns a mount with the links of its source resolved, or why a run cannot
// have it.
func (c *Checker) Mount(m Mount) (Mount, error) {
	real, err := existing(m.Source)
	if err != nil {
		return Mount{}, fmt.Errorf("mount %s: %w", m.Source, err)
	}
	if err := c.exposes(real); err != nil {
		return Mount{}, fmt.Errorf("mount %s: %w", m.Source, err)
	}
	st, err := os.Stat(real)
	if err != nil {
		return Mount{}, fmt.Errorf("mount %s: %w", m.Source, err)
	}
	if !st.IsDir() && !st.Mode().IsRegular() {
		return Mount{}, fmt.Errorf("mount %s: neither a folder nor a regular file", m.Source)
	}
	if !filepath.IsAbs(m.Destination) {
		return Mount{}, fmt.Errorf("mount %s at %q: the path in the run must be absolute", m.Source, m.Destination)
	}
	destination := filepath.Clean(m.Destination)
	reserved := []string{"/proc", "/sys", "/dev", Folder}
	if destination == "/" || within(destination, reserved...) {
		return Mount{}, fmt.Errorf("mount %s at %s: the run has its own there", m.Source, destination)
	}
	return Mount{Source: real, Destination: destination, ReadOnly: m.ReadOnly}, nil
}

// Rootfs returns the path of a tree with its links resolved, or why it cannot be a
// run's root.
func (c *Checker) Rootfs(path string) (string, error) {
	real, err := existing(path)
	if err != nil {
		return "", fmt.Errorf("rootfs %s: %w", path, err)
	}
	if !isDir(real) {
		return "", fmt.Errorf("rootfs %s: not a folder", path)
	}
	if err := c.exposes(real); err != nil {
		return "", fmt.Errorf("rootfs %s: %w", path, err)
	}
	return real, nil
}

// existing resolves the links of an absolute path to something that is there.
func existing(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", errors.New("the path must be absolute")
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", unwrapPath(err)
	}
	return real, nil
}

// unwrapPath drops the path from an error that the caller puts it in front of.
func unwrapPath(err error) error {
	if perr, ok := errors.AsType[*os.PathError](err); ok {
		return perr.Err
	}
	return err
}

// exposes says what a run that is given path could reach that it must not.
func (c *Checker) exposes(path string) error {
	if path == "/" {
		return errors.New("the run would have the whole host")
	}
	host, err := c.guarded()
	if err != nil {
		return err
	}
	for i, dir := range systemFolders {
		if within(dir, path) || within(host.system[i], path) {
			return fmt.Errorf("it is or holds %s, which is the host's", dir)
		}
	}
	for _, dir := range kernelFolders {
		if within(path, dir) {
			return fmt.Errorf("it is in %s, which is the host's", dir)
		}
	}
	for _, dir := range host.homes {
		if within(dir, path) {
			return fmt.Errorf("it is or holds the home folder %s, where keys are kept", dir)
		}
		for _, name := range homeSecrets {
			if within(path, filepath.Join(dir, name)) {
				return fmt.Errorf("it is in %s, where secrets are kept", filepath.Join(dir, name))
			}
		}
	}
	for _, secret := range host.secrets {
		if within(path, secret) || within(secret, path) {
			return fmt.Errorf("it is, holds or is in %s, which runs must not see", secret)
		}
	}
	for _, socket := range host.engines {
		if within(socket, path) {
			return fmt.Errorf("it is or holds %s, which gives the host to who can write to it", socket)
		}
	}
	return nil
}

// findGuarded looks it up on this host. hidden are secrets as well.
func findGuarded(hidden []string) (guarded, error) {
	var g guarded
	known := make(resolver)
	for _, dir := range systemFolders {
		g.system = append(g.system, known.resolve(dir))
	}
	for _, dir := range homes() {
		g.homes = append(g.homes, known.resolve(dir))
	}
	secrets, err := findSecrets()
	if err != nil {
		return g, err
	}
	for _, path := range slices.Concat(hidden, engineSockets, secrets) {
		g.secrets = append(g.secrets, known.resolve(path))
	}
	sockets, err := hostSockets()
	if err != nil {
		return g, fmt.Errorf("look for the host's sockets: %w", err)
	}
	for _, socket := range sockets {
		if slices.Contains(engineSocketNames, filepath.Base(socket)) {
			g.engines = append(g.engines, known.resolve(socket))
		}
	}
	return g, nil
}
