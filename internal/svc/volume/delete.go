package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/records"
	"roseau/internal/svc/task"
)

// StartDelete checks whether a volume may go and starts the task.
func (s *Service) StartDelete(ctx context.Context, ref string) (*model.Task, error) {
	v, err := store.Get[model.Volume](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	switch {
	case v.Spec.VM != "" && s.vmExists(ctx, v.Spec.VM):
		return nil, errs.New(errs.Conflict, "delete volume %s: it is a disk of vm %s", v.Name, v.Spec.VM).
			WithHint("`roseau vm delete` takes its volumes with it")
	case v.Spec.Image != "":
		return nil, errs.New(errs.Conflict, "delete volume %s: it holds image %s", v.Name, v.Spec.Image).
			WithHint("`roseau image delete %s` takes it away", v.Spec.Image)
	}
	if err := s.CheckUncloned(ctx, "delete", v, 0); err != nil {
		return nil, err
	}
	if st, err := s.WriterStatus(ctx, v.ID); err == nil && !final(st.Phase) && st.Purpose != "maintenance" {
		return nil, errs.New(errs.Conflict, "delete volume %s: it is open for %s", v.Name, st.Purpose).
			WithHint("end that first: `roseau volume unserve %s`", v.Name)
	}
	return s.env.Tasks.Start(ctx, "volume delete "+v.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		return "volume " + v.Name + " deleted", s.Delete(ctx, v.ID)
	})
}

// vmExists is false only if the VM is surely not there: then its volume is what a
// creation that broke has left.
func (s *Service) vmExists(ctx context.Context, name string) bool {
	_, err := store.Get[model.VM](ctx, s.env.Store, name)
	return !errors.Is(err, errs.NotFound)
}

// Delete ends a volume: whoever maintains it is stopped, then one transaction
// replaces object and records by a tomb. Its condition is own's revision, so a
// writer that takes the volume at the same time loses or wins as a whole. A
// volume that is gone already is no error.
func (s *Service) Delete(ctx context.Context, id ids.ID) error {
	if err := s.Yield(ctx, id); err != nil {
		s.env.Log.Warn("stop writer before delete", "vol", id, "err", err)
	}
	for range 5 {
		v, err := store.GetID[model.Volume](ctx, s.env.Store, id)
		if errors.Is(err, errs.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		rec, err := records.Volume(ctx, s.env.Store, id)
		if err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
		tx := store.NewTx()
		store.TxDelete(tx, v)
		if err := s.txDeleteCloned(ctx, tx, v, rec); err != nil {
			return err
		}
		if rec != nil {
			tomb := records.Tomb{Volume: id, State: string(repl.VolumeDeleting), Pool: rec.Cfg.Pool, Disks: rec.Seg.Disks, Deleted: s.env.Clock.Wall().UTC()}
			tx.If(records.OwnKey(id), rec.OwnRev).If(records.SegKey(id), rec.SegRev)
			tx.Put(records.TombKey(id), tomb)
			tx.Delete(records.OwnKey(id)).Delete(records.CfgKey(id)).Delete(records.SegKey(id))
		}
		_, err = s.env.Store.Commit(ctx, tx)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errs.Conflict) {
			return fmt.Errorf("delete volume %s: %w", v.Name, err)
		}
	}
	return errs.New(errs.Conflict, "delete volume %s: its records change all the time", id).WithHint("is it in use? `roseau volume list`")
}

// freeInterval is how often a node looks for tombs that its disks have not
// heeded.
const freeInterval = 2 * time.Second

// freeDead lets this node's storage free the volumes whose tombs name its disks.
func (s *Service) freeDead(ctx context.Context) error {
	tombs, err := store.ListRecords[records.Tomb](ctx, s.env.Store, records.TombPrefix)
	if err != nil {
		return err
	}
	disks, err := store.List[model.Disk](ctx, s.env.Store)
	if err != nil {
		return err
	}
	mine := map[ids.ID]bool{}
	for _, d := range disks {
		mine[d.ID] = d.Spec.Node == s.env.Node && d.Status.State == model.DiskActive
	}
	var all error
	for key, t := range tombs {
		var todo []ids.ID
		for _, d := range t.Value.Disks {
			if mine[d] && !slices.Contains(t.Value.Freed, d) {
				todo = append(todo, d)
			}
		}
		vol, err := ids.Parse(strings.TrimPrefix(key, records.TombPrefix))
		if len(todo) == 0 || err != nil {
			continue
		}
		record, err := json.Marshal(t.Value)
		if err == nil {
			err = s.storage.FreeVolume(ctx, vol, todo, record)
		}
		if err != nil {
			all = errors.Join(all, fmt.Errorf("free volume %s: %w", vol, err))
			continue
		}
		v := t.Value
		v.Freed = append(slices.Clone(v.Freed), todo...)
		if _, err := s.env.Store.Commit(ctx, store.NewTx().If(key, t.Revision).Put(key, v)); err != nil && !errors.Is(err, errs.Conflict) {
			all = errors.Join(all, err)
		}
	}
	return all
}
