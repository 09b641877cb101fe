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

// dist holds "escape", built from test/escape, beside a placeholder that lets the
// package compile before that is.
//
//go:embed dist/*
var dist embed.FS

// ErrEscapeMissing says that agent was built before its escape program was.
var ErrEscapeMissing = errors.New("this agent was built without its escape program (run make)")

// Init is the ELF image of a run's init. It is read-only.
func Init() []byte { return initial }

// Credential is that of the credential helper, likewise.
func Credential() []byte { return credential }

// Escape reads the escape program's ELF image, which is not copied into memory for it.
// The error is ErrEscapeMissing when the build had none.
func Escape() (io.Reader, error) {
	image, err := dist.Open("dist/escape")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrEscapeMissing
	}
	if err != nil {
		return nil, fmt.Errorf("read the escape program: %w", err)
	}
	return image, nil
}
