package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/records"
	"roseau/internal/svc/task"
)

// Restore names a volume and the number of the snapshot that it is taken back to.
type Restore struct {
	Volume *model.Volume
	Number uint32
}

// StartRollback starts the task that takes a volume back to a snapshot.
func (s *Service) StartRollback(ctx context.Context, ref, name string) (*model.Task, error) {
	v, err := store.Get[model.Volume](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	n, err := s.findSnapshot(ctx, v.ID, name)
	if err != nil {
		return nil, err
	}
	rec, err := records.Volume(ctx, s.env.Store, v.ID)
	if err != nil {
		return nil, err
	}
	list := []Restore{{v, n.Number}}
	if err := s.CheckUnused(ctx, "roll back", list); err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, "volume snapshot rollback "+v.Name+" "+name, func(ctx context.Context, h *task.Handle) (string, error) {
		if err := s.Rollback(ctx, h, rec.Cfg.VM, list); err != nil {
			return "", err
		}
		s.env.Events.Emit("warn", "volume "+v.Name, fmt.Sprintf("taken back to snapshot %s", name))
		return fmt.Sprintf("volume %s reads as snapshot %s", v.Name, name), nil
	})
}

// CheckUnused refuses what (a verb) is to be done to volumes if somebody uses one.
func (s *Service) CheckUnused(ctx context.Context, what string, list []Restore) error {
	for _, r := range list {
		if err := s.checkFree(ctx, r.Volume, repl.PurposeServe); err != nil {
			return fmt.Errorf("%s volume %s: %w", what, r.Volume.Name, err)
		}
		if st, err := s.WriterStatus(ctx, r.Volume.ID); err == nil && !final(st.Phase) && st.Purpose != repl.PurposeMaintenance {
			return errs.New(errs.Conflict, "%s volume %s: it is open for %s", what, r.Volume.Name, st.Purpose).
				WithHint("end that first: `roseau volume unserve %s`", r.Volume.Name)
		}
	}
	return nil
}

// Rollback takes volumes of one VM (zero: of none) back to snapshots: one
// transaction resolves on all of them, and from then on nobody is served before
// it is done. It returns when it is; cut short, the planner of repairs and
// whoever opens a volume go on.
func (s *Service) Rollback(ctx context.Context, h *task.Handle, vm ids.ID, list []Restore) error {
	if err := s.resolveRollback(ctx, vm, list); err != nil {
		return err
	}
	for _, r := range list {
		h.Phase("takes volume %s back", r.Volume.Name)
		if _, err := s.OpenHere(ctx, r.Volume.ID, WriterRequest{Purpose: repl.PurposeMaintenance}); err != nil {
			s.env.Log.Info("somebody else ends the rollback", "vol", r.Volume.ID, "cause", err)
		}
	}
	for _, r := range list {
		err := svc.WaitFor(ctx, rollbackPoll, func(ctx context.Context) (bool, error) {
			rec, err := records.Volume(ctx, s.env.Store, r.Volume.ID)
			if errors.Is(err, errs.NotFound) {
				return false, errs.New(errs.NotFound, "roll back volume %s: it was deleted meanwhile", r.Volume.Name)
			}
			if err != nil || rec.Cfg.Rollback == 0 {
				return err == nil, nil
			}
			actx, cancel := context.WithTimeout(ctx, askProgress)
			defer cancel()
			if st, err := s.WriterStatus(actx, r.Volume.ID); err == nil && !final(st.Phase) {
				h.Progress(int64(st.State.RollbackPercent), 100, "percent")
			}
			return false, nil
		})
		if err != nil {
			return fmt.Errorf("roll back volume %s: %w", r.Volume.Name, err)
		}
	}
	return nil
}

// rollbackPoll is how often a task looks whether a rollback is over.
const rollbackPoll = 200 * time.Millisecond

// resolveRollback commits the transaction after which the rollback is certain.
func (s *Service) resolveRollback(ctx context.Context, vm ids.ID, list []Restore) error {
	for range 10 {
		if err := s.CheckUnused(ctx, "roll back", list); err != nil {
			return err
		}
		recs := repl.Records{VM: vm}
		var numbers []uint32
		for _, r := range list {
			if err := s.Yield(ctx, r.Volume.ID); err != nil {
				return err
			}
			rec, err := records.Volume(ctx, s.env.Store, r.Volume.ID)
			if err != nil {
				return err
			}
			recs.Volumes = append(recs.Volumes, *rec)
			numbers = append(numbers, r.Number)
		}
		if !vm.IsZero() {
			p, err := records.Placement(ctx, s.env.Store, vm)
			if err != nil {
				return err
			}
			recs.Placement, recs.PlacementRev = p.Value, p.Revision
		}
		txn, err := repl.BeginRollback(recs, numbers)
		if err != nil {
			return err
		}
		if err = s.commit(ctx, txn); err == nil || !errors.Is(err, errs.Conflict) {
			return err
		}
	}
	return errs.New(errs.Conflict, "roll back volume %s: its records change all the time", list[0].Volume.Name).
		WithHint("is it in use? `roseau volume list`")
}

// commit sends a transaction that puts own and cfg of volumes that nobody has open.
func (s *Service) commit(ctx context.Context, txn repl.Txn) error {
	tx := store.NewTx()
	for _, c := range txn.Compares {
		tx.If(c.Key.Path(), c.Rev)
	}
	for _, p := range txn.Puts {
		switch p.Key.Kind {
		case repl.KeyOwn:
			tx.Put(p.Key.Path(), p.Own)
		case repl.KeyCfg:
			tx.Put(p.Key.Path(), p.Cfg)
		}
	}
	_, err := s.env.Store.Commit(ctx, tx)
	return err
}
