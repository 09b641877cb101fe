package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What is dropped of the program is not mapped, and comes back as it was when it is
// used, by which no more than that comes.
func TestProgramPages(t *testing.T) {
	pages := newProgramPages()
	for _, part := range pages {
		advise(part.start, part.length, unix.MADV_POPULATE_READ)
	}
	content := pages.content(t)
	before := mappedOfProgram(t)
	pages.drop()
	after := mappedOfProgram(t)
	t.Logf("%d KiB were mapped, %d are", before, after)
	if before < 4<<10 || after > before/3 {
		t.Errorf("of %d KiB of the program %d are still mapped", before, after)
	}
	if pages.content(t) != content {
		t.Error("the program is another one")
	}
}

// content is the sum of what they hold.
func (p programPages) content(t *testing.T) (sum [sha256.Size]byte) {
	t.Helper()
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	hash := sha256.New()
	for _, part := range p {
		content := make([]byte, part.length)
		if _, err := memory.ReadAt(content, int64(part.start)); err != nil {
			t.Fatal(err)
		}
		hash.Write(content)
	}
	hash.Sum(sum[:0])
	return sum
}

// mappedOfProgram is how many KiB of this program are mapped and cannot be written.
func mappedOfProgram(t *testing.T) (sum int) {
	t.Helper()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	ours := false
	for lines := bufio.NewScanner(bytes.NewReader(smaps)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case !strings.HasSuffix(fields[0], ":"):
			ours = fields[1][1] != 'w' && fields[len(fields)-1] == program
		case ours && fields[0] == "Rss:":
			kib, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			sum += kib
		}
	}
	return sum
}
