package bpf

import (
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// The Go structs must be laid out as the C ones, or what they hold is misread.
func TestLayouts(t *testing.T) {
	redirect, err := loadRedirect()
	if err != nil {
		t.Fatal(err)
	}
	observe, err := loadObserve()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		spec *ebpf.CollectionSpec
		name string
		got  any
	}{
		{redirect, "refusal", redirectRefusal{}},
		{observe, "flow", observeFlow{}},
		{observe, "owner", observeOwner{}},
		{observe, "image", observeImage{}},
		{observe, "executable", observeExecutable{}},
		{observe, "layout", Layout{}},
	} {
		var want *btf.Struct
		if err := c.spec.Types.TypeByName(c.name, &want); err != nil {
			t.Fatal(err)
		}
		if got := binary.Size(c.got); got != int(want.Size) {
			t.Errorf("%s has %d bytes in Go, %d in C", c.name, got, want.Size)
		}
	}
	// The maps that both have are one.
	for _, name := range []string{observeMapCounts, observeMapDatagrams, observeMapRefusals} {
		a, b := redirect.Maps[name], observe.Maps[name]
		if a.KeySize != b.KeySize || a.ValueSize != b.ValueSize || a.MaxEntries != b.MaxEntries {
			t.Errorf("map %s: %v is not %v", name, a, b)
		}
	}
}

func TestMapNamesFitTheKernel(t *testing.T) {
	for _, load := range []func() (*ebpf.CollectionSpec, error){loadRedirect, loadObserve} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		for name := range spec.Maps {
			if len(name) > 15 {
				t.Errorf("map %s: the kernel cuts names at 15 characters", name)
			}
		}
	}
}
