package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"agentops/audit"

	"github.com/spf13/cobra"
)

func newAuditCommand(e *env) *cobra.Command {
	var asJSON bool
	var keys []string
	cmd := &cobra.Command{
		Use:   "audit [RUN|last]",
		Short: "Verify the journal of a run and show it",
		Long: `Verify that no line of a run's journal was changed, removed, reordered or cut
off, that this host has signed it, and that its ledger has it; and show it. RUN
is an id, a name (of several runs the last), or "last". The exit code is 1 when
the journal does not hold.`,
		Example: `  agent audit last
  agent audit last --json | jq '.events[] | select(.type == "http.request") | .url'
  agent audit ledger
  agent audit key > host.pub
  agent audit verify journal.jsonl --key host.pub`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			which := "last"
			if len(args) == 1 {
				which = args[0]
			}
			return e.showAudit(which, keys, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object: run, verified, problems, events, signed_by")
	addKeyFlag(cmd, &keys)
	cmd.AddCommand(newAuditVerifyCommand(e), newAuditLedgerCommand(e), newAuditKeyCommand(e))
	return cmd
}

func newAuditVerifyCommand(e *env) *cobra.Command {
	var keys []string
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify a journal file, on any machine",
		Long: `Verify a journal file. A seal.json beside it is compared with it as well. Without
the key of the host that wrote it only its chain is checked, which whoever can
write the file can make anew. The exit code is 1 when the journal does not hold.`,
		Example: `  agent audit verify journal.jsonl --key host.pub`,
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			pinned, err := readKeys(keys)
			if err != nil {
				return err
			}
			report, err := verifyJournal(args[0], pinned, nil)
			if err != nil {
				return err
			}
			printVerdict(e.stdout, report)
			return verdictError(report)
		},
	}
	addKeyFlag(cmd, &keys)
	return cmd
}

func newAuditKeyCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "key",
		Short: "Print the public half of the key that signs this host's journals",
		Long: `Print the public half of the key that signs this host's journals and its ledger,
for --key on another machine. The key is made if there is none yet.`,
		Example: `  agent audit key > host.pub`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			key, err := e.auditKey()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(e.stdout, "agentops audit key %s\n%s", key.ID(), key.PEM())
			return err
		},
	}
}

func addKeyFlag(cmd *cobra.Command, keys *[]string) {
	cmd.Flags().StringArrayVar(keys, "key", nil, "the public key in `FILE` must have signed; of several, one")
}

// readKeys reads public keys; nil without any.
func readKeys(paths []string) (audit.Keys, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	keys := make(audit.Keys)
	for _, path := range paths {
		key, err := audit.ReadPublicKey(path)
		if err != nil {
			return nil, withHint(err, "agent audit key prints that of a host")
		}
		keys.Add(key)
	}
	return keys, nil
}

// pinnedKeys are those given, else those of this host: the one in use, and former
// ones kept beside it. There may be none, which nothing was signed by.
func (e *env) pinnedKeys(given []string) (audit.Keys, error) {
	if len(given) == 0 {
		given, _ = filepath.Glob(filepath.Join(e.keysDir(), "*.pub")) // the pattern is good
	}
	keys, err := readKeys(given)
	if keys == nil {
		keys = make(audit.Keys)
	}
	return keys, err
}

