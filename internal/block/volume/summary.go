package volume

import (
	"fmt"

	"roseau/internal/base/size"
	"roseau/internal/core/repl"
	"roseau/internal/driver/volumectl"
	"roseau/internal/model"
)

// Summary is the status as the API shows it; who writes is the caller's to say.
func (v VolumeStatus) Summary() model.VolumeStatus {
	out := model.VolumeStatus{Health: model.Healthy, Copies: v.CopiesInSync, Epoch: v.Epoch, LostBlocks: v.Lost, RollbackPercent: v.RollbackProgress.Percent(), FlattenPercent: v.Flatten.Percent()}
	for _, d := range v.Disks {
		if d.InSync {
			continue
		}
		lost := v.CopiesInSync < v.Copies // else a copy is moving
		if out.Health == model.Healthy && lost {
			out.Health = model.Degraded
		}
		out.Out = append(out.Out, fmt.Sprintf("%s (%s)", d.Disk.Short(), d.Reason))
		if d.Syncing {
			if lost {
				out.Health = model.Syncing
			}
			// Objects are extents; the last one may be shorter.
			out.SyncDone += size.Bytes(d.SyncDone) * repl.ExtentBytes
			out.SyncTotal += size.Bytes(d.SyncTotal) * repl.ExtentBytes
			out.SyncLeft = max(out.SyncLeft, d.SyncLeft)
		}
	}
	switch {
	case v.CopiesInSync == 0:
		out.Health = model.Waiting
	case v.CopiesInSync == 1 && v.Copies > 1 && out.Health == model.Degraded:
		out.Health = model.HealthOne
	}
	return out
}

// ScrubSummary is the comparison of a volume's copies as control sockets tell it.
func (v VolumeStatus) ScrubSummary() volumectl.ScrubStatus {
	s := v.Scrub
	return volumectl.ScrubStatus{Running: s.Running, Runs: s.Runs, Done: s.Done, Total: s.Total, Skipped: s.Skipped,
		Differ: s.Differ, Repaired: s.Repaired, Healing: v.Healing}
}
