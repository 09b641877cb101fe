package main

import (
	"runtime"
	"testing"
)

// The work has the processors that it needs, and no more.
func TestProcessorsNeeded(t *testing.T) {
	for _, test := range []struct {
		now  int
		used float64
		want int
	}{
		{8, 0, 1},
		{8, 0.01, 1},
		{1, 0.5, 1},
		{1, 0.79, 1},
		{1, 0.85, 2},
		{2, 1.05, 2},
		{2, 1.9, 4},
		{4, 3.9, 8},
		{8, 8, 8},
		{6, 5.9, 8},
		{8, 3, 4},
		{8, 0.5, 1},
	} {
		p := processors{now: test.now, most: 8}
		if got := p.needed(test.used); got != test.want {
			t.Errorf("%d that are used for %.2f: %d are needed, not %d", test.now, test.used, got, test.want)
		}
	}
}

func TestProcessorsAreTaken(t *testing.T) {
	all := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(all)
	p := allProcessors()
	for _, step := range []struct {
		used float64
		want int
	}{{0, 1}, {0.95, min(2, all)}, {0, 1}} {
		p.tend(step.used)
		if got := runtime.GOMAXPROCS(0); got != step.want {
			t.Errorf("after %.2f were used there are %d, not %d", step.used, got, step.want)
		}
	}
}
