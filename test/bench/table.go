package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

var columns = []string{"figure", "", "ours", "compared with", "", "ratio", "target", "met"}

// row is a figure as the table has it.
func (f Figure) row() []string {
	row := []string{f.Name, f.Unit, f.Ours.text(), "-", "", "-", f.Target.text(f.Unit), "yes"}
	if f.Other != nil {
		row[3], row[4], row[5] = f.Other.Name, f.Other.text(), number(f.Ratio())
	}
	if !f.Met() {
		row[7] = "no"
	}
	if f.Target.Of == "added" {
		row[7] += ", " + number(f.Reached()) + " " + f.Unit
	}
	return row
}

// text is a median with its spread.
func (s Series) text() string {
	return fmt.Sprintf("%s ± %.0f %%", number(s.Median), 100*s.Spread/s.Median)
}

func (t Target) text(unit string) string {
	bound, limit := "at most ", t.Most
	if t.Least != 0 {
		bound, limit = "at least ", t.Least
	}
	text := bound + fmt.Sprintf("%g", limit)
	switch t.Of {
	case "ratio":
		return text + " times"
	case "added":
		return "adds " + text + " " + unit
	default:
		return text + " " + unit
	}
}

// printTable prints the figures for a terminal.
func printTable(w io.Writer, r *Results) error {
	fmt.Fprintf(w, "%s: %s\n\n", r.Date, r.Machine)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(r.Figures) > 0 {
		fmt.Fprintln(table, strings.Join(columns, "\t"))
	}
	for _, f := range r.Figures {
		fmt.Fprintln(table, strings.Join(f.row(), "\t"))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, c := range r.Curves {
		fmt.Fprintf(w, "\n%s\n", c.Name)
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		for _, row := range c.rows() {
			fmt.Fprintln(table, strings.Join(row, "\t")+"\t")
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	for _, f := range r.Failed {
		fmt.Fprintf(w, "\nNOT MEASURED: %s: %s\n", f.Part, f.Error)
	}
	return nil
}

// rows are a curve's values, a column for each x.
func (c Curve) rows() [][]string {
	head := []string{c.X}
	for _, x := range c.Lines[0].X {
		head = append(head, number0(x))
	}
	rows := [][]string{head}
	for _, l := range c.Lines {
		row := []string{l.Name + ", " + c.Unit}
		for _, y := range l.Y {
			row = append(row, number(y))
		}
		rows = append(rows, row)
	}
	return rows
}

// number0 writes a count.
func number0(v float64) string {
	if v < 1000 {
		return fmt.Sprintf("%g", v)
	}
	return number(v)
}

// markdown writes rows as a table, the first as its head.
func markdown(w *strings.Builder, rows [][]string) {
	for i, row := range rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(w, "|%s\n", strings.Repeat(" --- |", len(row)))
		}
	}
}
