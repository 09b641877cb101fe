package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What lies between these lines of benchmarks.md is written by make bench, the rest
// by people.
const (
	generatedBegin = "<!-- make bench writes what follows -->\n"
	generatedEnd   = "<!-- make bench has written what precedes -->\n"
)

// The data and the plots lie in a folder beside benchmarks.md.
const (
	docsFile   = "benchmarks.md"
	plotFolder = "benchmarks"
	dataFile   = "benchmarks/data.json"
)

// writeDocs writes the data, and what is made of it.
func writeDocs(folder string, r *Results) error {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	written, err := os.ReadFile(filepath.Join(folder, docsFile))
	if err != nil {
		return err
	}
	files, err := render(r, string(written))
	if err != nil {
		return err
	}
	files[dataFile] = string(data) + "\n"
	if err := os.MkdirAll(filepath.Join(folder, plotFolder), 0o755); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// render returns the files that are made of results: benchmarks.md, whose other parts
// are kept as they were written, and the plots.
func render(r *Results, written string) (map[string]string, error) {
	before, rest, begins := strings.Cut(written, generatedBegin)
	_, after, ends := strings.Cut(rest, generatedEnd)
	if !begins || !ends {
		return nil, fmt.Errorf("%s has no lines %q and %q", docsFile, generatedBegin, generatedEnd)
	}
	files := map[string]string{plotFolder + "/targets.svg": plotTargets(r.Figures)}
	var w strings.Builder
	fmt.Fprintf(&w, "On %s, with %s; agent %s. Compared with Debian's ", r.Date, r.Machine, r.Machine.Agent)
	var versions []string
	for _, name := range slices.Sorted(maps.Keys(r.Machine.Versions)) {
		versions = append(versions, name+" "+r.Machine.Versions[name])
	}
	fmt.Fprintf(&w, "%s.\n\n", strings.Join(versions, ", "))
	rows := [][]string{columns}
	for _, f := range r.Figures {
		rows = append(rows, f.row())
	}
	markdown(&w, rows)
	w.WriteString("\n![each target, and how far it is reached](" + plotFolder + "/targets.svg)\n")
	for _, c := range r.Curves {
		name := plotFolder + "/" + c.File + ".svg"
		files[name] = plotCurve(c)
		fmt.Fprintf(&w, "\n### %s\n\n![%s](%s)\n\n", strings.ToUpper(c.Name[:1])+c.Name[1:], c.Name, name)
		markdown(&w, c.rows())
	}
	files[docsFile] = before + generatedBegin + w.String() + generatedEnd + after
	return files, nil
}
