//go:build !amd64

package main

import "golang.org/x/sys/unix"

// Other architectures are asked for none of these.
const (
	compatGetpid = iota
	compatSocketcall
	compatSocket
	compatConnect
	compatBPF
	compatMount
	compatUnshare
	compatSetns
	compatKeyctl
	compatIoUring
)

const (
	hasCompat = false
	x32       = 0
)

func compat(uintptr, ...uintptr) (uintptr, error) { return 0, unix.ENOSYS }

func lowMemory() (uintptr, []byte, error) { return 0, nil, unix.ENOSYS }
