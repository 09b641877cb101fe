// Package helper holds the one static program that goes into a run, as its
// init and as its AWS credential helper.
package helper

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// dist holds "helper", built from helper/program, beside a placeholder that
// lets the package compile before it is.
//
//go:embed dist/*
var dist embed.FS

// ErrMissing says that agent was built before its helper was.
var ErrMissing = errors.New("this agent was built without its helper (run make)")

// Binary reads the helper's ELF image, which is not copied into memory for it. The
// error is ErrMissing when the build had none.
func Binary() (io.Reader, error) {
	image, err := dist.Open("dist/helper")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("read the helper: %w", err)
	}
	return image, nil
}
