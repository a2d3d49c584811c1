package sim

import (
	heapq "container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/replica"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// Options choose a run.
type Options struct {
	Seed      uint64
	Ops       int // guest operations at least; default 200
	Mutations Mutations
	Bias      *Bias             // nil: a random profile
	Scenario  *Scenario         // nil: random faults and requests
	Trace     func(line string) // nil: silent
}

// Mutations break one rule of one core, to prove that the simulator sees it.
type Mutations struct {
	Writer  writer.Mutations
	Replica replica.Mutations
	Disk    disk.Mutations
	// NoOwnCompare: transactions do not compare the revision of own [S8].
	NoOwnCompare bool
}

// Result is the outcome of a run.
type Result struct {
	Seed   uint64
	Err    error          // nil: the contract held
	Counts map[string]int // how often each fault and each interesting state came
	Ops    int
	Took   time.Duration // virtual
}

// The size of the simulated world.
const (
	storageNodes  = 3 // with disks, and the members of etcd
	maxNodes      = 5 // the rest have no disks
	extentCount   = 3
	segmentBytes  = 2 * repl.ExtentBytes
	volumeBytes   = extentCount * repl.ExtentBytes
	segmentCount  = (volumeBytes + segmentBytes - 1) / segmentBytes // the last one is not full
	volumeBlocks  = volumeBytes / repl.BlockBytes
	hotBlockCount = 40
)

// world is one run. Everything happens in one goroutine, in the order of
// (virtual time, sequence).
type world struct {
	opt   Options
	rng   *rand.Rand
	now   clock.Instant
	queue eventQueue
	seq   uint64

	cluster ids.ID
	vm      ids.ID
	volume  ids.ID
	etcd    *etcdModel
	nodes   []*node
	diskIdx []repl.DiskNode
	guards  []*guard // every guard that ever was; dead ones stay for their late messages
	guest   *guest
	oracle  *oracle
	hot     []int
	manager manager
	snaps   *snapshots
	net     network
	profile profile
	codec   *codec
	player  *player // while a scenario's script runs

	counts map[string]int
	// givenUp are blocks that a join gave up, and that were not written since.
	givenUp map[int]bool
	ops     int
	err     error
	calm    bool // faults have ended
}

// event is something that happens at a time.
type event struct {
	at  clock.Instant
	seq uint64
	do  func()
}

type eventQueue []event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *eventQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

// after lets f happen d from now.
func (w *world) after(d time.Duration, f func()) {
	w.seq++
	heapq.Push(&w.queue, event{w.now.Add(max(d, 0)), w.seq, f})
}

// run lets the world go on until cond holds, an error is found, or limit is
// reached; it reports whether cond held.
func (w *world) run(limit clock.Instant, cond func() bool) bool {
	for w.err == nil && len(w.queue) > 0 && w.queue[0].at <= limit {
		if cond() {
			return true
		}
		e := heapq.Pop(&w.queue).(event)
		w.now = e.at
		e.do()
	}
	return w.err == nil && cond()
}

func (w *world) failf(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("at %s: %s", time.Duration(w.now), fmt.Sprintf(format, args...))
		w.tracef("FAILED: %v", w.err)
	}
}

func (w *world) tracef(format string, args ...any) {
	if w.opt.Trace != nil {
		w.opt.Trace(fmt.Sprintf("%12s %s", time.Duration(w.now).Round(time.Microsecond), fmt.Sprintf(format, args...)))
	}
}

func (w *world) note(what string) { w.counts[what]++ }

// chance is true with probability p.
func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

// between draws a duration.
func (w *world) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)+1))
}

// newID draws an identity from the run's own randomness.
func (w *world) newID() ids.ID {
	var id ids.ID
	for i := range id {
		id[i] = byte(w.rng.Uint32())
	}
	id[0] |= 1 // never zero
	return id
}

// Run runs one seed.
func Run(opt Options) Result {
	if opt.Ops == 0 {
		opt.Ops = 200
	}
	w := newWorld(opt)
	if opt.Scenario != nil {
		w.play(opt.Scenario)
	} else if w.chaos(); w.err == nil {
		w.settle()
	}
	return Result{Seed: opt.Seed, Err: w.err, Counts: w.counts, Ops: w.ops, Took: time.Duration(w.now)}
}

