package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/drill/probe"
)

const memoryWords = 1 << 20 // 8 MiB of pattern

// guest is the probe's state. mu guards st and recorders.
type guest struct {
	config probe.Config
	disk   *os.File

	mu        sync.Mutex
	st        probe.Status
	recorders map[net.Conn]struct{}
	load      chan struct{} // closed to stop the running load; nil when none runs
	loadOver  chan struct{} // closed when the last load has ended; nil: there was none
	dirty     chan struct{} // closed to stop the dirtying of memory; nil when none runs
	hold      bool          // the power button does nothing
}

func newGuest(c probe.Config, disk *os.File, boot string) *guest {
	return &guest{config: c, disk: disk, st: probe.Status{Name: c.Name, Boot: boot}, recorders: map[net.Conn]struct{}{}}
}

// serve starts the parts and serves HTTP until it fails.
func (g *guest) serve() error {
	go g.tick()
	go g.exerciseMemory()
	go g.obeyButton()
	acks, err := net.Listen("tcp4", fmt.Sprintf(":%d", probe.AckPort))
	if err != nil {
		return err
	}
	go g.acceptRecorders(acks)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "roseau probe %s, boot %s, up %s\n", g.config.Name, g.st.Boot, uptime())
	})
	mux.HandleFunc("GET /status", g.handleStatus)
	mux.HandleFunc("POST /reset", g.handleReset)
	mux.HandleFunc("POST /load", g.handleLoad)
	mux.HandleFunc("POST /fill", g.handleFill)
	mux.HandleFunc("POST /dirty", g.handleDirty)
	mux.HandleFunc("GET /log", g.handleLog)
	mux.HandleFunc("POST /forge", g.handleForge)
	mux.HandleFunc("POST /button", g.handleButton)
	if err := startDatabase(mux); err != nil {
		return err
	}
	return http.ListenAndServe(fmt.Sprintf(":%d", probe.HTTPPort), mux)
}

// tick records the longest step between two ticks of 2 ms: the guest's own view
// of how long it stood still.
func (g *guest) tick() {
	last := uptime()
	for {
		time.Sleep(2 * time.Millisecond)
		now := uptime()
		g.mu.Lock()
		g.st.GuestGap = max(g.st.GuestGap, now-last)
		g.mu.Unlock()
		last = now
	}
}

// exerciseMemory keeps writing and checking a pattern, so that a migration that
// loses a page is seen.
func (g *guest) exerciseMemory() {
	words := make([]uint64, memoryWords)
	var round uint64
	for {
		var bad uint64
		for i := range words {
			if round > 0 && words[i] != round*0x9e3779b97f4a7c15+uint64(i) {
				bad++
			}
			words[i] = (round+1)*0x9e3779b97f4a7c15 + uint64(i)
			if i%(memoryWords/64) == 0 {
				time.Sleep(5 * time.Millisecond)
			}
		}
		round++
		g.mu.Lock()
		g.st.MemoryRound, g.st.MemoryBad = round, g.st.MemoryBad+bad
		g.mu.Unlock()
	}
}

func (g *guest) acceptRecorders(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Println("roseau-probe: accept:", err)
			return
		}
		g.mu.Lock()
		g.recorders[c] = struct{}{}
		g.mu.Unlock()
	}
}

// acknowledge tells every recorder that write seq is on disk for good.
func (g *guest) acknowledge(seq uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.recorders {
		c.SetWriteDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Write([]byte(probe.Ack(seq))); err != nil {
			c.Close()
			delete(g.recorders, c)
		}
	}
}

func (g *guest) handleStatus(w http.ResponseWriter, _ *http.Request) {
	g.mu.Lock()
	st := g.st
	g.mu.Unlock()
	st.Uptime = uptime()
	json.NewEncoder(w).Encode(st)
}

func (g *guest) handleReset(w http.ResponseWriter, _ *http.Request) {
	g.mu.Lock()
	g.st.GuestGap, g.st.LongestIO = 0, 0
	g.mu.Unlock()
}

// handleLoad starts the write load at ?from=SEQ with ?pause_us between writes,
// or stops it with ?stop=1. Starting a running load restarts it.
func (g *guest) handleLoad(w http.ResponseWriter, r *http.Request) {
	from, _ := strconv.ParseUint(r.FormValue("from"), 10, 64)
	pause, _ := strconv.Atoi(r.FormValue("pause_us"))
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.load != nil {
		close(g.load)
		g.load, g.st.Load = nil, false
	}
	if r.FormValue("stop") != "" {
		return
	}
	g.load, g.st.Load = make(chan struct{}), true
	before, over := g.loadOver, make(chan struct{})
	g.loadOver = over
	go func(stop chan struct{}) {
		defer close(over)
		if before != nil {
			<-before // its write may be under way
		}
		seq, err := g.firstSeq(max(from, 1))
		if err != nil {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.st.IOErrors, g.st.LastError, g.st.Load = g.st.IOErrors+1, fmt.Sprintf("read the log region: %v", err), false
			return
		}
		g.runLoad(stop, seq, time.Duration(pause)*time.Microsecond)
	}(g.load)
}

