package main

import (
	"math"
	"runtime"
)

// full is how much of its processors' time the work takes when it needs more of them.
const full = 0.8

// processors is how many of the host's do the work of a run. With more than it needs, it
// is handed over between threads, each of which has to be woken.
type processors struct{ now, most int }

// allProcessors are those that the program has started with.
func allProcessors() processors {
	n := runtime.GOMAXPROCS(0)
	return processors{n, n}
}

// tend takes as many as are needed by what has taken the time of used ones.
func (p *processors) tend(used float64) {
	if n := p.needed(used); n != p.now {
		p.now = n
		runtime.GOMAXPROCS(n)
	}
}

// needed is twice as many when all are busy, for nothing tells what more would be done.
func (p *processors) needed(used float64) int {
	n := int(math.Ceil(used / full))
	if n > p.now {
		n = 2 * p.now
	}
	return min(max(n, 1), p.most)
}