// verifyJournal checks a journal against its chain, keys, and the seal beside it.
func verifyJournal(path string, keys audit.Keys, visit func(audit.Header, []byte) error) (*audit.Report, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	seal, err := readSeal(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return audit.Verify(file, seal, keys, visit)
}

// verdictError makes the exit code of a report.
func verdictError(report *audit.Report) error {
	if report.Verified() {
		return nil
	}
	return &exitError{code: 1}
}

func (e *env) showAudit(which string, given []string, asJSON bool) error {
	keys, err := e.pinnedKeys(given)
	if err != nil {
		return err
	}
	folder, missing := e.findRun(which)
	// In this order: a run that ends meanwhile is no finding.
	open, err := e.openRuns()
	if err != nil {
		return err
	}
	ledger, err := audit.ReadLedger(e.ledgerPath())
	if err != nil {
		return err
	}
	if missing != nil {
		if entry, _ := audit.FindEntry(ledger, which, nil); entry != nil {
			return &exitError{1, fmt.Errorf("the folder of run %s was removed: the ledger has it, with %d events", which, entry.Lines)}
		}
		return missing
	}
	id := filepath.Base(folder)
	var lines []json.RawMessage
	report, err := verifyJournal(filepath.Join(folder, journalName), keys, func(_ audit.Header, line []byte) error {
		lines = append(lines, json.RawMessage(append([]byte(nil), line...)))
		return nil
	})
	if err != nil {
		return err
	}
	compareLedger(report, id, open[id], ledger, keys)
	if asJSON {
		err = printAuditJSON(e.stdout, report, lines)
	} else {
		err = printAudit(e.stdout, report, lines)
	}
	return errors.Join(err, verdictError(report))
}

// printAuditJSON writes the events byte for byte as they stand in the journal.
func printAuditJSON(w io.Writer, report *audit.Report, lines []json.RawMessage) error {
	problems, err := json.Marshal(append([]string{}, report.Problems...))
	if err != nil {
		return err
	}
	run, err := json.Marshal(report.Run)
	if err != nil {
		return err
	}
	var out strings.Builder
	fmt.Fprintf(&out, `{"run":%s,"verified":%t,"problems":%s,"events":[`, run, report.Verified(), problems)
	for i, line := range lines {
		if i > 0 {
			out.WriteByte(',')
		}
		out.WriteByte('\n')
		out.Write(line)
	}
	signers, err := json.Marshal(append([]string{}, report.SignedBy...))
	if err != nil {
		return err
	}
	fmt.Fprintf(&out, "\n],\"signed_by\":%s}\n", signers)
	_, err = io.WriteString(w, out.String())
	return err
}

func printAudit(w io.Writer, report *audit.Report, lines []json.RawMessage) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, line := range lines {
		var event map[string]any
		if err := json.Unmarshal(line, &event); err != nil {
			continue // a problem of the report's
		}
		at := text(event["time"])
		if t, err := time.Parse(time.RFC3339Nano, at); err == nil {
			at = t.Format("15:04:05.000")
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", printable(at), printable(text(event["type"])), printable(describe(event)))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	printVerdict(w, report)
	return nil
}

func printVerdict(w io.Writer, report *audit.Report) {
	run := printable(report.Run)
	switch {
	case !report.Verified():
		fmt.Fprintf(w, "run %s: NOT verified, %d events\n", run, report.Lines)
		printProblems(w, report)
	case len(report.SignedBy) == 0:
		fmt.Fprintf(w, "run %s: chain verified, %d events, last %.12s; signature not checked: give the host's key with --key\n", run, report.Lines, report.SHA256)
	default:
		fmt.Fprintf(w, "run %s: verified, %d events, last %.12s, signed by %s\n", run, report.Lines, report.SHA256, strings.Join(report.SignedBy, ", "))
	}
}

func printProblems(w io.Writer, report *audit.Report) {
	for _, problem := range report.Problems {
		fmt.Fprintf(w, "  %s\n", printable(problem))
	}
}

// describe says in a line what an event holds.
func describe(e map[string]any) string {
	get := func(key string) string { return text(e[key]) }
	with := func(label, value string) string {
		if value == "" {
			return ""
		}
		return label + value
	}
	switch get("type") {
	case "run.start":
		return words(e["command"])
	case "run.exit":
		return "exit code " + get("exit_code") + with(", ", get("signal")) + with(": ", get("error"))
	case "flow.open":
		return get("protocol") + " to " + get("host") + ":" + get("port") + " (" + get("destination") + ")" + with(" by ", process(e))
	case "flow.close":
		return "flow " + get("flow") + ": " + get("bytes_sent") + " bytes sent, " + get("bytes_received") + " received" + with(", datagrams dropped: ", get("dropped")) + with(": ", get("error"))
	case "http.request":
		return get("method") + " " + get("url") + " " + get("status") + ", " + get("bytes_sent") + " bytes sent, " + get("bytes_received") + " received" + with(", with grant ", words(e["grants"])) + with(": ", get("error"))
	case "tls.failure":
		return get("side") + " " + get("host") + ": " + get("error")
	case "dns.query":
		return get("qtype") + " " + get("name") + " " + get("rcode") + with(" ", words(e["answers"])) + with(" refused: ", get("reason")) + with(" by ", process(e))
	case "lost":
		return get("count") + " " + get("what") + " came too fast to be recorded"
	case "credential.serve":
		return get("grant") + with(" by ", get("protocol")) + " " + get("status") + with(", until ", get("expiration")) + with(": ", get("error")) + with(", to ", process(e))
	case "credential.refresh":
		return get("grant") + " " + get("role") + with(", until ", get("expiration")) + with(": ", get("error"))
	case "refused":
		target := get("url")
		switch {
		case get("call") != "":
			target = get("call")
		case target == "":
			target = get("host") + ":" + get("port")
		}
		if method := get("method"); method != "" {
			target = method + " " + target
		}
		return get("protocol") + " " + target + ": " + get("reason") + with(", by rule ", get("rule")) + with("; ", get("detail")) + with("; tried by ", process(e))
	}
	return ""
}

// process says who did what an event tells of.
func process(e map[string]any) string {
	p, ok := e["process"].(map[string]any)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%s (pid %s, uid %s, %s)", text(p["comm"]), text(p["pid"]), text(p["uid"]), text(p["exe"]))
}

// text is a JSON value as a person reads it.
func text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case float64:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprint(v)
}

// words is a JSON array of such values.
func words(v any) string {
	values, _ := v.([]any)
	texts := make([]string, len(values))
	for i, value := range values {
		texts[i] = text(value)
	}
	return strings.Join(texts, " ")
}

// printable keeps what comes from a run from commanding the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
