package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// audit measures what the journal costs, and how long one is verified.
func (b *bench) audit() (*Results, error) {
	without := *b
	without.agent = b.noaudit
	on, off := b.wrk("agent", "", 32), without.wrk("without a journal", "", 32)
	load, err := alternate(b.rounds(9), on, off)
	if err != nil {
		return nil, err
	}
	long := 20
	if b.quick {
		long = 4
	}
	if _, err := b.output(b.wrkCommand("", 32, long)); err != nil {
		return nil, err
	}
	journal, size, err := b.largestJournal()
	if err != nil {
		return nil, err
	}
	timed := func(name string, command ...string) contender {
		return single(name, func() (float64, error) {
			began := time.Now()
			_, err := b.output(b.command(command[0], command[1:]...))
			return milliseconds(time.Since(began)), err
		})
	}
	checks, err := alternate(b.rounds(9), timed("agent audit verify", b.agent, "audit", "verify", journal), timed("sha256sum", "sha256sum", journal))
	if err != nil {
		return nil, err
	}
	return &Results{Figures: []Figure{
		{Name: "HTTPS 1 KiB, 32 connections, with the journal", Unit: "requests/s", Ours: load[0][0], Other: &load[1][0], Target: ratioOfAtLeast(0.95)},
		{Name: fmt.Sprintf("verification of a journal of %s MB", number(float64(size)/1e6)), Unit: "ms", Ours: checks[0][0], Other: &checks[1][0], Target: ratioOfAtMost(2)},
	}}, nil
}

// largestJournal is that of the busiest run so far.
func (b *bench) largestJournal() (path string, size int64, err error) {
	paths, err := filepath.Glob(filepath.Join(b.folder, "state", "runs", "*", "journal.jsonl"))
	if err != nil {
		return "", 0, err
	}
	for _, p := range slices.Sorted(slices.Values(paths)) {
		info, err := os.Stat(p)
		if err != nil {
			return "", 0, err
		}
		if info.Size() > size {
			path, size = p, info.Size()
		}
	}
	if path == "" {
		return "", 0, errors.New("no run has left a journal")
	}
	return path, size, nil
}
