package storage

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/replica"
	"roseau/internal/core/diskcare"
	"roseau/internal/driver/storagectl"
	"roseau/internal/nodeconf"
)

// careState is what outlives the process of a disk's care.
type careState struct {
	diskcare.Ledger
	Wanted  bool                `json:"scrub_wanted,omitempty"` // a pass runs, or goes on when the disk is back
	Duty    int                 `json:"scrub_duty,omitempty"`
	Started time.Time           `json:"scrub_started,omitzero"`
	Ended   time.Time           `json:"scrub_ended,omitzero"`
	Cursor  replica.ScrubCursor `json:"scrub_cursor"`
	Last    passCounts          `json:"scrub_last"` // of the pass that runs, without this process's part; or of the last one
}

// passCounts are the findings of a pass.
type passCounts struct {
	Extents     int   `json:"extents"`
	Total       int   `json:"total"`
	Bytes       int64 `json:"bytes"`
	BadBlocks   int   `json:"bad_blocks"`
	BadMetadata int   `json:"bad_metadata"`
}

func (c *passCounts) add(st replica.ScrubStatus) {
	c.Extents += st.Extents
	c.Total = max(c.Total, st.Total)
	c.Bytes += st.Bytes
	c.BadBlocks += st.BadBlocks
	c.BadMetadata += st.BadMetadata
}

// care is what the process remembers of its disks' blocks. It belongs to the
// loop; saving it does not.
type care struct {
	path  string
	Disks map[ids.ID]*careState `json:"disks"`
	dirty bool
}

