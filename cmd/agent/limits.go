package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"agentops/audit"
)

// parseLimits reads limits as they are written. An empty one is 0; any other must
// be more.
func parseLimits(s limitSettings) (l audit.Limits, err error) {
	if l.Memory, err = parseSize(s.Memory); err != nil {
		return l, fmt.Errorf("limit of memory: %w", err)
	}
	if s.CPUs != "" {
		if l.CPUs, err = strconv.ParseFloat(s.CPUs, 64); err != nil || !(l.CPUs > 0) || l.CPUs > math.MaxInt16 {
			return l, fmt.Errorf("limit of cpus: %q is no number of processors, such as 0.5", s.CPUs)
		}
	}
	if l.PIDs, err = parseCount(s.PIDs); err != nil {
		return l, fmt.Errorf("limit of pids: %w", err)
	}
	files, err := parseCount(s.OpenFiles)
	if err != nil {
		return l, fmt.Errorf("limit of open files: %w", err)
	}
	l.OpenFiles = uint64(files)
	return l, nil
}

func parseCount(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%q is no number above 0", text)
	}
	return n, nil
}

// parseSize reads a number of bytes: digits, and k, m, g or t for powers of 1024.
func parseSize(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	digits := strings.TrimRight(text, "kKmMgGtT")
	shift := 0
	if unit := text[len(digits):]; unit != "" {
		shift = 10 * (1 + strings.Index("kmgt", strings.ToLower(unit)))
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || len(text)-len(digits) > 1 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is no size, such as 512m or 2g", text)
	}
	return n << shift, nil
}
