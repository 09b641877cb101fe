package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"agentops/audit"
)

// books are where runs are signed off: the host's key, and its ledger.
type books struct {
	key    *audit.Key
	ledger *audit.Ledger
}

func (e *env) keysDir() string { return filepath.Join(e.stateDir(), keysFolder) }

func (e *env) ledgerPath() string { return filepath.Join(e.stateDir(), ledgerName) }

// auditKey is the host's key, made on first use.
func (e *env) auditKey() (*audit.Key, error) {
	key, err := audit.LoadKey(e.keysDir())
	if bad, ok := errors.AsType[*audit.KeyError](err); ok {
		return nil, withHint(err, "%s", bad.Hint)
	}
	if err != nil {
		return nil, stateError(err)
	}
	return key, nil
}

func (e *env) openBooks() (*books, error) {
	key, err := e.auditKey()
	if err != nil {
		return nil, err
	}
	ledger, err := audit.OpenLedger(e.ledgerPath(), key)
	if err != nil {
		return nil, withHint(err, "see agent audit ledger; a ledger that is moved away is begun anew, and no longer has the runs until then")
	}
	return &books{key, ledger}, nil
}

// close keeps a journal's seal beside it, and enters it in the ledger.
func (b *books) close(folder string, seal audit.Seal) error {
	content, err := seal.Marshal(b.key)
	if err != nil {
		return err
	}
	if err := writeWhole(filepath.Join(folder, sealName), content); err != nil {
		return fmt.Errorf("write the journal's seal: %w", err)
	}
	return b.ledger.Append(seal)
}

// closeInterrupted does what close would have for a run whose agent did not come
// to it.
func (b *books) closeInterrupted(id, folder string) error {
	journal, err := os.Open(filepath.Join(folder, journalName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it had not begun
	}
	if err != nil {
		return err
	}
	defer journal.Close()
	ledger, err := audit.ReadLedger(b.ledger.Path())
	if err != nil {
		return err
	}
	if entry, _ := audit.FindEntry(ledger, id, nil); entry != nil {
		return nil
	}
	content, err := readSeal(folder)
	if err != nil {
		return err
	}
	seal, err := audit.ParseSeal(content, audit.Keys{b.key.ID(): b.key.Public()})
	if err == nil {
		return b.ledger.Append(seal)
	}
	// There is none, or not of ours.
	if seal, err = audit.Interrupted(id, journal); err != nil {
		return err
	}
	return b.close(folder, seal)
}

// readSeal reads the seal beside a journal; nil without one.
func readSeal(folder string) ([]byte, error) {
	content, err := os.ReadFile(filepath.Join(folder, sealName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal's seal: %w", err)
	}
	return content, nil
}
