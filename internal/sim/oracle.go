package sim

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// value names the content of a block: 0 is zeros, everything else the number of
// the write that made it.
type value uint64

// oracle knows, for each block of a volume, the set of values that may legally
// be read. Writes and losses widen it, acknowledgements and reads narrow it
// (a read that returned a value makes it the only one: reads are stable).
type oracle struct {
	blocks  []blockState
	writes  map[uint64]*pendingWrite // issued, not answered
	reads   map[uint64]*pendingRead
	flush   map[uint64][]floorMark
	touched func(block int, v value) // nil: nobody else wants to know
	// mayBeStale: a copy that a lying cache robbed may be read. Any value that a block
	// ever had is legal then, and proves nothing.
	mayBeStale func() bool
	history    *history
	seq        uint64 // writes issued so far
	alive      bool   // a guest runs that remembers what was acknowledged: it never sees a loss [S6]
}

type blockState struct {
	now   []value   // values that the block may hold, apart from pending writes
	floor []value   // values that it may hold if everything unflushed is lost
	ever  []value   // values that it may have held at any time
	since []written // values written since floor, acknowledged or not
	at    uint64    // up to which write the floor goes
	// lossy: nodes that lost power since the newest unflushed write was
	// acknowledged. See losePower.
	lostOn map[int]bool
	lost   bool   // what is unflushed may be gone once the guest that knows it is
	seen   uint64 // bumps at each change, to tell whether a read was alone
}

// written is a value and when it was issued: the oracle's count of writes then.
type written struct {
	v   value
	seq uint64
}

type pendingWrite struct {
	first, count int
	values       []value
	fua          bool
	lostOn       map[int]bool // nodes that lost power since it was issued
	raced        []bool       // another write to the block was acknowledged meanwhile: the order is open
}

type pendingRead struct {
	first, count int
	allowed      [][]value // grows while the read is under way
	alone        []bool    // nothing happened to the block meanwhile
}

type floorMark struct {
	block int
	now   []value
	seq   uint64 // the newest write that was issued before the flush
	// pending were not answered then: the flush does not cover them, though they may
	// be answered, and overwritten, before it is.
	pending []value
}

func newOracle(blockCount int) *oracle {
	o := &oracle{blocks: make([]blockState, blockCount), writes: map[uint64]*pendingWrite{}, reads: map[uint64]*pendingRead{}, flush: map[uint64][]floorMark{}, history: newHistory()}
	for i := range o.blocks {
		o.blocks[i] = blockState{now: []value{0}, floor: []value{0}, ever: []value{0}, lostOn: map[int]bool{}}
	}
	return o
}

func add(set []value, v value) []value {
	if slices.Contains(set, v) {
		return set
	}
	return append(slices.Clip(set), v)
}

// touch tells the reads under way that block b may now also hold v.
func (o *oracle) touch(b int, v value) {
	o.blocks[b].seen++
	if o.touched != nil {
		o.touched(b, v)
	}
	for _, id := range sortedKeys(o.reads) {
		r := o.reads[id]
		if b >= r.first && b < r.first+r.count {
			r.allowed[b-r.first] = add(r.allowed[b-r.first], v)
			r.alone[b-r.first] = false
		}
	}
}

// issueWrite notes a write of values to consecutive blocks.
func (o *oracle) issueWrite(id uint64, first int, values []value, fua bool) {
	o.writes[id] = &pendingWrite{first: first, count: len(values), values: values, fua: fua, lostOn: map[int]bool{}, raced: make([]bool, len(values))}
	o.seq++
	o.history.begin(id)
	for i, v := range values {
		b := &o.blocks[first+i]
		b.since = append(b.since, written{v, o.seq})
		b.ever = add(b.ever, v)
		o.touch(first+i, v)
	}
}

// ackWrite: the write is acknowledged; it is what its blocks hold. If another
// write to a block was acknowledged while this one was under way, either may
// have come last: a request that spans extents is answered when its last part is.
func (o *oracle) ackWrite(id uint64) {
	w := o.writes[id]
	delete(o.writes, id)
	o.history.wrote(id, w.first, w.values, regWrite, w.fua)
	for i, v := range w.values {
		b := &o.blocks[w.first+i]
		for _, other := range sortedKeys(o.writes) {
			if p := o.writes[other]; w.first+i >= p.first && w.first+i < p.first+p.count {
				p.raced[w.first+i-p.first] = true
			}
		}
		if w.raced[i] {
			b.now = add(b.now, v)
		} else {
			b.now = []value{v}
		}
		b.lostOn, b.lost = maps.Clone(w.lostOn), false
		b.seen++
		if w.fua {
			b.floor, b.at = slices.Clone(b.now), o.seq
			b.since = o.still(nil, o.pendingOn(w.first+i))
		}
	}
}

// pendingOn returns the values of unanswered writes to the block.
func (o *oracle) pendingOn(block int) []value {
	var out []value
	for _, id := range sortedKeys(o.writes) {
		if w := o.writes[id]; block >= w.first && block < w.first+w.count {
			out = append(out, w.values[block-w.first])
		}
	}
	return out
}

// forgetWrites: the guest is gone (or the writes failed); each unanswered write
// may or may not be there from now on.
func (o *oracle) forgetWrites(ids []uint64) {
	for _, id := range ids {
		w := o.writes[id]
		if w == nil {
			continue
		}
		delete(o.writes, id)
		o.history.wrote(id, w.first, w.values, regMaybe, false)
		for i, v := range w.values {
			o.blocks[w.first+i].now = add(o.blocks[w.first+i].now, v)
			o.touch(w.first+i, v)
		}
	}
}