// firstSeq is where a load begins: at from, but for the first one of a boot above
// every number on the disk. A guest of before may have written what nobody heard
// of; whoever writes such a number from now on is not this guest.
func (g *guest) firstSeq(from uint64) (uint64, error) {
	g.mu.Lock()
	began := g.st.First > 0
	g.mu.Unlock()
	if began {
		return from, nil
	}
	err := g.eachSlot(func(_ uint32, b []byte, err error) error {
		if err == nil {
			from = max(from, probe.PeekSeq(b, g.config.Seed)+1)
		}
		return err
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.st.First = from
	return from, err
}

// runLoad writes block after block, each with a flush of its own, and
// acknowledges what is flushed. An I/O error ends it: a guest's disk must not
// give any.
func (g *guest) runLoad(stop chan struct{}, seq uint64, pause time.Duration) {
	buf := alignedBuffer(probe.BlockBytes)
	boot, _ := strconv.ParseUint(g.st.Boot, 16, 64) // set once, of 16 digits
	for ; ; seq++ {
		select {
		case <-stop:
			return
		default:
		}
		slot := probe.Slot(seq)
		probe.EncodeBlock(buf, g.config.Seed, seq, slot, boot)
		g.mu.Lock()
		g.st.Seq = seq
		g.mu.Unlock()
		begin := uptime()
		_, err := g.disk.WriteAt(buf, probe.LogOffset+int64(slot)*probe.BlockBytes)
		if err == nil {
			err = unix.Fdatasync(int(g.disk.Fd()))
		}
		took := uptime() - begin
		g.mu.Lock()
		g.st.LongestIO = max(g.st.LongestIO, took)
		if err != nil {
			g.st.IOErrors++
			g.st.LastError = fmt.Sprintf("write %d: %v", seq, err)
			g.st.Load = false
			g.mu.Unlock()
			return
		}
		g.st.Flushed = seq
		g.mu.Unlock()
		g.acknowledge(seq)
		if pause > 0 {
			time.Sleep(pause)
		}
	}
}

// handleFill writes ?chunks=N of random data, or verifies them with ?verify=1,
// in the background; GET /status shows the progress.
func (g *guest) handleFill(w http.ResponseWriter, r *http.Request) {
	chunks, err := strconv.Atoi(r.FormValue("chunks"))
	if err != nil || chunks < 1 {
		http.Error(w, "chunks: want a number from 1", http.StatusBadRequest)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.st.FillRunning {
		http.Error(w, "a fill is running", http.StatusConflict)
		return
	}
	g.st.FillRunning, g.st.FillDone, g.st.FillTotal, g.st.FillBad = true, 0, chunks, 0
	go g.runFill(chunks, r.FormValue("verify") != "")
}

func (g *guest) runFill(chunks int, verify bool) {
	buf, want := alignedBuffer(probe.FillChunkBytes), make([]byte, probe.FillChunkBytes)
	for n := range chunks {
		at := int64(probe.FillOffset) + int64(n)*probe.FillChunkBytes
		var err error
		bad := 0
		if verify {
			_, err = g.disk.ReadAt(buf, at)
			probe.FillChunk(want, g.config.Seed, n)
			if string(buf) != string(want) {
				bad = 1
			}
		} else {
			probe.FillChunk(buf, g.config.Seed, n)
			_, err = g.disk.WriteAt(buf, at)
		}
		g.mu.Lock()
		g.st.FillDone, g.st.FillBad = n+1, g.st.FillBad+bad
		if err != nil {
			g.st.IOErrors++
			g.st.LastError = fmt.Sprintf("fill chunk %d: %v", n, err)
		}
		g.mu.Unlock()
	}
	err := unix.Fdatasync(int(g.disk.Fd()))
	g.mu.Lock()
	if err != nil {
		g.st.IOErrors++
		g.st.LastError = fmt.Sprintf("flush after fill: %v", err)
	}
	g.st.FillRunning = false
	g.mu.Unlock()
}

// handleForge writes the block of number ?seq as another guest would: whoever
// compares the log with this guest must see it.
func (g *guest) handleForge(w http.ResponseWriter, r *http.Request) {
	seq, err := strconv.ParseUint(r.FormValue("seq"), 10, 64)
	if err != nil || seq == 0 {
		http.Error(w, "seq: want a number from 1", http.StatusBadRequest)
		return
	}
	buf := alignedBuffer(probe.BlockBytes)
	probe.EncodeBlock(buf, g.config.Seed, seq, probe.Slot(seq), ^uint64(0))
	if _, err := g.disk.WriteAt(buf, probe.LogOffset+int64(probe.Slot(seq))*probe.BlockBytes); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// handleLog reads the whole log region from the disk and answers one line a
// slot that was ever written: "slot seq boot" or "slot error text".
func (g *guest) handleLog(w http.ResponseWriter, _ *http.Request) {
	out := bufio.NewWriter(w)
	defer out.Flush()
	g.eachSlot(func(slot uint32, b []byte, err error) error {
		if err != nil {
			fmt.Fprintf(out, "%d error read: %v\n", slot, err)
			return nil
		}
		seq, boot, err := probe.DecodeBlock(b, g.config.Seed, slot)
		switch {
		case err != nil:
			fmt.Fprintf(out, "%d error %v (first bytes %x)\n", slot, err, binary.BigEndian.Uint64(b))
		case seq > 0:
			fmt.Fprintf(out, "%d %d %016x\n", slot, seq, boot)
		}
		return nil
	})
	fmt.Fprintln(out, "end")
}

// eachSlot reads the log region and calls see for each slot, or once with an error
// for slots that cannot be read, until it returns one.
func (g *guest) eachSlot(see func(slot uint32, b []byte, err error) error) error {
	const run = 64
	buf := alignedBuffer(run * probe.BlockBytes)
	for first := uint32(0); first < probe.LogBlocks; first += run {
		if _, err := g.disk.ReadAt(buf, probe.LogOffset+int64(first)*probe.BlockBytes); err != nil {
			if err := see(first, nil, err); err != nil {
				return err
			}
			continue
		}
		for i := range uint32(run) {
			if err := see(first+i, buf[i*probe.BlockBytes:][:probe.BlockBytes], nil); err != nil {
				return err
			}
		}
	}
	return nil
}
