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
	cmd := &cobra.Command{
		Use:   "audit [RUN|last]",
		Short: "Verify the journal of a run and show it",
		Long: `Verify that no line of a run's journal was changed, removed, reordered or cut
off, and show it. RUN is an id, a name (of several runs the last), or "last".
The exit code is 1 when the journal does not hold.`,
		Example: `  agent audit last
  agent audit last --json | jq '.events[] | select(.type == "http.request") | .url'
  agent audit verify journal.jsonl`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			which := "last"
			if len(args) == 1 {
				which = args[0]
			}
			folder, err := e.findRun(which)
			if err != nil {
				return err
			}
			return e.showAudit(filepath.Join(folder, journalName), asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object: run, verified, problems, events")
	cmd.AddCommand(&cobra.Command{
		Use:   "verify FILE",
		Short: "Verify a journal file, on any machine",
		Long: `Verify a journal file. A seal.json beside it is compared with it as well. The
exit code is 1 when the journal does not hold.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			report, err := e.verifyJournal(args[0], nil)
			if err != nil {
				return err
			}
			printVerdict(e.stdout, report)
			return verdictError(report)
		},
	})
	return cmd
}

// verifyJournal checks a journal against its chain and the seal beside it.
func (e *env) verifyJournal(path string, visit func(audit.Header, []byte) error) (*audit.Report, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	seal, err := readSeal(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return audit.Verify(file, seal, visit)
}

// verdictError makes the exit code of a report.
func verdictError(report *audit.Report) error {
	if report.Verified() {
		return nil
	}
	return &exitError{code: 1}
}

func (e *env) showAudit(path string, asJSON bool) error {
	var lines []json.RawMessage
	report, err := e.verifyJournal(path, func(_ audit.Header, line []byte) error {
		lines = append(lines, json.RawMessage(append([]byte(nil), line...)))
		return nil
	})
	if err != nil {
		return err
	}
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
	out.WriteString("\n]}\n")
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
	if report.Verified() {
		fmt.Fprintf(w, "run %s: verified, %d events, last %.12s\n", printable(report.Run), report.Lines, report.SHA256)
		return
	}
	fmt.Fprintf(w, "run %s: NOT verified, %d events\n", printable(report.Run), report.Lines)
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
		command, _ := e["command"].([]any)
		words := make([]string, len(command))
		for i, word := range command {
			words[i] = text(word)
		}
		return strings.Join(words, " ")
	case "run.exit":
		return "exit code " + get("exit_code") + with(", ", get("signal")) + with(": ", get("error"))
	case "flow.open":
		return get("protocol") + " to " + get("host") + ":" + get("port") + " (" + get("destination") + ")" + with(" by ", process(e))
	case "flow.close":
		return "flow " + get("flow") + ": " + get("bytes_sent") + " bytes sent, " + get("bytes_received") + " received" + with(": ", get("error"))
	case "http.request":
		return get("method") + " " + get("url") + " " + get("status") + ", " + get("bytes_sent") + " bytes sent, " + get("bytes_received") + " received" + with(": ", get("error"))
	case "tls.failure":
		return get("side") + " " + get("host") + ": " + get("error")
	case "dns.query":
		answers, _ := e["answers"].([]any)
		words := make([]string, len(answers))
		for i, answer := range answers {
			words[i] = text(answer)
		}
		return get("qtype") + " " + get("name") + " " + get("rcode") + with(" ", strings.Join(words, " ")) + with(" refused: ", get("reason")) + with(" by ", process(e))
	case "lost":
		return get("count") + " " + get("what") + " came too fast to be recorded"
	case "credential.serve":
		return get("grant") + with(" by ", get("protocol")) + " " + get("status") + with(", until ", get("expiration")) + with(": ", get("error")) + with(", to ", process(e))
	case "credential.refresh":
		return get("grant") + " " + get("role") + with(", until ", get("expiration")) + with(": ", get("error"))
	case "refused":
		target := get("url")
		if target == "" {
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
	return text(p["comm"]) + "[" + text(p["pid"]) + "]"
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

// printable keeps what comes from a run from commanding the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
