package main

import "testing"

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"": 0, "1": 1, "4096": 4096, "32k": 32 << 10, "512m": 512 << 20, "2G": 2 << 30, "1t": 1 << 40} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"0", "-1", "m", "1mm", "1mb", "1.5g", " 1", "1 m", "0x10", "9223372036854775807k", "10000000000t", "1e3"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}
