package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestTargets(t *testing.T) {
	ours, other := newSeries("ours", []float64{90, 100, 130}), newSeries("other", []float64{40, 50, 60})
	if ours.Median != 100 || ours.Spread != 10 {
		t.Errorf("median %v, spread %v", ours.Median, ours.Spread)
	}
	for _, c := range []struct {
		target Target
		met    bool
	}{
		{ratioOfAtLeast(2), true}, {ratioOfAtLeast(2.1), false},
		{ratioOfAtMost(2), true}, {ratioOfAtMost(1.9), false},
		{valueOfAtMost(100), true}, {valueOfAtMost(99), false},
		{addedOfAtMost(50), true}, {addedOfAtMost(49), false},
	} {
		f := Figure{Unit: "ms", Ours: ours, Other: &other, Target: c.target}
		if f.Met() != c.met || strings.HasPrefix(f.row()[7], "yes") != c.met {
			t.Errorf("%+v: met %v, row %q", c.target, f.Met(), f.row())
		}
	}
}

// Nobody is always behind the same neighbour, and who fails is named.
func TestContendersTakeTurns(t *testing.T) {
	var order []string
	turn := func(name string, err error) contender {
		return single(name, func() (float64, error) { order = append(order, name); return 1, err })
	}
	if _, err := alternate(3, turn("a", nil), turn("b", nil)); err != nil || !slices.Equal(order, []string{"a", "b", "b", "a", "a", "b"}) {
		t.Errorf("%v, %q", err, order)
	}
	if _, err := alternate(1, turn("a", nil), turn("b", errors.New("broke"))); err == nil || err.Error() != "b: broke" {
		t.Errorf("it says %v", err)
	}
}

// What was not answered, or not with 200, is no speed.
func TestWrkThatFailedHasNoValue(t *testing.T) {
	const good = "Requests/sec:  12345.67\nTransfer/sec:     1.00MB\n"
	if v, err := readWrk(good); v != 12345.67 || err != nil {
		t.Errorf("%v, %v", v, err)
	}
	for _, bad := range []string{"", "Requests/sec:      0.00\n", good + "  Non-2xx or 3xx responses: 3\n", good + "  Socket errors: connect 0, read 1, write 0, timeout 0\n"} {
		if v, err := readWrk(bad); err == nil {
			t.Errorf("%q is %v", bad, v)
		}
	}
}
