package main

import (
	"golang.org/x/sys/unix"
)

// int80 makes a system call by the 32-bit entry point, with i386's numbers.
//
//go:noescape
func int80(nr, a, b, c, d, e uintptr) uintptr

// The numbers of i386.
const (
	compatGetpid     = 20
	compatSocketcall = 102
	compatSocket     = 359
	compatConnect    = 362
	compatBPF        = 357
	compatMount      = 21
	compatUnshare    = 310
	compatSetns      = 346
	compatKeyctl     = 288
	compatIoUring    = 425
)

const hasCompat = true

// x32 marks a number as one of the x32 ABI's.
const x32 = 0x40000000

// compat makes a 32-bit system call. Pointers must be below 4 GiB.
func compat(nr uintptr, args ...uintptr) (uintptr, error) {
	var a [5]uintptr
	copy(a[:], args)
	ret := int32(int80(nr, a[0], a[1], a[2], a[3], a[4]))
	if ret < 0 && ret > -4096 {
		return 0, unix.Errno(-ret)
	}
	return uintptr(ret), nil
}

// lowMemory is a page below 2 GiB, for the arguments of 32-bit system calls.
func lowMemory() (uintptr, []byte, error) {
	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_32BIT)
	if err != nil {
		return 0, nil, err
	}
	return address(mem), mem, nil
}
