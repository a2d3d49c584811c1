package sim

import (
	"math/rand/v2"
	"slices"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/replica"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// Options choose a run.
type Options struct {
	Seed      uint64
	Ops       int // guest operations at least, for each volume; default 200
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
	// KernelBootID: the boot identity is the kernel's, which lab nodes share [S23].
	KernelBootID bool
	// StoppedClock: the clock by which leases are kept stands still while a node is
	// suspended.
	StoppedClock bool
	// NoMaintenance, NoYield: no writer repairs an idle volume, or it goes on when a
	// VM is to start [S14].
	NoMaintenance, NoYield bool
	// NoJanitor: nobody frees copies that lie elsewhere now.
	NoJanitor bool
	// RollbackKeepsEpoch: a rollback is resolved under the epoch of the last writer.
	RollbackKeepsEpoch bool
	Machines           MachineMutations
	// Votes are the rules of the quorum core that are broken; see quorum.View.Broken.
	Votes []string
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

// world is one run of the block engine.
type world struct {
	timeline

	*tenant   // the first
	tenants   []*tenant
	tenantRng *rand.Rand // picks one for a fault; of one there is no choice

	cluster ids.ID
	etcd    *etcdModel
	nodes   []*node
	diskIdx []repl.DiskNode
	guards  []*guard // every guard that ever was; dead ones stay for their late messages
	snaps   *snapshots
	clones  *clones
	mover   *mover
	filler  *filler
	janitor *janitor
	net     network
	profile profile
	codec   *codec
	player  *player // while a scenario's script runs

	ops    int
	direct bool // guards read disks of their nodes by themselves
	calm   bool // faults have ended
}

// Run runs one seed.
func Run(opt Options) Result {
	if opt.Ops == 0 {
		opt.Ops = 200
	}
	if s := opt.Scenario; s != nil {
		switch s.World() {
		case "machines":
			return playMachines(opt)
		case "votes":
			return playVotes(opt)
		}
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
	w := &world{timeline: newTimeline(opt), etcd: newEtcd(), codec: newCodec(), tenantRng: rand.New(rand.NewPCG(opt.Seed, 0x736f6d65))}
	w.cluster = w.timeline.newID()
	w.tenant = newTenant(w)
	w.etcd.free = opt.Mutations.NoOwnCompare
	w.profile = drawProfile(w)
	w.clones = newClones(w)
	w.direct = opt.Scenario == nil && opt.Bias == nil && opt.Seed%2 == 0
	w.net = newNetwork(w)
	for i := range storageNodes + w.profile.compute {
		w.nodes = append(w.nodes, newNode(w, i))
	}
	slices.SortFunc(w.diskIdx, func(a, b repl.DiskNode) int { return a.Disk.Compare(b.Disk) })
	w.tenant.furnish()
	wanted := tenantsWanted(opt)
	w.opt.Ops *= wanted
	for len(w.tenants) < wanted {
		newTenant(w).furnish()
	}
	if len(w.tenants) > 1 {
		w.note("more_volumes")
	}
	w.snaps = newSnapshots(w)
	w.mover = newMover(w)
	w.filler = newFiller(w)
	w.drawClocks()
	w.janitor = newJanitor(w)
	return w
}

// createVolume writes the records that the volume service writes.
func (t *tenant) createVolume() {
	w := t.w
	seg := repl.Segments{}
	for _, n := range w.nodes {
		for _, d := range n.disks {
			seg.Disks = append(seg.Disks, d.id)
		}
	}
	for s := range segmentCount {
		row := []uint16{}
		for n := range storageNodes {
			row = append(row, uint16(n*w.profile.disks+(s+n+t.index/2)%w.profile.disks))
		}
		seg.Map = append(seg.Map, row)
	}
	w.etcd.rev++
	w.etcd.put(repl.Key{Kind: repl.KeyCfg, ID: t.volume}.Path(), repl.Cfg{SizeBytes: volumeBytes, Copies: 3, MinISR: max(1, w.profile.minISR), State: repl.VolumeLive, VM: t.vm})
	w.etcd.put(repl.Key{Kind: repl.KeySeg, ID: t.volume}.Path(), seg)
	w.etcd.put(repl.Key{Kind: repl.KeyOwn, ID: t.volume}.Path(), repl.Own{})
	w.etcd.put(repl.Key{Kind: repl.KeyPlacement, ID: t.vm}.Path(), repl.Placement{})
}

// isr returns the nodes of the in-sync set of a block's segment, as committed.
func (t *tenant) isr(block int) [][]int {
	r := t.w.etcd.records(t.vm, []ids.ID{t.volume}, t.w.diskIdx)
	return [][]int{t.isrNodes(&r.Volumes[0], block*repl.BlockBytes/segmentBytes)}
}

func (t *tenant) isrNodes(v *repl.VolumeRecord, segment int) []int {
	var out []int
	for _, d := range v.ISR(segment) {
		if n := t.w.nodeOfDisk(d); n != nil && !slices.Contains(out, n.index) {
			out = append(out, n.index)
		}
	}
	return out
}

// isrByBlock is isr for all blocks, reading the records once.
func (t *tenant) isrByBlock() func(block int) [][]int {
	r := t.w.etcd.records(t.vm, []ids.ID{t.volume}, t.w.diskIdx)
	var sets [][][]int
	for s := range len(r.Volumes[0].Seg.Map) {
		sets = append(sets, [][]int{t.isrNodes(&r.Volumes[0], s)})
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

func drawHotBlocks(t *tenant) []int {
	var out []int
	for len(out) < hotBlockCount {
		e := t.dice.IntN(extentCount) * repl.ExtentBlocks
		b := e + []int{0, 1, 2, repl.ExtentBlocks - 1, repl.ExtentBlocks - 2, t.dice.IntN(repl.ExtentBlocks)}[t.dice.IntN(6)]
		out = append(out, b)
	}
	return out
}
