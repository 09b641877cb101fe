package grant

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Key encrypts the values of grants: AES-256-GCM, with a nonce by chance.
type Key struct{ aead cipher.AEAD }

const (
	keyName = "grants.key"
	keySize = 32 // bytes
)

// OpenKey reads the key in a folder, grants.key. The error is fs.ErrNotExist when
// there is none, and an *Error for one that cannot be trusted.
func OpenKey(dir string) (*Key, error) {
	path := filepath.Join(dir, keyName)
	info, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("read the key of the grants: %w", err)
	}
	const renew = "; to begin with a new key, move it away and make the HTTP grants anew"
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return nil, bad(fmt.Errorf("key %s can be read or written by others: its mode is %s", path, mode), "chmod 600 it if nobody can have done so%s", renew)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int64(owner) != int64(os.Geteuid()) {
		return nil, bad(fmt.Errorf("key %s belongs to uid %d", path, owner), "chown it if nobody can have read it%s", renew)
	}
	if info.Size() != keySize {
		return nil, bad(fmt.Errorf("key %s is not of %d bytes", path, keySize), "restore it from a copy%s", renew)
	}
	secret, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the key of the grants: %w", err)
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, fmt.Errorf("use the key of the grants: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("use the key of the grants: %w", err)
	}
	return &Key{aead}, nil
}

// LoadKey is OpenKey, and makes folder and key where there is none. Agents that
// come at once end with the same key.
func LoadKey(dir string) (*Key, error) {
	key, err := OpenKey(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := makeKey(dir); err != nil {
		return nil, fmt.Errorf("make the key of the grants: %w", err)
	}
	return OpenKey(dir)
}

// makeKey lets a key appear whole, and never in the place of another.
func makeKey(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	aside, err := os.CreateTemp(dir, ".new-") // 0600
	if err != nil {
		return err
	}
	secret := make([]byte, keySize)
	rand.Read(secret) // never fails
	_, err = aside.Write(secret)
	err = errors.Join(err, aside.Sync(), aside.Close())
	if err == nil {
		err = os.Link(aside.Name(), filepath.Join(dir, keyName))
	}
	if errors.Is(err, fs.ErrExist) {
		err = nil // another agent's
	}
	return errors.Join(err, os.Remove(aside.Name()), syncFolder(dir))
}

func (k *Key) seal(value, binding []byte) []byte { return k.aead.Seal(nil, nil, value, binding) }

func (k *Key) open(sealed, binding []byte) ([]byte, error) {
	return k.aead.Open(nil, nil, sealed, binding)
}
