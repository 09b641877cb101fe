package main

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"agentops/audit"

	"github.com/spf13/cobra"
)

// signedReport is a report with what shows who has made it.
type signedReport struct {
	Report    json.RawMessage   `json:"report"` // to the byte what was signed
	Key       ed25519.PublicKey `json:"key"`
	Signature []byte            `json:"signature"` // over reportPurpose and the report
}

// reportPurpose is signed before a report, so that no other of the key's
// signatures is one of a report.
const reportPurpose = "agentops selftest v1\n"

func newSelftestVerifyCommand(e *env) *cobra.Command {
	var keys []string
	cmd := &cobra.Command{
		Use:   "verify REPORT",
		Short: "Verify the signature of a report, on any machine",
		Long: `Verify that a report is as it was signed, and show it. Without the key of the
host that wrote it, only that whoever wrote it has signed it. The exit code is 1
when it does not hold, or was not passed.`,
		Example: `  agent selftest verify report.json --key host.pub`,
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			pinned, err := readKeys(keys)
			if err != nil {
				return err
			}
			return e.verifyReport(args[0], pinned)
		},
	}
	addKeyFlag(cmd, &keys)
	return cmd
}

func signReport(report *selftestReport, key *audit.Key) ([]byte, error) {
	content, err := json.Marshal(report)
	if err != nil {
		return nil, err
	}
	signature := key.Sign(append([]byte(reportPurpose), content...))
	return json.Marshal(signedReport{Report: content, Key: key.Public(), Signature: signature})
}

// writeReport makes the file appear whole or not at all.
func writeReport(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if err := writeWhole(path, append(content, '\n')); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

func (e *env) verifyReport(path string, pinned audit.Keys) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var signed signedReport
	if err := json.Unmarshal(content, &signed); err != nil {
		return fmt.Errorf("%s is no report of agent selftest: %w", path, err)
	}
	public := signed.Key
	if len(public) != ed25519.PublicKeySize {
		return fmt.Errorf("%s is no report of agent selftest: there is no key in it", path)
	}
	if pinned != nil && pinned[audit.KeyID(public)] == nil {
		fmt.Fprintf(e.stdout, "%s: NOT verified: it was signed with another key, %s\n", path, audit.KeyID(public))
		return &exitError{code: 1}
	}
	if !ed25519.Verify(public, append([]byte(reportPurpose), signed.Report...), signed.Signature) {
		fmt.Fprintf(e.stdout, "%s: NOT verified: it is not what was signed\n", path)
		return &exitError{code: 1}
	}
	var report selftestReport
	if err := json.Unmarshal(signed.Report, &report); err != nil {
		return fmt.Errorf("%s is no report of agent selftest: %w", path, err)
	}
	if err := printReport(e.stdout, &report, path); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s: verified, of %s on %s, signed by %s\n", path, printable(report.Time), printable(report.Host), audit.KeyID(public))
	if !report.Passed {
		return &exitError{code: 1}
	}
	return nil
}
