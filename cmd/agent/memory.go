package main

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"agentops/runtime/pages"

	"golang.org/x/sys/unix"
)

const (
	// roomy is how much of the memory we may have before garbage is collected
	// sooner than it usually is.
	roomy = 36 << 20 // bytes
	// tended is how often it is looked whether that is still enough, and whether
	// there is something to do.
	tended = 200 * time.Millisecond
	// busy is how much of the processor's time between two looks is not nothing.
	busy = tended / 10
	// quiet is after how many looks with nothing to do memory is given back.
	quiet = 3
)

// tend keeps what a run takes of the host small while it is not: the nearer to
// the limit, the sooner the collector runs. What is in use moves the limit up in time,
// since a collector that cannot stay below it would do nothing else. Whenever there is
// nothing to do any more, what the start or the last requests have left is given back.
// Of the processors, it takes those that the work needs.
func tend(ctx context.Context) error {
	inUse := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/stacks:bytes"},
		{Name: "/memory/classes/metadata/mcache/inuse:bytes"},
		{Name: "/memory/classes/metadata/mspan/inuse:bytes"},
		{Name: "/memory/classes/metadata/other:bytes"},
		{Name: "/memory/classes/os-stacks:bytes"},
		{Name: "/memory/classes/other:bytes"},
	}
	ticker := time.NewTicker(tended)
	defer ticker.Stop()
	var program programPages // found when it is needed, not in a start
	processors := allProcessors()
	began, spent, idle := time.Now(), processorTime(), 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		metrics.Read(inUse)
		var sum uint64
		for _, sample := range inUse {
			if sample.Value.Kind() != metrics.KindUint64 {
				return fmt.Errorf("the runtime does not tell %s", sample.Name)
			}
			sum += sample.Value.Uint64()
		}
		debug.SetMemoryLimit(max(roomy, int64(sum+sum/5)))
		lastBegan, last := began, spent
		began, spent = time.Now(), processorTime()
		processors.tend(float64(spent-last) / float64(began.Sub(lastBegan)))
		if spent-last > busy {
			idle = 0
		} else if idle++; idle == quiet {
			pages.Small() // or what is given back would be filled again
			debug.FreeOSMemory()
			if program == nil {
				program = newProgramPages()
			}
			program.drop()
		}
	}
}

// processorTime is what this process has spent so far.
func processorTime() time.Duration {
	var usage unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &usage) // fails of no process
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// programPages are the parts of our program in memory that nobody can write.
type programPages []struct{ start, length uintptr }

// piece is the most that the kernel maps of a program for one page that is used.
const piece = 64 << 10 // bytes

// newProgramPages finds them, and has each page that is used later bring no more
// than its neighbours: the kernel maps what its cache has in one, which may be 2 MB, but
// within one mapping, and two of different advice are two. Without them, what is
// mapped stays.
func newProgramPages() programPages {
	program, err := elf.Open("/proc/self/exe")
	if err != nil {
		return nil
	}
	defer func() { _ = program.Close() }() // it was only read
	if program.Type != elf.ET_EXEC {
		return nil // it is not where its file says, and was written to for that
	}
	var pages programPages
	size := uint64(os.Getpagesize())
	for _, segment := range program.Progs {
		if segment.Type != elf.PT_LOAD || segment.Flags&elf.PF_W != 0 {
			continue
		}
		start, end := segment.Vaddr&^(size-1), (segment.Vaddr+segment.Memsz+size-1)&^(size-1)
		for at := start; at+piece < end; at += 2 * piece {
			advise(uintptr(at), piece, unix.MADV_DONTDUMP) // which none of it is anyway
		}
		pages = append(pages, struct{ start, length uintptr }{uintptr(start), uintptr(end - start)})
	}
	return pages
}

// drop unmaps them: of the program's 26 MB most are used in a start, and hardly any
// afterwards. Those that are used again are found in the page cache.
func (p programPages) drop() {
	for _, part := range p {
		advise(part.start, part.length, unix.MADV_DONTNEED)
	}
}

// advise tells the kernel what it may do; if it does not, nothing is lost.
func advise(start, length uintptr, advice int) {
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, start, length, uintptr(advice))
}
