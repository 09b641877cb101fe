package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"agentops/audit"
	"agentops/runtime"

	"github.com/spf13/cobra"
)

func newAuditLedgerCommand(e *env) *cobra.Command {
	var flags ledgerFlags
	cmd := &cobra.Command{
		Use:   "ledger",
		Short: "Verify the list of all runs, and every run in it",
		Long: `Verify the chain and the signatures of the ledger of all runs of this host, and
that the journal of each is there as it was sealed. The exit code is 1 when that
does not hold.

What is cut from the ledger's end, with the folders of those runs, cannot be seen
on the host alone: keep the head that is printed elsewhere, and give it later with
--head.`,
		Example: `  agent audit ledger
  agent audit ledger --json | jq -r .head
  agent audit ledger --head 5ef1...c0 --key host.pub`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return e.auditLedger(flags) },
	}
	f := cmd.Flags()
	f.BoolVar(&flags.asJSON, "json", false, "print one JSON object: verified, problems, head, signed_by, runs")
	f.StringVar(&flags.head, "head", "", "a line whose SHA-256 is `HASH` must be in the ledger")
	addKeyFlag(cmd, &flags.keys)
	return cmd
}

type ledgerFlags struct {
	asJSON bool
	head   string
	keys   []string
}

// auditLedger holds the ledger and the runs' folders against each other.
func (e *env) auditLedger(flags ledgerFlags) error {
	keys, err := e.pinnedKeys(flags.keys)
	if err != nil {
		return err
	}
	// In this order: a run that begins or ends meanwhile is no finding.
	folders, err := os.ReadDir(filepath.Join(e.stateDir(), runsFolder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	open, err := e.openRuns()
	if err != nil {
		return err
	}
	ledger, err := audit.ReadLedger(e.ledgerPath())
	if err != nil {
		return err
	}
	var entries []audit.Entry
	seen := false
	report, err := audit.VerifyLedger(bytes.NewReader(ledger), keys, func(entry audit.Entry) {
		entries = append(entries, entry)
		seen = seen || entry.Prev == flags.head
	})
	if err != nil {
		return err
	}
	if flags.head != "" && !seen && report.SHA256 != flags.head {
		report.Problemf("no line has the hash %s: it was cut off, or the ledger made anew", flags.head)
	}
	closed := make(map[string]bool, len(entries))
	for _, entry := range entries {
		closed[entry.Run] = true
		if err := e.auditEntry(report, entry, keys); err != nil {
			return err
		}
	}
	for _, folder := range folders {
		id := folder.Name()
		if closed[id] || open[id] {
			continue
		}
		if _, err := os.Stat(e.runFolder(id)); err == nil { // else it did not come to begin
			report.Problemf("run %s is not in the ledger: it was never sealed, or its line was removed", id)
		}
	}
	return errors.Join(e.printLedger(report, entries, flags.asJSON), verdictError(report))
}

// auditEntry adds what is wrong with a run of the ledger.
func (e *env) auditEntry(report *audit.Report, entry audit.Entry, keys audit.Keys) error {
	if entry.Run == "" || filepath.Base(entry.Run) != entry.Run {
		report.Problemf("run %q is no run's id", entry.Run)
		return nil
	}
	run, err := verifyJournal(filepath.Join(e.runFolder(entry.Run), journalName), keys, nil)
	if errors.Is(err, fs.ErrNotExist) {
		report.Problemf("run %s is gone: its journal, with %d events, was removed", entry.Run, entry.Lines)
		return nil
	}
	if err != nil {
		return err
	}
	run.Compare(entry)
	if !run.Changed {
		return nil // what else there is to say of it, was when it was sealed
	}
	for _, problem := range run.Problems {
		report.Problemf("run %s: %s", entry.Run, problem)
	}
	return nil
}

// compareLedger adds to a run's report what the ledger has against it.
func compareLedger(report *audit.Report, id string, open bool, ledger []byte, keys audit.Keys) {
	entry, err := audit.FindEntry(ledger, id, keys)
	switch {
	case err != nil:
		report.Problemf("%v", err)
	case entry != nil:
		report.Compare(*entry)
	case !open:
		report.Problemf("the run is not in the ledger: it was never sealed, or its line was removed")
	}
}

// openRuns are the ids of the runs that go on, and of those that the next agent
// will close the books of.
func (e *env) openRuns() (map[string]bool, error) {
	records, err := runtime.Records(e.runDir())
	open := make(map[string]bool, len(records))
	for _, record := range records {
		open[record.ID] = true
	}
	return open, err
}

func (e *env) printLedger(report *audit.Report, entries []audit.Entry, asJSON bool) error {
	if asJSON {
		return e.printJSON(struct {
			Verified bool          `json:"verified"`
			Problems []string      `json:"problems"`
			Head     string        `json:"head"`
			SignedBy []string      `json:"signed_by"`
			Runs     []audit.Entry `json:"runs"`
		}{report.Verified(), append([]string{}, report.Problems...), report.SHA256, append([]string{}, report.SignedBy...), append([]audit.Entry{}, entries...)})
	}
	verdict, signers := "verified", ""
	if !report.Verified() {
		verdict = "NOT verified"
	} else if len(report.SignedBy) > 0 {
		signers = ", signed by " + strings.Join(report.SignedBy, ", ")
	}
	fmt.Fprintf(e.stdout, "ledger: %s, %s, head %s%s\n", verdict, plural(report.Lines, "run"), report.SHA256, signers)
	printProblems(e.stdout, report)
	return nil
}
