package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Results are one run of the benchmark.
type Results struct {
	Date    string    `json:"date"` // UTC
	Quick   bool      `json:"quick,omitempty"`
	Machine Machine   `json:"machine"`
	Figures []Figure  `json:"figures"`
	Curves  []Curve   `json:"curves,omitempty"`
	Failed  []Failure `json:"failed,omitempty"`
}

// Failure is a part that could not be measured.
type Failure struct {
	Part  string `json:"part"`
	Error string `json:"error"`
}

// Figure is one measurement of ours, beside the same of something else if there is
// something that does it.
type Figure struct {
	Name   string  `json:"figure"`
	Unit   string  `json:"unit"`
	Ours   Series  `json:"ours"`
	Other  *Series `json:"compared_with,omitempty"`
	Target Target  `json:"target"`
}

// Target is what a figure must reach: of the ratio to the other, of our own value,
// or of what ours has more than the other.
type Target struct {
	Of    string  `json:"of"` // "ratio", "value", "added"
	Least float64 `json:"at_least,omitempty"`
	Most  float64 `json:"at_most,omitempty"`
}

func ratioOfAtLeast(x float64) Target { return Target{Of: "ratio", Least: x} }
func ratioOfAtMost(x float64) Target  { return Target{Of: "ratio", Most: x} }
func valueOfAtMost(x float64) Target  { return Target{Of: "value", Most: x} }
func addedOfAtMost(x float64) Target  { return Target{Of: "added", Most: x} }

// Series are the values of one contender, one for each round.
type Series struct {
	Name   string    `json:"name"`
	Values []float64 `json:"values"`
	Median float64   `json:"median"`
	Spread float64   `json:"spread"` // half of what the middle half of the values spans
}

func newSeries(name string, values []float64) Series {
	sorted := slices.Sorted(slices.Values(values))
	return Series{
		Name: name, Values: values,
		Median: quantile(sorted, 0.5),
		Spread: (quantile(sorted, 0.75) - quantile(sorted, 0.25)) / 2,
	}
}

// quantile interpolates between the two values that are next to it.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	low, high := sorted[int(math.Floor(at))], sorted[int(math.Ceil(at))]
	return low + (high-low)*(at-math.Floor(at))
}

// Ratio is ours to the other; 0 without another.
func (f Figure) Ratio() float64 {
	if f.Other == nil {
		return 0
	}
	return f.Ours.Median / f.Other.Median
}

// Reached is the value that the target is about.
func (f Figure) Reached() float64 {
	switch f.Target.Of {
	case "ratio":
		return f.Ratio()
	case "added":
		return f.Ours.Median - f.Other.Median
	default:
		return f.Ours.Median
	}
}

// Met says whether the target is met.
func (f Figure) Met() bool {
	if f.Target.Least != 0 {
		return f.Reached() >= f.Target.Least
	}
	return f.Reached() <= f.Target.Most
}

// Curve shows how a cost grows with the work.
type Curve struct {
	Name  string `json:"curve"`
	File  string `json:"file"` // of its plot, without the suffix
	X     string `json:"x"`
	Unit  string `json:"unit"`
	Lines []Line `json:"lines"`
}

// Line is one contender's values along a curve.
type Line struct {
	Name string    `json:"name"`
	X    []float64 `json:"x"`
	Y    []float64 `json:"y"` // medians
}

// contender is one that takes turns. A measurement may have several values, which are
// then those of several figures.
type contender struct {
	name    string
	measure func() ([]float64, error)
}

// single is a contender whose measurement has one value.
func single(name string, measure func() (float64, error)) contender {
	return contender{name, func() ([]float64, error) {
		v, err := measure()
		return []float64{v}, err
	}}
}

// alternate lets each contender measure once a round, in turns, and returns their
// series: of the first contender those of its first, second, ... value, and so on.
func alternate(rounds int, contenders ...contender) ([][]Series, error) {
	values := make([][][]float64, len(contenders))
	for round := range rounds {
		for turn := range contenders {
			i := turn
			if round%2 == 1 {
				i = len(contenders) - 1 - turn // nobody is always behind the same
			}
			got, err := contenders[i].measure()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", contenders[i].name, err)
			}
			if values[i] == nil {
				values[i] = make([][]float64, len(got))
			}
			for k, v := range got {
				values[i][k] = append(values[i][k], v)
			}
		}
	}
	series := make([][]Series, len(contenders))
	for i, c := range contenders {
		for _, v := range values[i] {
			series[i] = append(series[i], newSeries(c.name, v))
		}
	}
	return series, nil
}

// number writes a value with three digits that matter, or all before the point.
func number(v float64) string {
	switch size := math.Abs(v); {
	case size >= 1000:
		digits := fmt.Sprintf("%.0f", v)
		var groups []string
		for len(digits) > 3 {
			groups = append([]string{digits[len(digits)-3:]}, groups...)
			digits = digits[:len(digits)-3]
		}
		return strings.Join(append([]string{digits}, groups...), ",")
	case size >= 100:
		return fmt.Sprintf("%.0f", v)
	case size >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
