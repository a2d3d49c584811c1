package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
	"roseau/internal/driver/storagectl"
	"roseau/internal/svc/records"
)

// strayInterval is how often a node looks for copies that lie elsewhere now (a
// moved copy, or a dead disk that came back after it was rebuilt) and for merges
// that are stuck.
const strayInterval = 10 * time.Second

// janitor sees to what the disks of this node hold and need not.
type janitor struct {
	s     *Service
	asked map[ids.ID]clock.Instant // when a volume was last opened for its merges
}

// round frees stray copies, and has merges go on that wait for a writer. What a
// disk holds is listed first and the records are read afterwards.
func (j *janitor) round(ctx context.Context) error {
	s := j.s
	copies, err := s.storage.Copies(ctx)
	if err != nil || len(copies) == 0 {
		return err
	}
	vols, err := records.Volumes(ctx, s.env.Store)
	if err != nil {
		return err
	}
	var all error
	for _, c := range strays(copies, vols) {
		err := s.storage.DropStray(ctx, c)
		switch {
		case errors.Is(err, errs.Unavailable): // opened or written since
		case err != nil:
			all = errors.Join(all, err)
		default:
			s.env.Log.Info("freed a copy that lies elsewhere now", "vol", c.Volume, "disk", c.Disk, "extents", c.Extents)
		}
	}
	return errors.Join(all, j.merge(ctx, copies, vols))
}

// merge opens idle volumes for a moment whose copies here wait for the word of a
// writer that all are in sync and durable: the last one was gone before it could
// give it, or the storage process has forgotten it.
func (j *janitor) merge(ctx context.Context, copies []storagectl.Copy, vols map[ids.ID]*repl.VolumeRecord) error {
	s := j.s
	var all error
	now := s.env.Clock.Now()
	for _, id := range stuckMerges(copies, vols) {
		if t, ok := j.asked[id]; ok && now.Sub(t) < askAgain {
			continue
		}
		if vm := vols[id].Cfg.VM; !vm.IsZero() {
			p, err := records.Placement(ctx, s.env.Store, vm)
			if err != nil {
				return err
			}
			if !p.Value.Node.IsZero() {
				continue // its guard gives the word
			}
		}
		if st, err := s.WriterStatus(ctx, id); err == nil && !final(st.Phase) {
			continue
		}
		j.asked[id] = now
		_, err := s.OpenHere(ctx, id, WriterRequest{Purpose: repl.PurposeMaintenance, Merge: true})
		switch {
		case errors.Is(err, errs.Conflict): // somebody else has just opened it
		case err != nil:
			all = errors.Join(all, fmt.Errorf("open volume %s for its merges: %w", id, err))
		default:
			s.env.Log.Info("opened a volume so that its copies merge what deleted snapshots left", "vol", id)
		}
	}
	return all
}

// stuckMerges picks the volumes to be opened, each once: every copy is in sync, so
// that the word can be given.
func stuckMerges(copies []storagectl.Copy, vols map[ids.ID]*repl.VolumeRecord) []ids.ID {
	var out []ids.ID
	for _, c := range copies {
		v := vols[c.Volume]
		if c.MergeStuck && v != nil && v.Cfg.State == repl.VolumeLive && len(v.Own.Out) == 0 && slices.Contains(v.Seg.Disks, c.Disk) && !slices.Contains(out, c.Volume) {
			out = append(out, c.Volume)
		}
	}
	return out
}

// strays picks the copies that no segment of their volume names (repl.Stray).
func strays(copies []storagectl.Copy, vols map[ids.ID]*repl.VolumeRecord) []storagectl.Copy {
	var out []storagectl.Copy
	for _, c := range copies {
		if v := vols[c.Volume]; v != nil && repl.Stray(*v, c.Disk, c.Promise, c.CfgVersion) {
			out = append(out, c)
		}
	}
	return out
}