// loadCare reads the file. A broken one costs counts, so it is dropped with a
// word; it is no reason to serve nobody.
func loadCare(path string, log *slog.Logger) *care {
	c := &care{path: path, Disks: map[ids.ID]*careState{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c
	}
	if err == nil {
		err = json.Unmarshal(b, c)
	}
	if err != nil || c.Disks == nil {
		log.Warn("what was known of the disks' blocks is lost", "path", path, "err", err)
		c.Disks = map[ids.ID]*careState{}
	}
	for id, s := range c.Disks {
		if s == nil {
			delete(c.Disks, id)
		}
	}
	return c
}

func (c *care) of(id ids.ID) *careState {
	s := c.Disks[id]
	if s == nil {
		s = &careState{}
		c.Disks[id] = s
	}
	return s
}

// careEvent runs in the loop.
func (p *process) careEvent(e replica.Event) {
	s := p.care.of(e.Disk)
	now := p.o.Clock.Wall()
	p.care.dirty = true
	log := p.log.With("disk", e.Disk)
	switch e.Kind {
	case replica.BlockBad:
		if s.Add(now.UnixMilli(), diskcare.BadBlock{Volume: e.Volume, Extent: e.Extent, Block: e.Block}) {
			log.Warn("block cannot be read or verified", "vol", e.Volume, "extent", e.Extent, "block", e.Block, "in_24h", len(s.Bad))
		}
	case replica.BlockRepaired:
		s.Repaired++
		log.Info("block repaired from another copy", "vol", e.Volume, "extent", e.Extent, "block", e.Block)
	case replica.MetaRepaired:
		s.Metadata++
		log.Warn("metadata at rest was bad and is written again")
	case replica.ScrubEnded:
		s.Last.add(p.core.Scrub(e.Disk))
		s.Wanted, s.Ended, s.Cursor = false, now.UTC(), replica.ScrubCursor{}
		log.Info("scrub ended", "dur", s.Ended.Sub(s.Started), "extents", s.Last.Extents, "bytes", s.Last.Bytes, "bad_blocks", s.Last.BadBlocks, "bad_metadata", s.Last.BadMetadata)
	}
}

// scrub starts or stops a pass.
func (p *process) scrub(ctx context.Context, r storagectl.ScrubRequest) error {
	if r.DutyPercent < 0 || r.DutyPercent > 100 {
		return errs.New(errs.Invalid, "scrub disk %s: duty of %d %%: want 1 to 100, or 0 for 5", r.Disk, r.DutyPercent)
	}
	var err error
	lerr := p.inLoop(ctx, func() {
		d := p.device(r.Disk)
		if d == nil || d.core == nil {
			err = errs.New(errs.Unavailable, "scrub disk %s: it is not open", r.Disk)
			return
		}
		s := p.care.of(r.Disk)
		p.care.dirty = true
		if r.Stop {
			p.pauseScrub(r.Disk)
			s.Wanted = false
			return
		}
		s.Duty = r.DutyPercent
		if !s.Wanted {
			if s.Cursor == (replica.ScrubCursor{}) {
				s.Started, s.Last = p.o.Clock.Wall().UTC(), passCounts{}
			}
			s.Wanted = true
		}
		p.resumeScrub(r.Disk)
	})
	return errors.Join(lerr, err)
}

// pauseScrub keeps where the pass of this process is, and ends it.
func (p *process) pauseScrub(id ids.ID) {
	st := p.core.Scrub(id)
	if !st.Running {
		return
	}
	s := p.care.of(id)
	s.Cursor = st.Cursor
	s.Last.add(st)
	p.core.StopScrub(id)
}

// resumeScrub goes on with a pass that was wanted when its disk or its process
// ended, or changes the duty of one that runs.
func (p *process) resumeScrub(id ids.ID) {
	if s := p.care.Disks[id]; s != nil && s.Wanted {
		p.core.StartScrub(p.o.Clock.Now(), id, replica.ScrubOptions{DutyPercent: s.Duty, From: s.Cursor})
	}
}

// careOf describes all disks that are claimed.
func (p *process) careOf(ctx context.Context) ([]storagectl.Care, error) {
	list := []storagectl.Care{}
	err := p.inLoop(ctx, func() {
		p.mu.Lock()
		disks := append([]*device(nil), p.disks...)
		p.mu.Unlock()
		now := p.o.Clock.Wall().UnixMilli()
		for _, d := range disks {
			s := p.care.of(d.id)
			c := storagectl.Care{Disk: d.id, BadBlocks: s.Recent(now), RetirePropose: s.Propose(now), Repaired: s.Repaired, Metadata: s.Metadata}
			for _, m := range p.core.DamageOf(d.id) {
				c.Damage = append(c.Damage, storagectl.Damage(m))
			}
			c.WriteMedian, c.Writes = d.lat.median()
			counts := s.Last
			if st := p.core.Scrub(d.id); st.Running {
				c.Scrub.Running = true
				counts.add(st)
			}
			c.Scrub.DutyPercent, c.Scrub.Started, c.Scrub.Ended = s.Duty, s.Started, s.Ended
			c.Scrub.Extents, c.Scrub.Total, c.Scrub.Bytes = counts.Extents, counts.Total, counts.Bytes
			c.Scrub.BadBlocks, c.Scrub.BadMetadata = counts.BadBlocks, counts.BadMetadata
			list = append(list, c)
		}
	})
	return list, err
}

// careEvery is how often what changed is saved: as much is found again, or
// counted less, after a crash.
const careEvery = 5 * time.Second

// keepCare saves what changed, and ends the windows of latencies.
func (p *process) keepCare(ctx context.Context) {
	t := time.NewTicker(careEvery)
	defer t.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if n%int(diskcare.SlowWindow/careEvery) == 0 {
			p.mu.Lock()
			for _, d := range p.disks {
				d.lat.swap()
			}
			p.mu.Unlock()
		}
		var data []byte
		err := p.inLoop(ctx, func() { data = p.careBytes() })
		if err == nil && data != nil {
			err = nodeconf.WriteFile(p.care.path, data, 0o600)
		}
		if err != nil && ctx.Err() == nil {
			p.log.Warn("save what is known of the disks' blocks", "err", err)
		}
	}
}

// careBytes is the file's content, or nil if nothing changed. A running pass is
// saved with its place.
func (p *process) careBytes() []byte {
	for id, s := range p.care.Disks {
		if st := p.core.Scrub(id); s.Wanted && st.Running && st.Cursor != s.Cursor {
			p.care.dirty = true
		}
	}
	if !p.care.dirty {
		return nil
	}
	p.care.dirty = false
	out := care{Disks: map[ids.ID]*careState{}}
	for id, s := range p.care.Disks {
		c := *s
		if st := p.core.Scrub(id); s.Wanted && st.Running {
			c.Cursor = st.Cursor
			c.Last.add(st)
		}
		out.Disks[id] = &c
	}
	b, err := json.MarshalIndent(&out, "", "  ")
	if err != nil {
		return nil // of plain values: cannot be
	}
	return append(b, '\n')
}
