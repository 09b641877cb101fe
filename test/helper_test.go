package test

import (
	"debug/elf"
	"os"
	"testing"
)

const initPath = "../helper/dist/init"

// The init of a run runs in any tree, with or without a libc, and does not make agent big.
func TestInitIsStaticAndSmall(t *testing.T) {
	info, err := os.Stat(initPath)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 6<<20 {
		t.Errorf("it has %d bytes", info.Size())
	}
	image, err := elf.Open(initPath)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	for _, segment := range image.Progs {
		if segment.Type == elf.PT_INTERP || segment.Type == elf.PT_DYNAMIC {
			t.Errorf("it has a segment %s", segment.Type)
		}
	}
}
