// Command bench measures agent against what does the same work without it, on
// loopback, in one process: the contenders take turns, so that what else the machine
// does is in all of them. It prints one table, and writes docs/benchmarks.md with
// its data and plots. It needs root, and the programs that make bench installs.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"
)

func main() {
	run := run
	if len(os.Args) > 1 && os.Args[1] == "client" {
		run = func() error { return client(os.Args[2:]) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// part measures some figures and curves that belong together.
type part struct {
	name    string
	measure func(*bench) (*Results, error)
}

var parts = []part{
	{"start", (*bench).start},
	{"https", (*bench).https},
	{"http2", (*bench).http2},
	{"stream", (*bench).stream},
	{"opaque", (*bench).opaque},
	{"latency", (*bench).latency},
	{"credential", (*bench).credential},
	{"memory", (*bench).memory},
	{"audit", (*bench).audit},
	{"connections", (*bench).connections},
	{"runs", (*bench).runs},
}

func run() error {
	quick := flag.Bool("quick", false, "measure for under a minute: fewer and shorter rounds, no curves")
	asJSON := flag.Bool("json", false, "print the data, not a table")
	docs := flag.String("docs", "", "write data, table and plots to `FOLDER`")
	only := flag.String("only", "", "measure the parts that match `REGEXP`")
	agent := flag.String("agent", "agent", "the `FILE` to measure; beside it, bin/agent-noaudit")
	flag.Parse()
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	if *docs != "" && (*quick || *only != "") {
		return errors.New("the docs hold a whole run: -docs goes with neither -quick nor -only")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b, err := newBench(ctx, *agent, *quick)
	if err != nil {
		return err
	}
	results, failed := b.all(match)
	if err := b.close(); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	if err := print(os.Stdout, results, *asJSON); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if *docs != "" {
		return writeDocs(*docs, results)
	}
	return nil
}

// all measures the parts that match. One that fails is in the results, with its
// error, and the others go on.
func (b *bench) all(match *regexp.Regexp) (*Results, error) {
	results := &Results{Date: time.Now().UTC().Format(time.DateOnly), Quick: b.quick, Machine: b.machine}
	failed := 0
	for _, p := range parts {
		if !match.MatchString(p.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s\n", p.name)
		found, err := p.measure(b)
		if b.ctx.Err() != nil {
			return results, errors.New("interrupted")
		}
		if err != nil {
			failed++
			results.Failed = append(results.Failed, Failure{Part: p.name, Error: err.Error()})
			continue
		}
		results.Figures = append(results.Figures, found.Figures...)
		results.Curves = append(results.Curves, found.Curves...)
	}
	if failed > 0 {
		return results, fmt.Errorf("%d of the measurements failed", failed)
	}
	return results, nil
}

func print(w io.Writer, results *Results, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(results)
	}
	return printTable(w, results)
}
