package grant

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrUnknown is that there is no grant of a name.
var ErrUnknown = errors.New("there is no such grant")

const (
	suffix  = ".json"
	maxFile = 1 << 20 // bytes; a grant has some hundred
)

// Store is a folder of grants, one file each. It is made by the first Save.
type Store struct{ Dir string }

func (s Store) path(name string) string { return filepath.Join(s.Dir, name+suffix) }

// aside is where a grant is written before it takes its place. No grant has such
// a name.
func (s Store) aside(name string) string { return filepath.Join(s.Dir, "."+name+suffix) }

// Save stores a grant, in place of another of its name. When it fails, that one
// is as it was.
func (s Store) Save(g Grant) error {
	if err := g.Check(); err != nil {
		return err
	}
	content, err := json.MarshalIndent(g.stored(), "", "  ")
	if err != nil {
		return err
	}
	if err := s.save(g.GrantName(), append(content, '\n')); err != nil {
		return fmt.Errorf("store grant %q: %w", g.GrantName(), err)
	}
	return nil
}

func (s Store) save(name string, content []byte) (err error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	aside := s.aside(name)
	if err := writeFile(aside, content); err != nil {
		return errors.Join(err, removeIfThere(aside))
	}
	if err := os.Rename(aside, s.path(name)); err != nil {
		return errors.Join(err, removeIfThere(aside))
	}
	return syncFolder(s.Dir)
}

// writeFile writes a new file to the disk.
func writeFile(path string, content []byte) (err error) {
	if err := removeIfThere(path); err != nil { // of one that was killed
		return err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := file.Write(content); err != nil {
		return err
	}
	return file.Sync()
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// lock keeps others from changing the folder until the returned function is
// called. The kernel lets go of it, should we be killed.
func (s Store) lock() (unlock func(), err error) {
	folder, err := os.Open(s.Dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(folder.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil {
		err = folder.Chmod(0o700)
		if errors.Is(err, unix.EROFS) {
			err = nil // said by what is to be written
		}
	}
	if err != nil {
		folder.Close()
		return nil, fmt.Errorf("lock %s: %w", s.Dir, err)
	}
	return func() { folder.Close() }, nil
}

// syncFolder makes a rename or removal outlive a power failure.
func syncFolder(dir string) error {
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}

func unknown(name string) error { return fmt.Errorf("grant %q: %w", name, ErrUnknown) }

// Load reads a grant and checks it. The error is ErrUnknown when there is none of
// this name.
func (s Store) Load(name string) (Grant, error) {
	if !isName(name) {
		return nil, unknown(name)
	}
	content, err := readFile(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, unknown(name)
	}
	var g Grant
	if err == nil {
		g, err = parse(content)
	}
	if err == nil && g.GrantName() != name {
		err = fmt.Errorf("the name in it is %q", g.GrantName())
	}
	if err == nil {
		err = g.Check()
	}
	if err != nil {
		return nil, &Error{
			Err:  fmt.Errorf("read grant %q from %s: %w", name, s.path(name), err),
			Hint: fmt.Sprintf("make it anew with agent grant aws or agent grant http, or take it away: agent grant revoke %s", name),
		}
	}
	return g, nil
}

func readFile(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, errors.New("it is not a file as grants are stored in")
	}
	return os.ReadFile(path)
}

// List reads all grants, by name. Those that cannot be read are told of in the
// error; the others are returned with it.
func (s Store) List() ([]Grant, error) {
	entries, err := os.ReadDir(s.Dir) // sorted
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the grants: %w", err)
	}
	var grants []Grant
	var errs []error
	for _, entry := range entries {
		name, ok := strings.CutSuffix(entry.Name(), suffix)
		if !ok {
			continue
		}
		g, err := s.Load(name)
		switch {
		case errors.Is(err, ErrUnknown): // taken away since, or what was left aside
		case err != nil:
			errs = append(errs, err)
		default:
			grants = append(grants, g)
		}
	}
	return grants, errors.Join(errs...)
}

// Remove takes a grant away, also one that cannot be read. The error is ErrUnknown
// when there is none of this name. Runs that go on keep what they have.
func (s Store) Remove(name string) error {
	if !isName(name) {
		return unknown(name)
	}
	err := s.remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return unknown(name)
	}
	if err != nil {
		return fmt.Errorf("take grant %q away: %w", name, err)
	}
	return nil
}

func (s Store) remove(name string) error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.Remove(s.path(name)); err != nil {
		return err
	}
	return syncFolder(s.Dir)
}
