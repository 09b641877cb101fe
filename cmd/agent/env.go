package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"
)

// env is everything that a command takes from its process, so that tests can
// call run with another.
type env struct {
	args   []string // without the program's name
	stdin  *os.File
	stdout io.Writer
	stderr io.Writer
	getenv func(string) string
	dir    string // the current folder
	uid    int    // effective

	// hostPolicy is the path of the host-wide policy. It is no variable's to
	// say: sudo and CI systems let variables of a job's choice through.
	hostPolicy string
}

func processEnv() *env {
	dir, err := os.Getwd()
	if err != nil {
		dir = "" // reported where a workspace is needed
	}
	return &env{
		args:   os.Args[1:],
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		getenv: os.Getenv,
		dir:    dir,
		uid:    os.Geteuid(),

		hostPolicy: hostPolicyFile,
	}
}

// stateDir holds grants, runs and keys; it outlives a reboot.
func (e *env) stateDir() string { return e.folder("AGENTOPS_STATE_DIR", "/var/lib/agentops") }

// runDir holds live objects; it need not outlive a reboot.
func (e *env) runDir() string { return e.folder("AGENTOPS_RUN_DIR", "/run/agentops") }

func (e *env) folder(variable, standard string) string {
	dir := e.getenv(variable)
	if dir == "" {
		return standard
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(e.dir, dir)
	}
	return filepath.Clean(dir)
}

func (e *env) logger() *logrus.Logger {
	log := logrus.New()
	log.SetOutput(e.stderr)
	log.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: true})
	return log
}

// errorsTo prints what is logged as an error to a stream beside the log.
type errorsTo struct{ w io.Writer }

// Levels implements logrus.Hook.
func (errorsTo) Levels() []logrus.Level { return []logrus.Level{logrus.ErrorLevel} }

// Fire implements logrus.Hook.
func (h errorsTo) Fire(entry *logrus.Entry) error {
	cause := ""
	if err, ok := entry.Data[logrus.ErrorKey]; ok {
		cause = fmt.Sprintf(": %v", err)
	}
	_, err := fmt.Fprintf(h.w, "agent: error: %s%s\n", entry.Message, cause)
	if hint, ok := entry.Data["hint"]; ok {
		fmt.Fprintf(h.w, "agent: hint: %s\n", hint)
	}
	return err
}

// The exit codes of agent itself; any other is the command's.
const (
	exitOurs          = 125
	exitNotExecutable = 126
	exitNotFound      = 127
)

// hintError is an error with what the user can do about it.
type hintError struct {
	err  error
	hint string
}

func (h *hintError) Error() string { return h.err.Error() }
func (h *hintError) Unwrap() error { return h.err }

// withHint adds a hint to a non-nil error.
func withHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hintError{err: err, hint: fmt.Sprintf(format, args...)}
}

// exitError carries an exit code through cobra; a nil err prints nothing.
type exitError struct {
	code int
	err  error
}

func (x *exitError) Error() string {
	if x.err == nil {
		return fmt.Sprintf("exit code %d", x.code)
	}
	return x.err.Error()
}
func (x *exitError) Unwrap() error { return x.err }

// report prints an error in the house form and returns the exit code.
func (e *env) report(err error) int {
	if err == nil {
		return 0
	}
	code := exitOurs
	if x, ok := errors.AsType[*exitError](err); ok {
		code = x.code
		if x.err == nil {
			return code
		}
	}
	fmt.Fprintf(e.stderr, "agent: error: %v\n", err)
	if h, ok := errors.AsType[*hintError](err); ok {
		fmt.Fprintf(e.stderr, "agent: hint: %s\n", h.hint)
	}
	return code
}
