package place

import (
	"encoding/binary"
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
	// Domain is the failure domain: what may hold one copy of a segment. Disks
	// with one key fail together: the disk itself, its node, chassis, rack or site.
	Domain string
	// Unusable is empty for a disk that may be given new segments, else why
	// not: "failed", "missing", "retired".
	Unusable string
	Data     size.Bytes // bytes of extents that it can hold
	Used     size.Bytes // bytes allocated
	Promised size.Bytes // bytes of segments mapped to it, allocated or not
}

// Rule is how a pool places copies.
type Rule struct {
	Pool   string // for messages
	Copies int
	Level  string // what a domain is, for messages: "node", "rack"
}

// Segments chooses, for each of count segments, rule.Copies disks of as many
// failure domains. prefer, if not zero and usable, gets a copy of every segment
// (the VM's node: local reads). The result indexes disks sorted by identity: the
// answer has one row a segment.
//
// Domains are drawn by two-choice hashing weighted by size: of two candidates
// that hash(volume, segment, copy, try) points at in the line of all domains'
// weights, the one with less promised per byte wins. Domains on nodes that hold
// no copy yet come first. In the domain, the disk with the most room left after
// what is promised. Thin segments count as promised in full, so a big volume
// spreads even while it is empty.
func Segments(rule Rule, volume ids.ID, count int, prefer ids.ID, disks []Disk) (sorted []ids.ID, rows [][]uint16, err error) {
	usable := make([]Disk, 0, len(disks))
	for _, d := range disks {
		if d.Unusable == "" {
			usable = append(usable, d)
		}
	}
	sort.Slice(usable, func(i, j int) bool { return usable[i].ID.Compare(usable[j].ID) < 0 })
	if n := len(domainsOf(usable)); n < rule.Copies {
		return nil, nil, tooFewDomains(rule, n, disks)
	}
	p := picker{volume: volume, disks: usable, promised: make([]size.Bytes, len(usable))}
	for i, d := range usable {
		sorted = append(sorted, d.ID)
		p.promised[i] = max(d.Promised, d.Used)
	}
	for k := range count {
		row := make([]uint16, 0, rule.Copies)
		for c := range rule.Copies {
			i := p.pick(k, c, prefer, row)
			p.promised[i] += SegmentBytes
			row = append(row, uint16(i))
		}
		rows = append(rows, row)
	}
	return sorted, rows, nil
}

func room(d Disk, promised size.Bytes) size.Bytes { return d.Data - promised }

func domainsOf(disks []Disk) []string {
	var out []string
	for _, d := range disks {
		if !slices.Contains(out, d.Domain) {
			out = append(out, d.Domain)
		}
	}
	slices.Sort(out)
	return out
}

func tooFewDomains(rule Rule, have int, disks []Disk) error {
	text := plural(have, rule.Level) + " with usable disks"
	if rule.Level == "disk" {
		text = plural(have, "usable disk")
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
	return errs.New(errs.Exhausted, "pool %s: %s, needs %d", rule.Pool, text, rule.Copies).
		WithHint("claim a disk on another %s (`roseau disk list`), or create the pool with --copies %d", rule.Level, max(1, have))
}

// picker places the copies of a volume, one after another.
type picker struct {
	volume   ids.ID
	disks    []Disk
	promised []size.Bytes
}

// pick chooses the disk of copy c of segment k; row holds the copies before.
func (p *picker) pick(k, c int, prefer ids.ID, row []uint16) int {
	var free, fresh []string // domains without a copy; those of them on nodes without one
	for _, d := range p.disks {
		taken, near := false, false
		for _, r := range row {
			taken = taken || p.disks[r].Domain == d.Domain
			near = near || p.disks[r].Node == d.Node
		}
		if taken {
			continue
		}
		if c == 0 && !prefer.IsZero() && d.Node == prefer {
			return p.roomiest(func(j int) bool { return p.disks[j].Node == prefer })
		}
		if !slices.Contains(free, d.Domain) {
			free = append(free, d.Domain)
		}
		if !near && !slices.Contains(fresh, d.Domain) {
			fresh = append(fresh, d.Domain)
		}
	}
	if len(fresh) > 0 {
		free = fresh
	}
	slices.Sort(free)
	a, b := p.draw(k, c, 0, free), p.draw(k, c, 1, free)
	if p.load(b) < p.load(a) {
		a = b
	}
	return p.roomiest(func(j int) bool { return p.disks[j].Domain == a })
}

func (p *picker) roomiest(in func(int) bool) int {
	best := -1
	for i, d := range p.disks {
		if in(i) && (best < 0 || room(d, p.promised[i]) > room(p.disks[best], p.promised[best])) {
			best = i
		}
	}
	return best
}

// draw points hash(volume, segment, copy, try) into the line of the domains'
// sizes laid end to end, so one of twice the size is drawn twice as often.
func (p *picker) draw(k, c, try int, domains []string) string {
	weights := make([]uint64, len(domains))
	var sum uint64
	for i, n := range domains {
		for _, d := range p.disks {
			if d.Domain == n {
				weights[i] += uint64(max(d.Data, 1))
			}
		}
		sum += weights[i]
	}
	h := fnv.New64a()
	h.Write(p.volume[:])
	var b [16]byte
	binary.LittleEndian.PutUint64(b[0:], uint64(k))
	binary.LittleEndian.PutUint32(b[8:], uint32(c))
	binary.LittleEndian.PutUint32(b[12:], uint32(try))
	h.Write(b[:])
	at := mix(h.Sum64()) % sum
	for i, w := range weights {
		if at < w {
			return domains[i]
		}
		at -= w
	}
	return domains[len(domains)-1]
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

// load is the promised share of a domain, in thousandths of its size.
func (p *picker) load(domain string) int64 {
	var data, used size.Bytes
	for i, d := range p.disks {
		if d.Domain == domain {
			data += d.Data
			used += p.promised[i]
		}
	}
	return int64(used) / max(1, int64(data)/1000)
}
