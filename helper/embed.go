// Package helper holds the static programs that go into a run: its init, which is
// its AWS credential helper as well, and the escape program of agent selftest.
package helper

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// dist holds "helper", built from helper/program, and "escape", built from
// test/escape, beside a placeholder that lets the package compile before they
// are.
//
//go:embed dist/*
var dist embed.FS

// ErrMissing says that agent was built before its helper was.
var ErrMissing = errors.New("this agent was built without its helper (run make)")

// ErrEscapeMissing says that agent was built before its escape program was.
var ErrEscapeMissing = errors.New("this agent was built without its escape program (run make)")

// Binary reads the helper's ELF image, which is not copied into memory for it. The
// error is ErrMissing when the build had none.
func Binary() (io.Reader, error) { return open("helper", ErrMissing) }

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
