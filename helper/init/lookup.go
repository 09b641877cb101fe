package main

import (
	"path/filepath"
	"strings"
	"syscall"
)

// The exit codes of a shell for a command that it could not start.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// startError is why a command did not start, and the exit code that says so.
type startError struct {
	code   int
	reason string
}

func (e *startError) Error() string { return e.reason }

// lookup finds a command as a shell does: a name with a slash is a path, any
// other is sought in the folders of path, where an executable file wins over
// one that is not.
func lookup(name, path string) (string, *startError) {
	if name == "" {
		return "", &startError{exitNotFound, "the command is empty"}
	}
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	var refused *startError
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "." // as POSIX has it
		}
		file := dir + "/" + name
		err := executable(file)
		if err == nil {
			return file, nil
		}
		if err.code == exitNotExecutable && refused == nil {
			refused = err
		}
	}
	if refused != nil {
		return "", refused
	}
	return "", &startError{exitNotFound, name + ": command not found"}
}

// executable says why a file cannot be started, as far as its mode tells.
func executable(file string) *startError {
	var st syscall.Stat_t
	if err := syscall.Stat(file, &st); err != nil {
		return failure(file, err)
	}
	if st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		return &startError{exitNotExecutable, file + ": is a directory"}
	}
	const xOK = 1
	if err := syscall.Access(file, xOK); err != nil {
		return &startError{exitNotExecutable, file + ": permission denied"}
	}
	return nil
}

// failure is the error of a system call on a command's file as a shell would
// put it.
func failure(file string, err error) *startError {
	code := exitNotExecutable
	if err == syscall.ENOENT || err == syscall.ENOTDIR {
		code = exitNotFound
	}
	return &startError{code, file + ": " + err.Error()}
}
