package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "draw the docs anew from their data")

const docsFolder = "../../docs"

// The table and the plots are those of the data: nobody has put in a figure by hand.
func TestDocsAreOfTheirData(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(docsFolder, dataFile))
	if errors.Is(err, os.ErrNotExist) {
		if !strings.Contains(read(t, docsFolder, docsFile), generatedBegin+generatedEnd) {
			t.Error("there are figures without data")
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	var r Results
	if err := json.Unmarshal(content, &r); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := writeDocs(docsFolder, &r); err != nil {
			t.Fatal(err)
		}
	}
	files, err := render(&r, read(t, docsFolder, docsFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		if read(t, docsFolder, name) != want {
			t.Errorf("%s is not what its data makes: go test ./test/bench -update", name)
		}
	}
	for _, f := range r.Figures {
		for _, s := range []*Series{&f.Ours, f.Other} {
			if s == nil {
				continue
			}
			if again := newSeries(s.Name, s.Values); again.Median != s.Median || again.Spread != s.Spread {
				t.Errorf("%s, %s: median and spread are not those of the values", f.Name, s.Name)
			}
		}
	}
}

// What people have written stays, whatever is measured anew; the plots are XML.
func TestDocsKeepWhatWasWritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, docsFile)
	if err := os.WriteFile(path, []byte("before\n"+generatedBegin+"old\n"+generatedEnd+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := newSeries("runc run", []float64{10, 11, 12})
	r := &Results{Date: "2026-11-25", Figures: []Figure{
		{Name: "start", Unit: "ms", Ours: newSeries("agent run", []float64{20, 21, 22}), Other: &other, Target: ratioOfAtMost(1.5)},
	}, Curves: []Curve{{Name: "start & more", File: "start", X: "runs", Unit: "ms", Lines: []Line{
		{Name: "agent", X: []float64{1, 10, 100}, Y: []float64{1, 2, 3}}, {Name: "runc", X: []float64{1, 10, 100}, Y: []float64{1, 2, 2.9}},
	}}}}
	for range 2 {
		if err := writeDocs(dir, r); err != nil {
			t.Fatal(err)
		}
	}
	got := read(t, dir, docsFile)
	const row = "| start | ms | 21.0 ± 2 % | runc run | 11.0 ± 5 % | 1.91 | at most 1.5 times | no |\n"
	if !strings.HasPrefix(got, "before\n"+generatedBegin) || !strings.HasSuffix(got, generatedEnd+"after\n") || strings.Count(got, row) != 1 || strings.Contains(got, "old") {
		t.Errorf("it is\n%s", got)
	}
	for _, name := range []string{"targets.svg", "start.svg"} {
		decoder := xml.NewDecoder(strings.NewReader(read(t, dir, filepath.Join(plotFolder, name))))
		for {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	if err := os.WriteFile(path, []byte("no lines\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if writeDocs(dir, r) == nil || read(t, dir, docsFile) != "no lines\n" {
		t.Error("a file without the lines was written over")
	}
}

func read(t *testing.T, folder, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
