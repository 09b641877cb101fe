package pages

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// The heap has large pages until it is to be small.
func TestHeap(t *testing.T) {
	if flags := flagsOfHeap(t); !slices.Contains(flags, "hg") {
		t.Errorf("the heap's flags are %v, want hg (huge page advised) among them", flags)
	}
	Small()
	if flags := flagsOfHeap(t); !slices.Contains(flags, "nh") || slices.Contains(flags, "hg") {
		t.Errorf("the heap's flags are %v then, want nh (no huge page advised)", flags)
	}
}

// flagsOfHeap are what the kernel notes of the mapping that holds a variable.
func flagsOfHeap(t *testing.T) []string {
	t.Helper()
	at := uintptr(unsafe.Pointer(new([64]*int)))
	file, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines, inside := bufio.NewScanner(file), false
	for lines.Scan() {
		var start, end uintptr
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x ", &start, &end); n == 2 {
			inside = start <= at && at < end
		}
		if flags, ok := strings.CutPrefix(lines.Text(), "VmFlags:"); ok && inside {
			return strings.Fields(flags)
		}
	}
	t.Fatalf("no mapping holds %x", at)
	return nil
}
