package place

import (
	"cmp"
	"slices"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
)

// fullPercent is how full a disk may be to be given a copy while others are
// emptier.
const fullPercent = 95

// Target chooses the disk that is given a segment of old; row lists the disks of
// its other copies. It must be usable, in no failure domain of theirs, and holds
// none itself. First the node of old (the spread stays as it is), then a node
// without a copy, then the most room.
//
// errs.Exhausted: there is none; the text says what is missing.
func Target(rule Rule, old ids.ID, row []ids.ID, disks []Disk) (ids.ID, error) {
	at := map[ids.ID]Disk{}
	for _, d := range disks {
		at[d.ID] = d
	}
	best := -1
	var rank [4]int64
	for i, d := range disks {
		if d.Unusable != "" || d.ID == old || slices.Contains(row, d.ID) {
			continue
		}
		near, taken := false, false
		for _, r := range row {
			taken = taken || at[r].Domain == d.Domain
			near = near || at[r].Node == d.Node
		}
		if taken {
			continue
		}
		r := [4]int64{
			flag(d.Used < d.Data/100*fullPercent),
			flag(d.Node == at[old].Node),
			flag(!near),
			int64(room(d, max(d.Promised, d.Used))),
		}
		if best < 0 || slices.Compare(r[:], rank[:]) > 0 || r == rank && d.ID.Compare(disks[best].ID) < 0 {
			best, rank = i, r
		}
	}
	if best < 0 {
		return ids.ID{}, errs.New(errs.Exhausted, "rebuild the copies of %s in pool %s: no usable disk in a %s that has no other copy", nameOf(at, old), rule.Pool, rule.Level).
			WithHint("claim a disk and add it to the pool, bring %s back, or replace it", cmp.Or(at[old].NodeName, "its node"))
	}
	return disks[best].ID, nil
}

func nameOf(at map[ids.ID]Disk, id ids.ID) string { return cmp.Or(at[id].Name, "disk "+id.Short()) }

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// Row is a segment as Balance sees it: the disks of its copies.
type Row struct {
	Volume  ids.ID
	Segment int
	Disks   []ids.ID
	// Busy: something of the volume is being copied, or a copy is out; it is left
	// alone.
	Busy bool
	// Keep is a node that should not lose its copy: the VM's. Zero: none.
	Keep ids.ID
}

// Step moves one copy.
type Step struct {
	Volume   ids.ID
	Segment  int
	Old, New ids.ID
}

// balanceSlack is the difference of promised shares, in percent, that is left
// alone.
const balanceSlack = 5

// Balance returns the move that evens the pool most, if one is worth it: a copy
// goes from the disk with the largest promised share to the one with the
// smallest that may take it, if the first still has no smaller share afterwards.
// So each step shrinks the difference and the steps end. Moves inside a node
// come first: they cost no network and change no domain.
func Balance(disks []Disk, rows []Row) (Step, bool) {
	at := map[ids.ID]Disk{}
	for _, d := range disks {
		at[d.ID] = d
	}
	for _, sameNode := range []bool{true, false} {
		var best Step
		gain := int64(0)
		for _, from := range disks {
			for _, to := range disks {
				g := worth(from, to)
				if g <= gain || (from.Node == to.Node) != sameNode {
					continue
				}
				if i := slices.IndexFunc(rows, func(r Row) bool { return mayMove(r, from, to, at) }); i >= 0 {
					best, gain = Step{Volume: rows[i].Volume, Segment: rows[i].Segment, Old: from.ID, New: to.ID}, g
				}
			}
		}
		if gain > 0 {
			return best, true
		}
	}
	return Step{}, false
}

// worth is the difference of shares, in thousandths, if moving one segment is
// worth it; else 0.
func worth(from, to Disk) int64 {
	if from.ID == to.ID || to.Unusable != "" || from.Unusable != "" || from.Data <= 0 || to.Data <= 0 || to.Used >= to.Data/100*fullPercent {
		return 0
	}
	share := func(p, data size.Bytes) int64 { return int64(p) / max(1, int64(data)/1000) }
	if share(from.Promised-SegmentBytes, from.Data) < share(to.Promised+SegmentBytes, to.Data) {
		return 0
	}
	if d := share(from.Promised, from.Data) - share(to.Promised, to.Data); d > balanceSlack*10 {
		return d
	}
	return 0
}

func mayMove(r Row, from, to Disk, at map[ids.ID]Disk) bool {
	if r.Busy || !slices.Contains(r.Disks, from.ID) || slices.Contains(r.Disks, to.ID) {
		return false
	}
	if r.Keep == from.Node && to.Node != from.Node && !r.Keep.IsZero() {
		return false
	}
	for _, d := range r.Disks {
		if d != from.ID && at[d].Domain == to.Domain {
			return false
		}
	}
	return true
}
