package audit

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	privateName = "audit.key"
	publicName  = "audit.pub"

	renew = "to begin with a new one, move it away and rename " + publicName + " to some other .pub"
)

// Key is the host's audit key, Ed25519: what it has signed was written by an
// agent of this host.
type Key struct {
	private ed25519.PrivateKey
	id      string
}

// KeyError is a key that is not used, and what to do about it.
type KeyError struct {
	Err  error
	Hint string
}

func (e *KeyError) Error() string { return e.Err.Error() }

// Unwrap returns what is wrong with the key.
func (e *KeyError) Unwrap() error { return e.Err }

// LoadKey reads the key in a folder, audit.key, and makes folder and key where
// there is none. Its public half is kept beside it, audit.pub. Agents that come
// at once end with the same key. The error is a *KeyError when there is a key
// that cannot be trusted: one that others can read, that is malformed, or that
// audit.pub is not of.
func LoadKey(dir string) (*Key, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the audit key: %w", err)
	}
	folder, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the folder of the audit key: %w", err)
	}
	defer folder.Close()
	if err := flock(folder, unix.LOCK_EX); err != nil {
		return nil, err
	}
	private, err := readPrivateKey(filepath.Join(dir, privateName))
	made := errors.Is(err, fs.ErrNotExist)
	if err != nil && !made {
		return nil, err
	}
	path := filepath.Join(dir, publicName)
	public, err := ReadPublicKey(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, &KeyError{err, "move " + path + " away: it is written again, from " + privateName}
	case made:
		return nil, &KeyError{
			fmt.Errorf("audit key %s is gone, and its public half %s is there", filepath.Join(dir, privateName), publicName),
			"put it back; to begin with a new one, rename " + path + " to some other .pub",
		}
	case !public.Equal(private.Public()):
		return nil, &KeyError{
			fmt.Errorf("audit key %s is another than that of its public half %s: one of them was replaced", filepath.Join(dir, privateName), publicName),
			"put the right one back; " + renew,
		}
	}
	if made {
		if private, err = makePrivateKey(dir); err != nil {
			return nil, err
		}
	}
	k := &Key{private: private, id: KeyID(private.Public().(ed25519.PublicKey))}
	if public == nil {
		if err := writeAside(path, k.PEM(), 0o644); err != nil {
			return nil, fmt.Errorf("write the audit key's public half: %w", err)
		}
	}
	return k, nil
}

// readPrivateKey reads a key that nobody else can have read.
func readPrivateKey(path string) (ed25519.PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read the audit key: %w", err)
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return nil, &KeyError{fmt.Errorf("audit key %s can be read or written by others: its mode is %s", path, mode),
			"chmod 600 it if nobody can have done so; " + renew}
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int64(owner) != int64(os.Geteuid()) {
		return nil, &KeyError{fmt.Errorf("audit key %s belongs to uid %d", path, owner),
			"chown it if nobody can have read it; " + renew}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the audit key: %w", err)
	}
	if block, _ := pem.Decode(content); block != nil {
		if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			if private, ok := key.(ed25519.PrivateKey); ok {
				return private, nil
			}
		}
	}
	return nil, &KeyError{fmt.Errorf("audit key %s is no Ed25519 key in PKCS #8, PEM", path), "restore it from a copy; " + renew}
}

func makePrivateKey(dir string) (ed25519.PrivateKey, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the audit key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err == nil {
		block := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		err = writeAside(filepath.Join(dir, privateName), block, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("write the audit key: %w", err)
	}
	return private, nil
}

// writeAside makes a file appear whole or not at all, and stay.
func writeAside(path string, content []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	aside, err := os.CreateTemp(dir, ".new-") // 0600
	if err != nil {
		return err
	}
	_, err = aside.Write(content)
	err = errors.Join(err, aside.Chmod(mode), aside.Sync(), aside.Close())
	if err == nil {
		err = os.Rename(aside.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(aside.Name()))
	}
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// flock waits for a lock, which goes with the file.
func flock(file *os.File, how int) error {
	for {
		err := unix.Flock(int(file.Fd()), how)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", file.Name(), err)
		}
	}
}

// Sign signs a message. It must begin with a line that names what it is and no
// other kind of message begins with, as "agentops selftest v1\n": a signature of
// one kind is none of another.
func (k *Key) Sign(message []byte) []byte { return ed25519.Sign(k.private, message) }

// Public is the public half.
func (k *Key) Public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }

// ID is the key's identifier: see KeyID.
func (k *Key) ID() string { return k.id }

// PEM is the public half as ReadPublicKey takes it.
func (k *Key) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER(k.Public())})
}

// ReadPublicKey reads an Ed25519 key in PKIX, PEM, as audit.pub is.
func ReadPublicKey(path string) (ed25519.PublicKey, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the public key: %w", err)
	}
	if block, _ := pem.Decode(content); block != nil {
		if key, err := x509.ParsePKIXPublicKey(block.Bytes); err == nil {
			if public, ok := key.(ed25519.PublicKey); ok {
				return public, nil
			}
		}
	}
	return nil, fmt.Errorf("public key %s is no Ed25519 key in PKIX, PEM", path)
}

// KeyID identifies a key: 16 hexadecimal digits, the first of the SHA-256 of its
// PKIX form.
func KeyID(public ed25519.PublicKey) string {
	sum := sha256.Sum256(publicDER(public))
	return hex.EncodeToString(sum[:8])
}

func publicDER(public ed25519.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		panic(err) // of a type that it does not know
	}
	return der
}
