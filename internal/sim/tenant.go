package sim

import (
	"math/rand/v2"
	"slices"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// tenant is a volume with the VM that uses it, its manager, and what the oracle
// knows of it. All tenants of a world share its disks, storage processes and etcd.
// The first draws from the world's randomness, each other one from its own.
type tenant struct {
	w       *world
	index   int // 0 is the first
	dice    *rand.Rand
	vm      ids.ID
	volume  ids.ID
	guest   *guest
	oracle  *oracle
	hot     []int
	manager manager
	last    [maxNodes]lastKnown
	seen    seenRecord

	// givenUp are blocks that a join gave up, and that were not written since.
	givenUp map[int]bool
	// lostIn are (object, block) that a join gave up: what is written later goes into
	// a newer object, and the older one has it as lost for whoever copies it.
	lostIn map[[2]int]bool
	// tainted are nodes whose copies may lack what a lying cache lost; wasISR is the
	// in-sync set of each segment when it was last looked at. See lostByLie.
	tainted map[int]bool
	wasISR  [segmentCount][]ids.ID

	deleteAt int    // after so many operations the VM is deleted with its volume; 0: it stays
	deleted  bool   // its records are gone, and a tomb says so
	steady   ids.ID // guard that a script wants to serve all the time
	waits    bool   // every copy of something is on dead or rotten disks: nothing more is asked of it
}

// lastKnown is what the last guard on a node left of the records.
type lastKnown struct {
	own     repl.Own
	records repl.Records
}

// seenRecord is a record that was read, and what it was read from.
type seenRecord struct {
	stamp  [3]*byte
	record repl.VolumeRecord
}

// tenantValues parts the values that the guests write: what one volume holds is
// legal in no other. Those of a clone's parent begin above.
const tenantValues = 1 << 32

func newTenant(w *world) *tenant {
	t := &tenant{w: w, index: len(w.tenants), dice: w.rng, givenUp: map[int]bool{}, lostIn: map[[2]int]bool{}, tainted: map[int]bool{}}
	if t.index > 0 {
		t.dice = rand.New(rand.NewPCG(w.opt.Seed, 0x74656e616e74+uint64(t.index)))
	}
	w.tenants = append(w.tenants, t)
	t.vm, t.volume = t.drawID(), t.drawID()
	t.oracle = newOracle(volumeBlocks)
	t.oracle.mayBeStale = func() bool { return len(t.tainted) > 0 }
	return t
}

// furnish gives a tenant its records, its guest and its manager.
func (t *tenant) furnish() {
	t.createVolume()
	t.hot = drawHotBlocks(t)
	t.guest = newGuest(t)
	t.guest.nextID = uint64(t.index) * tenantValues
	t.manager = manager{t: t, w: t.w}
	if w := t.w; t.index > 0 && w.opt.Scenario == nil && t.dice.IntN(4) == 0 {
		t.deleteAt = 1 + t.dice.IntN(w.opt.Ops)
	}
}

// tenantsWanted is how many volumes a seed has: two in a third of the seeds, three in
// one of twelve. A script says so by its first word.
func tenantsWanted(opt Options) int {
	if s := opt.Scenario; s != nil {
		if slices.ContainsFunc(s.script, func(l scriptLine) bool { return l.words[0] == "two-volumes" }) {
			return 2
		}
		return 1
	}
	if opt.Bias != nil {
		return 1 // the seeds that biases were made for stay what they were
	}
	switch x := rand.New(rand.NewPCG(opt.Seed, 0x766f6c756d6573)).IntN(12); {
	case x == 0:
		return 3
	case x < 5:
		return 2
	}
	return 1
}

func (t *tenant) drawID() ids.ID { return drawID(t.dice) }

// pause draws a duration.
func (t *tenant) pause(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(t.dice.Int64N(int64(hi-lo)+1))
}

func (t *tenant) tell(format string, args ...any) {
	if t.index > 0 {
		format = "vol%d " + format
		args = append([]any{t.index + 1}, args...)
	}
	t.w.tracef(format, args...)
}

// record is the volume's records as the store has them.
func (t *tenant) record() repl.VolumeRecord {
	return t.w.etcd.records(t.vm, idsOf(t.volume), t.w.diskIdx).Volumes[0]
}

// look is record for what asks after every event and changes nothing of it.
func (t *tenant) look() *repl.VolumeRecord {
	if stamp := t.w.etcd.stamp(t.volume); t.seen.stamp != stamp {
		t.seen = seenRecord{stamp, t.record()}
	}
	return &t.seen.record
}

// living are the tenants whose volumes exist.
func (w *world) living() []*tenant {
	return slices.DeleteFunc(slices.Clone(w.tenants), func(t *tenant) bool { return t.deleted })
}

// all reports whether every volume fulfils a condition, but those of which nothing
// more is asked.
func (w *world) all(cond func(t *tenant) bool) bool {
	return !slices.ContainsFunc(w.tenants, func(t *tenant) bool { return !t.deleted && !t.waits && !cond(t) })
}

// some picks a tenant for a fault.
func (w *world) some() *tenant {
	if list := w.living(); len(list) > 1 {
		return list[w.tenantRng.IntN(len(list))]
	}
	return w.tenant
}

// tenantOf finds the owner of a volume, or nil.
func (w *world) tenantOf(volume ids.ID) *tenant {
	for _, t := range w.tenants {
		if t.volume == volume {
			return t
		}
	}
	return nil
}

// first: snapshots and a clone's parent are the first volume's alone.
func (t *tenant) first() bool { return t.index == 0 }

// snapshots are the numbers of those that exist.
func (t *tenant) snapshots() []uint32 {
	if !t.first() {
		return nil
	}
	return t.w.snaps.numbers()
}