func newWorld(opt Options) *world {
	w := &world{opt: opt, rng: rand.New(rand.NewPCG(opt.Seed, 0x526f73656175)), now: clock.Instant(time.Hour), counts: map[string]int{}, givenUp: map[int]bool{}, etcd: newEtcd(), codec: newCodec()}
	w.cluster, w.vm, w.volume = w.newID(), w.newID(), w.newID()
	w.oracle = newOracle(volumeBlocks)
	w.etcd.free = opt.Mutations.NoOwnCompare
	w.profile = drawProfile(w)
	w.net = newNetwork(w)
	for i := range storageNodes + w.profile.compute {
		w.nodes = append(w.nodes, newNode(w, i))
	}
	slices.SortFunc(w.diskIdx, func(a, b repl.DiskNode) int { return a.Disk.Compare(b.Disk) })
	w.createVolume()
	w.hot = drawHotBlocks(w)
	w.guest = newGuest(w)
	w.manager = newManager(w)
	w.snaps = newSnapshots(w)
	return w
}

// createVolume writes the records that the volume service writes.
func (w *world) createVolume() {
	seg := repl.Segments{}
	for _, n := range w.nodes {
		for _, d := range n.disks {
			seg.Disks = append(seg.Disks, d.id)
		}
	}
	for s := range segmentCount {
		row := []uint16{}
		for n := range storageNodes {
			row = append(row, uint16(n*w.profile.disks+(s+n)%w.profile.disks))
		}
		seg.Map = append(seg.Map, row)
	}
	w.etcd.rev++
	w.etcd.put(repl.Key{Kind: repl.KeyCfg, ID: w.volume}.Path(), repl.Cfg{SizeBytes: volumeBytes, Copies: 3, MinISR: 1, State: repl.VolumeLive, VM: w.vm})
	w.etcd.put(repl.Key{Kind: repl.KeySeg, ID: w.volume}.Path(), seg)
	w.etcd.put(repl.Key{Kind: repl.KeyOwn, ID: w.volume}.Path(), repl.Own{})
	w.etcd.put(repl.Key{Kind: repl.KeyPlacement, ID: w.vm}.Path(), repl.Placement{})
}

// isr returns the nodes of the in-sync set of a block's segment, as committed.
func (w *world) isr(block int) [][]int {
	r := w.etcd.records(w.vm, []ids.ID{w.volume}, w.diskIdx)
	return [][]int{w.isrNodes(&r.Volumes[0], block*repl.BlockBytes/segmentBytes)}
}

func (w *world) isrNodes(v *repl.VolumeRecord, segment int) []int {
	var out []int
	for _, d := range v.ISR(segment) {
		if n := w.nodeOfDisk(d); n != nil && !slices.Contains(out, n.index) {
			out = append(out, n.index)
		}
	}
	return out
}

// isrByBlock is isr for all blocks, reading the records once.
func (w *world) isrByBlock() func(block int) [][]int {
	r := w.etcd.records(w.vm, []ids.ID{w.volume}, w.diskIdx)
	var sets [][][]int
	for s := range len(r.Volumes[0].Seg.Map) {
		sets = append(sets, [][]int{w.isrNodes(&r.Volumes[0], s)})
	}
	return func(block int) [][]int { return sets[block*repl.BlockBytes/segmentBytes] }
}

func (w *world) nodeOfDisk(d ids.ID) *node {
	for _, n := range w.nodes {
		for _, sd := range n.disks {
			if sd.id == d {
				return n
			}
		}
	}
	return nil
}

func drawHotBlocks(w *world) []int {
	var out []int
	for len(out) < hotBlockCount {
		e := w.rng.IntN(extentCount) * repl.ExtentBlocks
		b := e + []int{0, 1, 2, repl.ExtentBlocks - 1, repl.ExtentBlocks - 2, w.rng.IntN(repl.ExtentBlocks)}[w.rng.IntN(6)]
		out = append(out, b)
	}
	return out
}
