package mitm

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// gathered is how much of a fast flow is waited for at once: who is woken for every
	// piece of what comes has no time for the rest.
	gathered = 512 << 10 // bytes
	// sample is of how much the time is taken.
	sample = 4 << 20 // bytes
)

// gather has a socket wait for much at once while much comes: the kernel reports it
// readable when there are gathered bytes, or the end. It does so no longer once they are
// too long in coming, so that nothing that is sent is held up for more than that.
type gather struct {
	socket *socket
	limits *limits
	moved  int // since began
	began  time.Time
	timer  *time.Timer // ends it, while a read waits; nil: it was never on

	mu sync.Mutex
	on bool
}

// wait is called before each read.
func (g *gather) wait() {
	if g.moved == 0 {
		g.began = time.Now()
	} else if g.moved >= sample {
		g.moved = 0
		if time.Since(g.began) < g.limits.fast {
			g.set(true)
		}
	}
	if g.timer != nil {
		g.timer.Reset(g.limits.patience)
	}
}

// took is told what the read has brought.
func (g *gather) took(n int) {
	g.moved += n
	g.stop()
}

func (g *gather) stop() {
	if g.timer != nil {
		g.timer.Stop()
	}
}

// set turns it on or off. The kernel reports what there is when less will do.
func (g *gather) set(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.on == on {
		return
	}
	enough := 1
	if on {
		enough = gathered
		if g.timer == nil {
			g.timer = time.AfterFunc(g.limits.patience, func() { g.set(false) })
		}
	}
	err := g.socket.raw.Control(func(fd uintptr) {
		g.on = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, enough) == nil && on
	})
	if err != nil {
		g.on = false // it was closed
	}
}
