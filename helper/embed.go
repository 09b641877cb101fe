// Package helper holds the static programs that go into a run: its init, its AWS
// credential helper, and the escape program of agent selftest.
package helper

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// dist holds "init", built from helper/init, and "escape", built from
// test/escape, beside a placeholder that lets the package compile before they
// are.
//
//go:embed dist/*
var dist embed.FS

// ErrMissing says that agent was built before its init was.
var ErrMissing = errors.New("this agent was built without its init (run make)")

// ErrEscapeMissing says that agent was built before its escape program was.
var ErrEscapeMissing = errors.New("this agent was built without its escape program (run make)")

// Init reads init's ELF image, which is not copied into memory for it. The error is
// ErrMissing when the build had none.
func Init() (io.Reader, error) { return open("init", ErrMissing) }

// Credential is the ELF image of the credential helper. It is read-only.
func Credential() []byte { return credential }

// Escape reads the escape program's, likewise. The error is ErrEscapeMissing when
// the build had none.
func Escape() (io.Reader, error) { return open("escape", ErrEscapeMissing) }

func open(name string, missing error) (io.Reader, error) {
	image, err := dist.Open("dist/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missing
	}
	if err != nil {
		return nil, fmt.Errorf("read the %s program: %w", name, err)
	}
	return image, nil
}
