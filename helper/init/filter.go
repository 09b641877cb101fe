package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// filterInstruction is the size of the kernel's struct sock_filter.
const filterInstruction = 8

// installFilter takes a filter of system calls from the lifeline, puts it on init
// and with that on all that it starts, and hands the kernel's descriptor of what
// the filter refers to the agent. The caller keeps no new privileges.
func installFilter(lifeline int) error {
	head := make([]byte, 2)
	if err := readFull(lifeline, head); err != nil {
		return fmt.Errorf("receive the filter: %w", err)
	}
	filter := make([]byte, filterInstruction*int(binary.NativeEndian.Uint16(head)))
	if err := readFull(lifeline, filter); err != nil {
		return fmt.Errorf("receive the filter: %w", err)
	}
	program := struct {
		length uint16
		filter *byte
	}{binary.NativeEndian.Uint16(head), unsafe.SliceData(filter)}
	const (
		setModeFilter   = 1
		threads         = 1 << 0
		speculationAsIs = 1 << 2
		newListener     = 1 << 3
		threadsErrno    = 1 << 4
		waitKillable    = 1 << 5 // Linux 5.19; before that a signal makes a caller ask again
		flags           = threads | speculationAsIs | newListener | threadsErrno
	)
	fd, _, errno := syscall.RawSyscall(sysSeccomp, setModeFilter, flags|waitKillable, uintptr(unsafe.Pointer(&program)))
	if errno == syscall.EINVAL {
		fd, _, errno = syscall.RawSyscall(sysSeccomp, setModeFilter, flags, uintptr(unsafe.Pointer(&program)))
	}
	if errno != 0 {
		return fmt.Errorf("put the filter on: %w", errno)
	}
	// Nothing in the run keeps a copy.
	defer syscall.Close(int(fd))
	if err := syscall.Sendmsg(lifeline, []byte{wordFiltered, 0}, syscall.UnixRights(int(fd)), nil, 0); err != nil {
		return fmt.Errorf("hand the filter to the agent: %w", err)
	}
	return nil
}

func readFull(fd int, buf []byte) error {
	for len(buf) > 0 {
		n, err := syscall.Read(fd, buf)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return err
		case n == 0:
			return os.ErrClosed
		default:
			buf = buf[n:]
		}
	}
	return nil
}
