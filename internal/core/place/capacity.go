package place

import (
	"slices"

	"roseau/internal/base/ids"
	"roseau/internal/base/size"
)

// Capacity is the size of a pool as a person should see it.
type Capacity struct {
	Raw     size.Bytes // sum of the usable disks
	Reserve size.Bytes // raw bytes kept for rebuilds
	Usable  size.Bytes // of volume data, after copies and reserve
	Used    size.Bytes // of volume data, allocated
	RawUsed size.Bytes // raw bytes allocated, all copies
	// Fullest is the share, in percent, that the fullest disk has used of what
	// guests may use of it: writes wait for space when a disk is at 100.
	Fullest int
}

// Level is how full a pool is.
type Level string

// The levels: below 75 %, from 75, from 85, from 95 on.
const (
	LevelOK       Level = "ok"
	LevelFilling  Level = "filling"
	LevelHigh     Level = "high"
	LevelCritical Level = "critical"
)

// LevelOf names the watermark that a percentage has passed.
func LevelOf(percent int) Level {
	switch {
	case percent >= 95:
		return LevelCritical
	case percent >= 85:
		return LevelHigh
	case percent >= 75:
		return LevelFilling
	}
	return LevelOK
}

// Percent is how full the pool is: the data of the whole, or its fullest disk,
// whichever is more.
func (c Capacity) Percent() int {
	if c.Usable <= 0 {
		return max(c.Fullest, 0)
	}
	return max(int(c.Used*100/c.Usable), c.Fullest)
}

// Limits returns, for each disk, how many bytes guests may use of it; the rest is
// the reserve, which only rebuilds touch.
//
// A node keeps its largest disk free, so that the loss of any one of its disks
// can be rebuilt on the others at once; in all at most min(nodes, 4) x the
// largest disk of the pool. Each disk keeps its part of that by its size: what a
// lost disk held then fits into the reserves of the others exactly. Nothing is
// kept where nothing could be rebuilt: on a node with one disk, and in a pool
// whose domains are disks and that has no more of them than copies. A lost disk
// that is not replaced yet has used its node's reserve: that is what it is for.
func Limits(copies int, disks []Disk) map[ids.ID]size.Bytes {
	reserve := reserves(copies, disks)
	sum := map[ids.ID]size.Bytes{}
	for _, d := range disks {
		if d.Unusable == "" {
			sum[d.Node] += d.Data
		}
	}
	out := make(map[ids.ID]size.Bytes, len(disks))
	for _, d := range disks {
		out[d.ID] = d.Data
		if r := reserve[d.Node]; r > 0 && d.Unusable == "" {
			out[d.ID] -= size.Bytes(float64(r) * (float64(d.Data) / float64(sum[d.Node])))
		}
	}
	return out
}

// reserves returns what each node keeps.
func reserves(copies int, disks []Disk) map[ids.ID]size.Bytes {
	largest := map[ids.ID]size.Bytes{}
	count := map[ids.ID]int{}
	domains := map[string]bool{}
	var nodes []ids.ID
	var top size.Bytes
	usable := 0
	lost := map[ids.ID]size.Bytes{}
	for _, d := range disks {
		if d.Unusable != "" {
			lost[d.Node] += d.Data
			largest[d.Node] = max(largest[d.Node], d.Data)
			top = max(top, d.Data)
			continue
		}
		if count[d.Node] == 0 {
			nodes = append(nodes, d.Node)
		}
		usable++
		domains[d.Domain] = true
		largest[d.Node] = max(largest[d.Node], d.Data)
		count[d.Node]++
		top = max(top, d.Data)
	}
	slices.SortFunc(nodes, ids.ID.Compare)
	out := map[ids.ID]size.Bytes{}
	if len(domains) == usable && usable <= copies {
		return out // each disk is a domain of its own, and holds a copy of everything
	}
	budget := size.Bytes(min(len(nodes), 4)) * top
	for _, n := range nodes {
		if count[n] > 1 {
			out[n] = min(largest[n], budget)
			budget -= out[n]
			out[n] = max(0, out[n]-lost[n])
		}
	}
	return out
}

// PoolCapacity computes what a pool can hold.
//
// Usable: the largest T with sum over domains of min(c(d), T) >= copies x T,
// where c(d) is the room of domain d after the reserve: T bytes need copies x T,
// and no domain may hold two copies of one byte. Worked: nodes of 10, 10 and 4
// with 3 copies hold 4; with 2 copies 12.
func PoolCapacity(copies int, disks []Disk) Capacity {
	copies = max(copies, 1)
	limits := Limits(copies, disks)
	perDomain := map[string]size.Bytes{}
	var c Capacity
	for _, d := range disks {
		if d.Unusable != "" {
			continue
		}
		perDomain[d.Domain] += limits[d.ID]
		c.Raw += d.Data
		c.Reserve += d.Data - limits[d.ID]
		c.RawUsed += d.Used
		if limits[d.ID] > 0 {
			c.Fullest = max(c.Fullest, int(d.Used*100/limits[d.ID]))
		}
	}
	room := make([]size.Bytes, 0, len(perDomain))
	for _, r := range perDomain { // order does not show: only sums are taken
		room = append(room, r)
	}
	c.Usable = spread(copies, room)
	c.Used = c.RawUsed / size.Bytes(copies)
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
