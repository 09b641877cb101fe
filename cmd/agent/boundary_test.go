package main

import (
	"agentops/bpf"
	"os"
	"testing"
)

// The proof must fail where there is no redirect, and attach must have made it.
func TestAttachProvesTheRedirect(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	b, err := newBoundary([][2]uint16{{123, 123}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	}()
	if err := b.probe(); err == nil {
		t.Error("the proof holds without a redirect")
	}
	none := make(chan string)
	close(none)
	if err := b.attach(bpf.Layout{}, none); err != nil {
		t.Fatal(err)
	}
	if counts, err := b.redirect.Counts(); err != nil || counts != (bpf.Counts{}) {
		t.Errorf("the run's counts are %+v, %v before it began", counts, err)
	}
}
