package place

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"
	"sort"
	"strings"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
)

// SegmentBytes is the size of a segment, the unit of placement.
const SegmentBytes = 1 * size.GiB

// Disk is what the scheduler knows of a claimed disk of a pool.
type Disk struct {
	ID   ids.ID
	Name string
	Node ids.ID
	// NodeName is for messages.
	NodeName string
	// Unusable is empty for a disk that may be given new segments, else why
	// not: "failed", "missing", "retired".
	Unusable string
	Data     size.Bytes // bytes of extents that it can hold
	Used     size.Bytes // bytes allocated
	Promised size.Bytes // bytes of segments mapped to it, allocated or not
}

// Segments chooses, for each of count segments, copies disks on as many
// different nodes. prefer, if not zero and usable, gets a copy of every segment
// (the VM's node: local reads). The result indexes disks sorted by identity: the
// answer has one row a segment.
//
// Nodes are drawn by two-choice hashing weighted by room: of two candidates that
// hash(volume, segment, copy, try) points at in the line of all nodes' weights,
// the one with less promised per byte wins. On the node, the disk with the most
// room left after what is promised. Thin segments count as promised in full, so
// a big volume spreads even while it is empty.
func Segments(pool string, volume ids.ID, count, copies int, prefer ids.ID, disks []Disk) (sorted []ids.ID, rows [][]uint16, err error) {
	usable := make([]Disk, 0, len(disks))
	for _, d := range disks {
		if d.Unusable == "" {
			usable = append(usable, d)
		}
	}
	sort.Slice(usable, func(i, j int) bool { return usable[i].ID.Compare(usable[j].ID) < 0 })
	nodes := nodesOf(usable)
	if len(nodes) < copies {
		return nil, nil, tooFewNodes(pool, copies, nodes, disks)
	}
	for _, d := range usable {
		sorted = append(sorted, d.ID)
	}
	promised := make([]size.Bytes, len(usable))
	for i, d := range usable {
		promised[i] = max(d.Promised, d.Used)
	}
	for k := range count {
		row := make([]uint16, 0, copies)
		taken := map[ids.ID]bool{}
		for c := range copies {
			node := pickNode(volume, k, c, prefer, nodes, usable, promised, taken)
			taken[node] = true
			i := pickDisk(node, usable, promised)
			promised[i] += SegmentBytes
			row = append(row, uint16(i))
		}
		rows = append(rows, row)
	}
	return sorted, rows, nil
}

// ReplaceDisk chooses the disk that takes over the segments of a dead one: a
// usable disk of the same node, the one with the most room. In a cluster of as
// many nodes as copies no other node may hold two copies of a segment.
func ReplaceDisk(pool string, dead Disk, disks []Disk) (ids.ID, error) {
	best := -1
	for i, d := range disks {
		if d.Unusable != "" || d.ID == dead.ID || d.Node != dead.Node {
			continue
		}
		if best < 0 || room(d, max(d.Promised, d.Used)) > room(disks[best], max(disks[best].Promised, disks[best].Used)) ||
			room(d, max(d.Promised, d.Used)) == room(disks[best], max(disks[best].Promised, disks[best].Used)) && d.ID.Compare(disks[best].ID) < 0 {
			best = i
		}
	}
	if best < 0 {
		return ids.ID{}, errs.New(errs.Exhausted, "replace disk %s in pool %s: %s has no other usable disk in it", dead.Name, pool, dead.NodeName).
			WithHint("claim another disk on %s and add it to the pool", dead.NodeName)
	}
	return disks[best].ID, nil
}

func room(d Disk, promised size.Bytes) size.Bytes { return d.Data - promised }

func nodesOf(disks []Disk) []ids.ID {
	var out []ids.ID
	for _, d := range disks {
		if !slices.Contains(out, d.Node) {
			out = append(out, d.Node)
		}
	}
	slices.SortFunc(out, ids.ID.Compare)
	return out
}

func tooFewNodes(pool string, copies int, nodes []ids.ID, disks []Disk) error {
	text := fmt.Sprintf("%d nodes with usable disks", len(nodes))
	if len(nodes) == 1 {
		text = "1 node with usable disks"
	}
	var lost []string
	for _, d := range disks {
		if d.Unusable != "" {
			lost = append(lost, d.Name+" is "+d.Unusable)
		}
	}
	sort.Strings(lost)
	if len(lost) > 0 {
		text += " (" + strings.Join(lost, ", ") + ")"
	}
	return errs.New(errs.Exhausted, "pool %s: %s, needs %d", pool, text, copies).
		WithHint("claim a disk on another node (`roseau disk list`), or create the pool with --copies %d", max(1, len(nodes)))
}

