package writer

import (
	"fmt"
	"slices"
	"strings"

	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// lostTag stands where a copy lost the tag of a block.
var lostTag = wire.Lost

// zeroCRC is the checksum of a block of zeros: it and an absent block read the
// same.
var zeroCRC = checksums(make([]byte, repl.BlockBytes))[0]

// copyTags is the table of tags that one copy of an extent has; no tags: all
// absent.
type copyTags struct {
	mark repl.Mark
	tags []wire.Tag
}

func (c *copyTags) tag(block int) wire.Tag {
	if len(c.tags) == 0 {
		return wire.Tag{}
	}
	return c.tags[block]
}

// difference is a block whose copies do not agree. Indexes are those of the
// copies compared.
type difference struct {
	block  int
	bug    bool  // two sound copies differ
	source []int // hold the version that is right; empty: all copies lost it
	bad    []int // hold another one, or have lost the tag
}

// compareTags finds the blocks on which copies differ. There is no vote: of two
// versions the newer one is right, however many copies have the other.
func compareTags(copies []copyTags, blockCount int) []difference {
	var out []difference
	for b := range blockCount {
		first := copies[0].tag(b)
		same := first != lostTag
		for i := range copies[1:] {
			same = same && sameContent(first, copies[i+1].tag(b))
		}
		if same {
			continue
		}
		d := difference{block: b}
		best := -1
		for i := range copies {
			t := copies[i].tag(b)
			if t == lostTag {
				continue
			}
			if best >= 0 && !sameContent(t, copies[best].tag(b)) {
				d.bug = true
			}
			if best < 0 || newerTag(copies, b, i, best) {
				best = i
			}
		}
		for i := range copies {
			t := copies[i].tag(b)
			switch {
			case best >= 0 && t != lostTag && sameContent(t, copies[best].tag(b)):
				d.source = append(d.source, i)
			default:
				d.bad = append(d.bad, i)
			}
		}
		out = append(out, d)
	}
	return out
}

// newerTag reports whether copy i has a newer version of a block than copy j. The
// stamp is the low half of the write's wseq, which rises over epochs, and no
// write of an extent is newer than its mark: the distance from the newest mark
// tells which stamp is the younger one, unless 2^32 writes lie between them.
//
//	age(stamp) = low32(newest mark) - stamp      modulo 2^32
func newerTag(copies []copyTags, block, i, j int) bool {
	a, b := copies[i].tag(block), copies[j].tag(block)
	newer := copies[j].mark.Less(copies[i].mark)
	switch {
	case a.Stamp == b.Stamp:
		return newer
	case a.Stamp == 0 || b.Stamp == 0:
		// Absent has no time of its own. With equal marks data wins: keeping what
		// was discarded is the smaller harm.
		if copies[i].mark != copies[j].mark {
			return newer
		}
		return b.Stamp == 0
	}
	top := repl.Mark{}
	for k := range copies {
		if top.Less(copies[k].mark) {
			top = copies[k].mark
		}
	}
	low := uint32(top.Wseq)
	return low-a.Stamp < low-b.Stamp
}

func sameContent(a, b wire.Tag) bool {
	if a == b {
		return true
	}
	if a == lostTag || b == lostTag {
		return false
	}
	zero := func(t wire.Tag) bool { return t.Stamp == 0 || t.CRC == zeroCRC }
	return zero(a) && zero(b)
}

// describe says for people how the copies of a block differ.
func (d *difference) describe(ext int64, copies []copyTags, names []string) string {
	var parts []string
	for i := range copies {
		t := copies[i].tag(d.block)
		has := fmt.Sprintf("crc %08x stamp %d", t.CRC, t.Stamp)
		if t == lostTag {
			has = "lost"
		} else if t.Stamp == 0 {
			has = "absent"
		}
		role := "replaced"
		if slices.Contains(d.source, i) {
			role = "kept"
		}
		parts = append(parts, fmt.Sprintf("%s has %s at %d/%d (%s)", names[i], has, copies[i].mark.Epoch, copies[i].mark.Wseq, role))
	}
	return fmt.Sprintf("extent %d block %d: in-sync copies differ: %s", ext, d.block, strings.Join(parts, "; "))
}
