package main

import (
	"context"
	"fmt"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// roomy is how much of the memory we may have before garbage is collected
	// sooner than it usually is.
	roomy = 36 << 20 // bytes
	// tended is how often it is looked whether that is still enough.
	tended = time.Second
)

// tendMemory keeps what a run takes of the host small while it is not: the nearer to
// the limit, the sooner the collector runs. What is in use moves the limit up in time,
// since a collector that cannot stay below it would do nothing else.
func tendMemory(ctx context.Context) error {
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
	}
}