// pickNode draws the node of copy c of segment k.
func pickNode(volume ids.ID, k, c int, prefer ids.ID, nodes []ids.ID, disks []Disk, promised []size.Bytes, taken map[ids.ID]bool) ids.ID {
	if c == 0 && !prefer.IsZero() && slices.Contains(nodes, prefer) {
		return prefer
	}
	var free []ids.ID
	for _, n := range nodes {
		if !taken[n] {
			free = append(free, n)
		}
	}
	a := draw(volume, k, c, 0, free, disks)
	b := draw(volume, k, c, 1, free, disks)
	if load(b, disks, promised) < load(a, disks, promised) {
		return b
	}
	return a
}

// draw points hash(volume, segment, copy, try) into the line of the nodes'
// sizes laid end to end, so a node of twice the size is drawn twice as often.
func draw(volume ids.ID, k, c, try int, nodes []ids.ID, disks []Disk) ids.ID {
	weights := make([]uint64, len(nodes))
	var sum uint64
	for i, n := range nodes {
		for _, d := range disks {
			if d.Node == n {
				weights[i] += uint64(max(d.Data, 1))
			}
		}
		sum += weights[i]
	}
	h := fnv.New64a()
	h.Write(volume[:])
	var b [16]byte
	binary.LittleEndian.PutUint64(b[0:], uint64(k))
	binary.LittleEndian.PutUint32(b[8:], uint32(c))
	binary.LittleEndian.PutUint32(b[12:], uint32(try))
	h.Write(b[:])
	at := mix(h.Sum64()) % sum
	for i, w := range weights {
		if at < w {
			return nodes[i]
		}
		at -= w
	}
	return nodes[len(nodes)-1]
}

// mix spreads the bits of x (the finalizer of splitmix64): FNV alone leaves the
// low bits of neighbouring segments alike.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// load is the promised share of a node, in thousandths of its size.
func load(node ids.ID, disks []Disk, promised []size.Bytes) int64 {
	var data, p size.Bytes
	for i, d := range disks {
		if d.Node == node {
			data += d.Data
			p += promised[i]
		}
	}
	return int64(p) / max(1, int64(data)/1000)
}

func pickDisk(node ids.ID, disks []Disk, promised []size.Bytes) int {
	best := -1
	for i, d := range disks {
		if d.Node == node && (best < 0 || room(d, promised[i]) > room(disks[best], promised[best])) {
			best = i
		}
	}
	return best
}

// Capacity is the size of a pool as a person should see it.
type Capacity struct {
	Raw     size.Bytes // sum of the usable disks
	Reserve size.Bytes // raw bytes kept for rebuilds
	Usable  size.Bytes // of volume data, after copies and reserve
	Used    size.Bytes // of volume data, allocated
}

// PoolCapacity computes what a pool can hold.
//
// Reserve: a node keeps its largest disk free, so that the loss of any one of
// its disks can be rebuilt on the others at once; in all at most min(nodes, 4) x
// the largest disk of the pool. A node with one disk keeps none: there is nothing
// on it to rebuild to.
//
// Usable: the largest T with sum over nodes of min(c(n), T) >= copies x T, where
// c(n) is the room of node n after the reserve: T bytes need copies x T, and no
// node may hold two copies of one byte. Worked: nodes of 10, 10 and 4 with 3
// copies hold 4; with 2 copies 12.
func PoolCapacity(copies int, disks []Disk) Capacity {
	perNode := map[ids.ID]size.Bytes{}
	largest := map[ids.ID]size.Bytes{}
	count := map[ids.ID]int{}
	var c Capacity
	var top size.Bytes
	for _, d := range disks {
		if d.Unusable != "" {
			continue
		}
		perNode[d.Node] += d.Data
		largest[d.Node] = max(largest[d.Node], d.Data)
		count[d.Node]++
		top = max(top, d.Data)
		c.Raw += d.Data
		c.Used += d.Used
	}
	nodes := nodesOf(disks)
	budget := size.Bytes(min(len(perNode), 4)) * top
	room := make([]size.Bytes, 0, len(nodes))
	for _, n := range nodes {
		r := size.Bytes(0)
		if count[n] > 1 {
			r = min(largest[n], budget)
		}
		budget -= r
		c.Reserve += r
		room = append(room, perNode[n]-r)
	}
	if copies < 1 {
		copies = 1
	}
	c.Usable = spread(copies, room)
	c.Used /= size.Bytes(copies)
	return c
}

// spread returns the largest T with sum min(room, T) >= copies x T.
func spread(copies int, room []size.Bytes) size.Bytes {
	fits := func(t size.Bytes) bool {
		var sum size.Bytes
		for _, r := range room {
			sum += min(r, t)
		}
		return sum >= size.Bytes(copies)*t
	}
	var lo, hi size.Bytes
	for _, r := range room {
		hi += r
	}
	if len(room) < copies {
		return 0
	}
	for lo < hi {
		mid := lo + (hi-lo+1)/2
		if fits(mid) {
			lo = mid
		} else {
			hi = mid - 1
		}
	}
	return lo
}
