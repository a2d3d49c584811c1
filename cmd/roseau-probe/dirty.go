package main

import (
	"encoding/binary"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/drill/probe"
)

// mostDirty is what fits into the smallest guest beside its kernel, in MiB.
const mostDirty = 40

const page = 4096

// handleDirty begins to rewrite ?mib=N MiB of memory over and over, ?rate=BYTES a
// second, or ends it with ?stop=1. GET /status has the rate.
func (g *guest) handleDirty(w http.ResponseWriter, r *http.Request) {
	stop := r.FormValue("stop") != ""
	mib, err := strconv.Atoi(r.FormValue("mib"))
	if !stop && (err != nil || mib < 1 || mib > mostDirty) {
		http.Error(w, "mib: want a number from 1 to "+strconv.Itoa(mostDirty), http.StatusBadRequest)
		return
	}
	rate, err := strconv.Atoi(r.FormValue("rate"))
	if !stop && (err != nil || rate < 1<<20) {
		http.Error(w, "rate: want bytes a second from 1048576", http.StatusBadRequest)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dirty != nil {
		close(g.dirty)
		g.dirty = nil
	}
	g.st.DirtyRate = 0
	if stop {
		return
	}
	// Not of Go's heap: it goes back to the kernel at once.
	mem, err := unix.Mmap(-1, 0, mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInsufficientStorage)
		return
	}
	g.dirty = make(chan struct{})
	go g.runDirty(mem, rate, g.dirty)
}

// pace finds how much work a page must be so that rate bytes are dirtied a second: by
// work and not by pauses, for a guest that is slowed down must dirty less. It
// looks for settleTime, then the work stays as it is.
type pace struct {
	rate  int
	times int // that a page is filled
	began time.Duration
	since time.Duration // of this window
	done  int           // bytes in this window
}

const (
	settleTime   = 2 * time.Second
	paceWindow   = 250 * time.Millisecond
	reportWindow = time.Second
)

// page notes one page at now, and returns the bytes a second of a window that has
// just ended, once the work is settled.
func (p *pace) page(now time.Duration) (rate int) {
	p.done += page
	took := now - p.since
	settled := p.since-p.began >= settleTime
	switch {
	case settled && took < reportWindow, took < paceWindow:
		return 0
	}
	got := int(float64(p.done) / took.Seconds())
	p.since, p.done = now, 0
	if settled {
		return got
	}
	p.times = max(1, p.times*got/p.rate)
	return 0
}

// runDirty writes every byte of mem, page after page. What it reads back must be
// what it wrote.
func (g *guest) runDirty(mem []byte, rate int, stop chan struct{}) {
	defer unix.Munmap(mem)
	now := uptime()
	work := pace{rate: rate, times: 1, began: now, since: now}
	for round := uint64(1); ; round++ {
		for at := 0; at < len(mem); at += page {
			select {
			case <-stop:
				return
			default:
			}
			p := mem[at:][:page]
			bad := uint64(0)
			if round > 1 && binary.LittleEndian.Uint64(p) != probe.FillFirst((round-1)<<32|uint64(at)) {
				bad = 1
			}
			for range work.times {
				probe.Fill(p, round<<32|uint64(at))
			}
			got := work.page(uptime())
			g.mu.Lock()
			g.st.MemoryBad += bad
			if got > 0 {
				g.st.DirtyRate = uint64(got)
			}
			g.mu.Unlock()
		}
	}
}
