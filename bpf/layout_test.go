package bpf

import (
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// The Go struct must be laid out as the C one, or refusals are misread.
func TestRefusalLayout(t *testing.T) {
	spec, err := loadRedirect()
	if err != nil {
		t.Fatal(err)
	}
	var c *btf.Struct
	if err := spec.Types.TypeByName("refusal", &c); err != nil {
		t.Fatal(err)
	}
	if got := binary.Size(redirectRefusal{}); got != int(c.Size) {
		t.Errorf("redirectRefusal has %d bytes, struct refusal %d", got, c.Size)
	}
}

func TestMapNamesFitTheKernel(t *testing.T) {
	spec, err := loadRedirect()
	if err != nil {
		t.Fatal(err)
	}
	for name := range spec.Maps {
		if len(name) > 15 {
			t.Errorf("map %s: the kernel cuts names at 15 characters", name)
		}
	}
}
