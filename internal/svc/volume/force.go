package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/records"
	"roseau/internal/svc/task"
)

// ForceRequest is the body of POST /v1/volumes/{ref}/force.
type ForceRequest struct {
	From []string `json:"from,omitempty" doc:"disks whose copies become the truth; empty: where an in-sync copy is missing, the one that has most"`
}

// StartForce starts the task that makes copies outside the in-sync set the truth,
// where no in-sync copy can be reached; dryRun: says what that costs. It is refused
// if an in-sync copy of every segment can be reached, or somebody uses the volume.
func (s *Service) StartForce(ctx context.Context, ref string, req ForceRequest, dryRun bool) (*model.Task, error) {
	v, err := store.Get[model.Volume](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	from, err := s.disksNamed(ctx, req.From)
	if err != nil {
		return nil, err
	}
	_, lost, err := s.planForce(ctx, v, from)
	if err != nil {
		return nil, err
	}
	action := "volume force " + v.Name
	if dryRun {
		return api.DryRun(action, "would give up what only copies have that cannot be reached", lost...), nil
	}
	return s.env.Tasks.Start(ctx, action, func(ctx context.Context, h *task.Handle) (string, error) {
		lost, err := s.force(ctx, v, from)
		if err != nil {
			return "", err
		}
		s.env.Events.Emit("error", "volume "+v.Name, "forced by an operator: "+strings.Join(lost, "; "))
		return "volume " + v.Name + " goes on without: " + strings.Join(lost, "; "), nil
	})
}

// force commits the transaction after which the copies are the truth, and returns
// what was given up.
func (s *Service) force(ctx context.Context, v *model.Volume, from []ids.ID) ([]string, error) {
	if err := s.Yield(ctx, v.ID); err != nil {
		return nil, err
	}
	for range 10 {
		plan, lost, err := s.planForce(ctx, v, from)
		if err != nil {
			return nil, err
		}
		txn, _, err := repl.Force(plan.recs, plan.losses)
		if err != nil {
			return nil, err
		}
		if err = s.commit(ctx, txn); err == nil {
			return lost, nil
		} else if !errors.Is(err, errs.Conflict) {
			return nil, err
		}
	}
	return nil, errs.New(errs.Conflict, "force volume %s: its records change all the time", v.Name).WithHint("is it in use? `roseau volume list`")
}

type forcePlan struct {
	recs   repl.Records
	losses []repl.Loss
}

// planForce reads what there is and says what would be lost, a line for each set of
// segments with the same fate.
func (s *Service) planForce(ctx context.Context, v *model.Volume, from []ids.ID) (*forcePlan, []string, error) {
	if err := s.CheckUnused(ctx, "force", []Restore{{Volume: v}}); err != nil {
		return nil, nil, err
	}
	rec, err := records.Volume(ctx, s.env.Store, v.ID)
	if err != nil {
		return nil, nil, err
	}
	p := &forcePlan{recs: repl.Records{Volumes: []repl.VolumeRecord{*rec}, VM: rec.Cfg.VM}}
	if vm := rec.Cfg.VM; !vm.IsZero() {
		pl, err := records.Placement(ctx, s.env.Store, vm)
		if err != nil {
			return nil, nil, err
		}
		p.recs.Placement, p.recs.PlacementRev = pl.Value, pl.Revision
	}
	names, up, err := s.names(ctx)
	if err != nil {
		return nil, nil, err
	}
	if p.losses, err = repl.Losses(*rec, func(d ids.ID) bool { return up[d] }, from); err != nil {
		var reachable []string
		for _, d := range rec.Seg.Disks {
			if _, out := rec.Own.Out[d]; !out && up[d] {
				reachable = append(reachable, fmt.Sprintf("%s on %s", names.DiskName(d), names.NodeName(names.DiskNode[d])))
			}
		}
		if len(reachable) > 0 && errors.Is(err, errs.Conflict) {
			return nil, nil, errs.New(errs.Conflict, "force volume %s: in-sync copies can be reached: %s", v.Name, strings.Join(reachable, ", ")).
				WithHint("nothing has to be given up: start what uses the volume, or wait for it to be repaired")
		}
		return nil, nil, err
	}
	return p, lossLines(p.losses, names, s.env.Clock.Wall()), nil
}

// lossLines says of each fate how many segments share it.
func lossLines(losses []repl.Loss, names records.Names, now time.Time) []string {
	var lines []string
	var counts []int
	for _, l := range losses {
		var gone []string
		for _, d := range l.Gone {
			gone = append(gone, fmt.Sprintf("%s on %s", names.DiskName(d), names.NodeName(names.DiskNode[d])))
		}
		text := fmt.Sprintf("%s cannot be reached; %s on %s takes over, which is %s", strings.Join(gone, ", "), names.DiskName(l.From), names.NodeName(names.DiskNode[l.From]), age(l.Out, now))
		if i := slices.Index(lines, text); i >= 0 {
			counts[i]++
			continue
		}
		lines, counts = append(lines, text), append(counts, 1)
	}
	for i := range lines {
		plural := "s"
		if counts[i] == 1 {
			plural = ""
		}
		lines[i] = fmt.Sprintf("%d segment%s of 1 GiB: %s", counts[i], plural, lines[i])
	}
	return lines
}

// age says what a copy outside the in-sync set lacks.
func age(o repl.Out, now time.Time) string {
	what := "complete up to an unknown write"
	if o.Base != (repl.Mark{}) {
		what = fmt.Sprintf("complete up to write %d of epoch %d", o.Base.Wseq, o.Base.Epoch)
	}
	if o.Since == 0 {
		return what + ", outside since an unknown time (" + string(o.Reason) + ")"
	}
	since := time.Unix(o.Since, 0)
	return fmt.Sprintf("%s, outside since %s, %s ago (%s)", what, since.UTC().Format(time.RFC3339), now.Sub(since).Round(time.Second), o.Reason)
}

// disksNamed resolves names of disks.
func (s *Service) disksNamed(ctx context.Context, names []string) ([]ids.ID, error) {
	var out []ids.ID
	for _, n := range names {
		d, err := store.Get[model.Disk](ctx, s.env.Store, n)
		if err != nil {
			return nil, err
		}
		out = append(out, d.ID)
	}
	return out, nil
}