// issueFlush notes what an acknowledgement of the flush will cover.
func (o *oracle) issueFlush(id uint64) {
	o.history.begin(id)
	marks := []floorMark{}
	for i := range o.blocks {
		if b := &o.blocks[i]; len(b.since) > 0 {
			marks = append(marks, floorMark{i, slices.Clone(b.now), o.seq, o.pendingOn(i)})
		}
	}
	o.flush[id] = marks
}

// ackFlush: everything acknowledged before the flush was issued is durable.
func (o *oracle) ackFlush(id uint64) {
	o.history.flushed(id)
	for _, m := range o.flush[id] {
		b := &o.blocks[m.block]
		if m.seq < b.at {
			continue // a FUA write or another flush already went further
		}
		rest := slices.DeleteFunc(slices.Clone(b.since), func(x written) bool { return x.seq <= m.seq })
		rest = o.still(rest, append(slices.Clone(m.pending), o.pendingOn(m.block)...))
		rest = o.still(rest, slices.DeleteFunc(slices.Clone(b.now), func(v value) bool { return slices.Contains(m.now, v) }))
		b.floor, b.since, b.at = m.now, rest, m.seq
	}
	delete(o.flush, id)
}

// still adds values that are not covered by a floor to those written since, as if
// they were issued now.
func (o *oracle) still(list []written, more []value) []written {
	for _, v := range more {
		if !slices.ContainsFunc(list, func(x written) bool { return x.v == v }) {
			list = append(list, written{v, o.seq})
		}
	}
	return list
}

// forgetFlush drops a flush that was never answered.
func (o *oracle) forgetFlush(id uint64) { delete(o.flush, id) }

// losePower notes that node lost power. isr lists the nodes of the in-sync set
// of the block's segment as the store has it, of every set that it may be. When
// each of them has lost power since a write, what was not flushed may be gone.
func (o *oracle) losePower(node int, isr func(block int) [][]int) {
	o.lose(node, isr, func(int) bool { return true })
}

// lose is losePower for some blocks: those that a disk of the node held, if it
// is the disk that is gone.
func (o *oracle) lose(node int, isr func(block int) [][]int, held func(block int) bool) {
	for _, w := range o.writes {
		if held(w.first) {
			w.lostOn[node] = true
		}
	}
	for i := range o.blocks {
		if !held(i) {
			continue
		}
		b := &o.blocks[i]
		b.lostOn[node] = true
		for _, set := range isr(i) {
			all := len(set) > 0
			for _, n := range set {
				all = all && b.lostOn[n]
			}
			if all {
				b.lost = true
				break
			}
		}
	}
	if !o.alive {
		o.showLosses()
	}
}

// guestDied: what was lost while the guest lived may show now.
func (o *oracle) guestDied() {
	o.alive = false
	o.showLosses()
}

func (o *oracle) showLosses() {
	for i := range o.blocks {
		b := &o.blocks[i]
		if !b.lost {
			continue
		}
		b.lost = false
		o.history.at(i, regInput{kind: regLose})
		b.now = slices.Clone(b.floor)
		for _, x := range b.since {
			b.now = add(b.now, x.v)
		}
		for _, v := range b.now {
			o.touch(i, v)
		}
	}
}

// accept: an operator let a takeover go on with copies whose logs nobody could
// judge. What is above the last flush may be gone; if a log has rotted, anything
// since it was written, because its disk cannot tell what it lost.
func (o *oracle) accept(rotten bool) {
	for i := range o.blocks {
		b := &o.blocks[i]
		old := slices.Clone(b.floor)
		for _, x := range b.since {
			old = append(old, x.v)
		}
		if rotten {
			old = b.ever
		}
		for _, v := range old {
			if !slices.Contains(b.now, v) {
				b.now = add(b.now, v)
				o.touch(i, v)
			}
		}
		if rotten {
			b.floor = slices.Clone(b.now)
		}
		o.history.set(i, b)
	}
}

// issueRead notes what the blocks may hold when the read begins.
func (o *oracle) issueRead(id uint64, first, count int) {
	o.history.begin(id)
	r := &pendingRead{first: first, count: count}
	for i := range count {
		set := slices.Clone(o.blocks[first+i].now)
		pending := o.pendingOn(first + i)
		for _, v := range pending {
			set = add(set, v)
		}
		r.allowed = append(r.allowed, set)
		r.alone = append(r.alone, len(pending) == 0)
	}
	o.reads[id] = r
}

// ackRead checks the values that a read returned; the error names the block.
func (o *oracle) ackRead(id uint64, got []value) error {
	r := o.reads[id]
	delete(o.reads, id)
	o.history.read(id, r.first, got)
	for i, v := range got {
		b := &o.blocks[r.first+i]
		if o.mayBeStale != nil && o.mayBeStale() && slices.Contains(b.ever, v) {
			continue
		}
		if !slices.Contains(r.allowed[i], v) {
			return fmt.Errorf("read of block %d returned write %d; legal are %v (durable floor %v)", r.first+i, v, r.allowed[i], b.floor)
		}
		if r.alone[i] {
			b.now = []value{v}
		}
	}
	return nil
}

// forgetRead drops a read that was never answered.
func (o *oracle) forgetRead(id uint64) { delete(o.reads, id) }

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
