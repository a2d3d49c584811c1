package sim

import (
	"cmp"
	"encoding/binary"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// history records what happened to each block as operations with a beginning and
// an end, for a second judge beside the oracle: is there an order of all of them,
// one at a time, that explains every read? The oracle takes a read that met a
// write under way for either; here it must come before or after it.
type history struct {
	clock  int64 // counts beginnings and ends
	blocks map[int]*blockHistory
	open   map[uint64]int64 // beginnings of requests, by request
	off    bool             // a copy may be stale: nothing is judged any more
}

type blockHistory struct {
	written bool // something else than zeros
	ops     []porcupine.Operation
}

// regKind is what an operation does to a block that remembers what is durable.
type regKind uint8

const (
	regRead  regKind = iota
	regWrite         // acknowledged
	regMaybe         // never answered: it happened before its guest's end, or not
	regFlush
	regLose // what is not durable may be gone
	regSet  // a rollback, or an operator who accepts a loss: the block is one of
)

// regInput is the input of an operation.
type regInput struct {
	kind  regKind
	v     value
	fua   bool
	state regState // of regSet
}

// regState is a block: what it may hold, what it may hold if all that is volatile
// is lost, and what was written since that. Sets are strings of eight bytes for
// each value, rising, so that states compare.
type regState struct{ now, floor, since string }

func setOf(values ...value) string {
	list := slices.Clone(values)
	slices.Sort(list)
	var b []byte
	for _, v := range slices.Compact(list) {
		b = binary.BigEndian.AppendUint64(b, uint64(v))
	}
	return string(b)
}

func valuesOf(set string) []value {
	var out []value
	for i := 0; i < len(set); i += 8 {
		out = append(out, value(binary.BigEndian.Uint64([]byte(set[i:i+8]))))
	}
	return out
}

func union(a, b string) string { return setOf(append(valuesOf(a), valuesOf(b)...)...) }

// register is the sequential block.
var register = porcupine.Model{
	Init: func() any { return regState{now: setOf(0), floor: setOf(0)} },
	Step: func(state, input, output any) (bool, any) {
		s, in := state.(regState), input.(regInput)
		switch in.kind {
		case regRead:
			v := output.(value)
			ok := slices.Contains(valuesOf(s.now), v)
			s.now = setOf(v)
			return ok, s
		case regWrite:
			s.now = setOf(in.v)
			if s.since = union(s.since, s.now); in.fua {
				s.floor, s.since = s.now, ""
			}
		case regMaybe:
			s.now, s.since = union(s.now, setOf(in.v)), union(s.since, setOf(in.v))
		case regFlush:
			s.floor, s.since = s.now, ""
		case regLose:
			s.now = union(s.floor, s.since)
		case regSet:
			s = in.state
		}
		return true, s
	},
}

func newHistory() *history {
	return &history{blocks: map[int]*blockHistory{}, open: map[uint64]int64{}}
}

func (h *history) tick() int64 {
	h.clock++
	return h.clock
}

func (h *history) begin(id uint64) { h.open[id] = h.tick() }

// add ends an operation on a block that began at call.
func (h *history) add(block int, call, end int64, in regInput, out any) {
	if h.off {
		return
	}
	b := h.blocks[block]
	if b == nil {
		b = &blockHistory{}
		h.blocks[block] = b
	}
	b.written = b.written || in.v != 0
	b.ops = append(b.ops, porcupine.Operation{Input: in, Call: call, Output: out, Return: end})
}

// wrote ends a write of values; an unanswered one may or may not have happened.
func (h *history) wrote(id uint64, first int, values []value, kind regKind, fua bool) {
	call, end := h.open[id], h.tick()
	delete(h.open, id)
	for i, v := range values {
		h.add(first+i, call, end, regInput{kind: kind, v: v, fua: fua}, nil)
	}
}

// read ends a read.
func (h *history) read(id uint64, first int, got []value) {
	call, end := h.open[id], h.tick()
	delete(h.open, id)
	for i, v := range got {
		h.add(first+i, call, end, regInput{kind: regRead}, v)
	}
}

// flushed ends a flush, for every block that was written.
func (h *history) flushed(id uint64) {
	call, end := h.open[id], h.tick()
	delete(h.open, id)
	for block, b := range h.blocks { // order does not show
		if b.written {
			h.add(block, call, end, regInput{kind: regFlush}, nil)
		}
	}
}

// at is an operation that takes no time.
func (h *history) at(block int, in regInput) {
	if b := h.blocks[block]; b != nil || in.kind == regSet {
		t := h.tick()
		h.add(block, t, t, in, nil)
	}
}

// set notes what the oracle makes of a block.
func (h *history) set(block int, b *blockState) {
	since := []value{}
	for _, x := range b.since {
		since = append(since, x.v)
	}
	h.at(block, regInput{kind: regSet, state: regState{setOf(b.now...), setOf(b.floor...), setOf(since...)}})
}

// linearBudget bounds the search of one block: the worst case is exponential.
const linearBudget = 200 * time.Millisecond

// checkLinear asks for an order of every block's operations.
func (t *tenant) checkLinear() {
	w, h := t.w, t.oracle.history
	if h.off {
		w.note("linear_skipped")
		return
	}
	for _, block := range sortedKeys(h.blocks) {
		b := h.blocks[block]
		if !b.written {
			continue
		}
		switch porcupine.CheckOperationsTimeout(register, b.ops, linearBudget) {
		case porcupine.Ok:
			w.note("linear_block")
		case porcupine.Unknown:
			w.note("linear_unknown")
		case porcupine.Illegal:
			for _, o := range sortedOps(b.ops) {
				in := o.Input.(regInput)
				w.tracef("block %d: %d to %d: %s %d fua=%v read %v", block, o.Call, o.Return, regNames[in.kind], in.v, in.fua, o.Output)
			}
			w.failf("block %d: no order of its reads, writes and flushes explains what was read", block)
			return
		}
	}
}

var regNames = []string{"read", "write", "unanswered write", "flush", "loss", "set"}

func sortedOps(ops []porcupine.Operation) []porcupine.Operation {
	list := slices.Clone(ops)
	slices.SortStableFunc(list, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	return list
}
