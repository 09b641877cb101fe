package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"agentops/audit"
)

// A run's folder, below runs in the state folder, holds its evidence, and what
// agent had to say of it. Beside runs are the keys that sign evidence, and the
// ledger of all of it.
const (
	runsFolder  = "runs"
	journalName = "journal.jsonl"
	sealName    = "seal.json"
	logName     = "run.log"
	keysFolder  = "keys"
	ledgerName  = "ledger.jsonl"
)

func (e *env) runFolder(id string) string { return filepath.Join(e.stateDir(), runsFolder, id) }

// makeRunFolder makes a new run's folder.
func (e *env) makeRunFolder(id string) (string, error) {
	folder := e.runFolder(id)
	if err := os.MkdirAll(filepath.Dir(folder), 0o700); err != nil {
		return "", stateError(err)
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		return "", stateError(err)
	}
	return folder, nil
}

// stateError is an error of the state folder, with what to do about it.
func stateError(err error) error {
	return withHint(fmt.Errorf("write the state folder: %w", err),
		"free some space, or set AGENTOPS_STATE_DIR to a folder that can be written")
}

// findRun returns the folder of a run by its id, its name (the last of several),
// or "last".
func (e *env) findRun(which string) (string, error) {
	entries, err := os.ReadDir(filepath.Join(e.stateDir(), runsFolder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	slices.Reverse(entries) // ids sort by time: the last run first
	for _, entry := range entries {
		id := entry.Name()
		if which == "last" || which == id {
			return e.runFolder(id), nil
		}
	}
	for _, entry := range entries {
		folder := e.runFolder(entry.Name())
		if start, err := readStart(folder); err == nil && start.Name == which {
			return folder, nil
		}
	}
	if which == "last" {
		return "", withHint(errors.New("there is no run yet"), "agent run -- COMMAND")
	}
	return "", withHint(fmt.Errorf("there is no run %q", which), "runs are named by id, by --name, or as \"last\"; they are in %s", filepath.Join(e.stateDir(), runsFolder))
}

// readStart reads a journal's first event.
func readStart(folder string) (*audit.RunStart, error) {
	file, err := os.Open(filepath.Join(folder, journalName))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var start audit.RunStart
	return &start, json.NewDecoder(file).Decode(&start)
}

// kernelRelease is the running kernel's version; empty when it cannot be told.
func kernelRelease() string {
	content, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(content))
}

// writeWhole makes a file, mode 0600, appear whole or not at all.
func writeWhole(path string, content []byte) error {
	aside, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path))
	if err != nil {
		return err
	}
	_, err = aside.Write(content)
	err = errors.Join(err, aside.Close())
	if err == nil {
		err = os.Rename(aside.Name(), path)
	}
	if err != nil {
		_ = os.Remove(aside.Name())
	}
	return err
}
