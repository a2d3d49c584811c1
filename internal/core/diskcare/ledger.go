package diskcare

import (
	"slices"

	"roseau/internal/base/ids"
)

// Limits of the ledger.
const (
	// WindowMS is how long a bad block counts, in milliseconds: 24 h.
	WindowMS = 24 * 60 * 60 * 1000
	// RetireAbove distinct bad blocks in the window propose the disk for
	// retirement.
	RetireAbove = 16
	// maxLedger bounds what is remembered; beyond it the verdict is clear.
	maxLedger = 4096
)

// BadBlock is a block that could not be read or verified.
type BadBlock struct {
	Volume   ids.ID `json:"volume"`
	Extent   uint64 `json:"extent"`
	Block    int    `json:"block"`
	AtUnixMS int64  `json:"at_unix_ms"` // first time in the window
}

// Ledger counts the distinct bad blocks of one disk. The zero value is empty.
type Ledger struct {
	Bad      []BadBlock `json:"bad,omitempty"`      // by time
	Repaired uint64     `json:"repaired,omitempty"` // blocks rewritten from other copies, ever
	Metadata uint64     `json:"metadata,omitempty"` // bad images, superblocks and tables written again, ever
}

// Add notes a bad block; it reports whether it is one more within the window.
func (l *Ledger) Add(nowUnixMS int64, b BadBlock) bool {
	l.prune(nowUnixMS)
	for _, o := range l.Bad {
		if o.Volume == b.Volume && o.Extent == b.Extent && o.Block == b.Block {
			return false
		}
	}
	if len(l.Bad) >= maxLedger {
		return false
	}
	b.AtUnixMS = nowUnixMS
	l.Bad = append(l.Bad, b)
	return true
}

// Recent returns how many distinct blocks went bad in the last 24 hours.
func (l *Ledger) Recent(nowUnixMS int64) int {
	l.prune(nowUnixMS)
	return len(l.Bad)
}

// Propose reports whether the disk should be retired.
func (l *Ledger) Propose(nowUnixMS int64) bool { return l.Recent(nowUnixMS) > RetireAbove }

// prune forgets what is older than the window. A clock that was set back keeps
// entries for longer, never for ever: one from the future counts as from now.
func (l *Ledger) prune(nowUnixMS int64) {
	l.Bad = slices.DeleteFunc(l.Bad, func(b BadBlock) bool { return nowUnixMS-b.AtUnixMS > WindowMS })
	for i := range l.Bad {
		l.Bad[i].AtUnixMS = min(l.Bad[i].AtUnixMS, nowUnixMS)
	}
}
