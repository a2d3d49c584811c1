package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/repl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/records"
	"roseau/internal/svc/task"
)

// CloneRequest is the body of POST /v1/volumes/{ref}/snapshots/{snapshot}/clone.
type CloneRequest struct {
	Name string `json:"name" doc:"of the new volume" maxLength:"63"`
}

// StartClone checks whether a snapshot can be cloned and starts the task.
func (s *Service) StartClone(ctx context.Context, ref, snapshot string, req CloneRequest) (*model.Task, error) {
	parent, err := store.Get[model.Volume](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	n, err := s.findSnapshot(ctx, parent.ID, snapshot)
	if err != nil {
		return nil, err
	}
	_, rec, err := s.addClone(ctx, parent, n.Number, ids.New())
	if err != nil {
		return nil, err
	}
	v := &model.Volume{Meta: model.Meta{Name: req.Name}, Spec: model.VolumeSpec{Pool: parent.Spec.Pool, Size: size.Bytes(rec.Cfg.SizeBytes)}}
	if err := s.Check(ctx, v); err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, fmt.Sprintf("volume clone %s@%s %s", parent.Name, snapshot, v.Name), func(ctx context.Context, h *task.Handle) (string, error) {
		v, err := s.Clone(ctx, v, Owner{}, parent, n.Number)
		if err != nil {
			return "", err
		}
		s.env.Events.Emit("info", "volume "+v.Name, fmt.Sprintf("cloned from snapshot %s of volume %s", snapshot, parent.Name))
		return fmt.Sprintf("volume %s: clone of %s@%s", v.Name, parent.Name, snapshot), nil
	})
}

// cloneOf is what the creation of a clone writes and compares beside its records.
type cloneOf struct {
	parent repl.Parent
	cfgRev int64
	next   repl.Clones
	rev    int64 // of the record that next replaces
}

// addClone decides about a clone of a snapshot, and returns the parent's record too.
func (s *Service) addClone(ctx context.Context, parent *model.Volume, number uint32, clone ids.ID) (*cloneOf, *repl.VolumeRecord, error) {
	c, err := s.readClones(ctx, parent.ID)
	if err != nil {
		return nil, nil, err
	}
	rec, err := records.Volume(ctx, s.env.Store, parent.ID) // after the clones: a snapshot that leaves says so there first
	if err != nil {
		return nil, nil, err
	}
	next, err := repl.AddClone(*rec, c.Value, number, clone)
	if err != nil {
		return nil, nil, fmt.Errorf("clone volume %s: %w", parent.Name, err)
	}
	return &cloneOf{parent: repl.Parent{Volume: parent.ID, Snapshot: number}, cfgRev: rec.CfgRev, next: next, rev: c.Revision}, rec, nil
}

// Clone makes v a clone of a snapshot: its records and the line in the parent's list
// of clones in one transaction. Nothing is copied.
func (s *Service) Clone(ctx context.Context, v *model.Volume, o Owner, parent *model.Volume, number uint32) (*model.Volume, error) {
	v.ID = ids.New()
	for range 10 {
		var err error
		if o.clone, _, err = s.addClone(ctx, parent, number, v.ID); err != nil {
			return nil, err
		}
		made, err := s.Create(ctx, v, o)
		if err == nil || !errors.Is(err, errs.Conflict) {
			return made, err
		}
		if _, gerr := store.Get[model.Volume](ctx, s.env.Store, v.Name); !errors.Is(gerr, errs.NotFound) {
			return nil, errors.Join(err, gerr)
		}
	}
	return nil, errs.New(errs.Conflict, "clone volume %s: its records change all the time", parent.Name).WithHint("ask again")
}

// readClones reads who reads a volume's snapshots, without those that do not need
// it any more.
func (s *Service) readClones(ctx context.Context, vol ids.ID) (store.Record[repl.Clones], error) {
	c, err := store.GetRecord[repl.Clones](ctx, s.env.Store, records.ClonesKey(vol))
	if err != nil || c.Revision == 0 {
		return c, err
	}
	recs, err := records.Volumes(ctx, s.env.Store)
	if err != nil {
		return c, err
	}
	// A clone's records and its line are made in one transaction, so one that has none
	// now was deleted.
	gone := func(id ids.ID) bool { return recs[id] == nil || recs[id].Cfg.Parent.Volume != vol }
	var exist []uint32
	if rec := recs[vol]; rec != nil {
		exist = rec.Cfg.Snap.Numbers()
	}
	c.Value = c.Value.Without(gone, exist)
	return c, nil
}

// CheckUncloned refuses what (a verb) is to be done to a volume, or to one snapshot
// of it (0: any), if a clone reads it.
func (s *Service) CheckUncloned(ctx context.Context, what string, v *model.Volume, number uint32) error {
	c, err := s.readClones(ctx, v.ID)
	if err != nil {
		return err
	}
	return s.refuseCloned(ctx, what, v, c.Value.Of(number))
}

func (s *Service) refuseCloned(ctx context.Context, what string, v *model.Volume, clones []ids.ID) error {
	if len(clones) == 0 {
		return nil
	}
	list := make([]string, 0, len(clones))
	for _, id := range clones {
		list = append(list, s.nameOf(ctx, id))
	}
	slices.Sort(list)
	if more := len(list) - 5; more > 0 {
		list = append(list[:5], fmt.Sprintf("and %d more", more))
	}
	return errs.New(errs.Conflict, "%s volume %s: it is the parent of clones that still read it: %s", what, v.Name, strings.Join(list, ", ")).
		WithHint("wait until they are flattened (`roseau volume show %s` tells how far), or delete them", list[0])
}

// leaveSnapshot resolves that a snapshot is to be deleted: nobody clones it from then
// on.
func (s *Service) leaveSnapshot(ctx context.Context, v *model.Volume, number uint32) error {
	_, err := s.env.Store.Transact(ctx, "delete snapshot of volume "+v.Name, func(tx *store.Tx) error {
		c, err := s.readClones(ctx, v.ID)
		if err != nil {
			return err
		}
		if err := s.refuseCloned(ctx, "delete snapshot of", v, c.Value.Of(number)); err != nil {
			return err
		}
		next, err := repl.LeaveSnapshot(c.Value, number)
		if err != nil {
			return err
		}
		tx.If(records.ClonesKey(v.ID), c.Revision).Put(records.ClonesKey(v.ID), next)
		return nil
	})
	return err
}

// txDeleteCloned adds to the transaction that deletes a volume: no clone reads it, and
// it is no line in its own parent's list any more.
func (s *Service) txDeleteCloned(ctx context.Context, tx *store.Tx, v *model.Volume, rec *repl.VolumeRecord) error {
	c, err := s.readClones(ctx, v.ID)
	if err != nil {
		return err
	}
	if err := s.refuseCloned(ctx, "delete", v, c.Value.Of(0)); err != nil {
		return err
	}
	tx.If(records.ClonesKey(v.ID), c.Revision).Delete(records.ClonesKey(v.ID))
	if rec == nil || rec.Cfg.Parent.IsZero() {
		return nil
	}
	key := records.ClonesKey(rec.Cfg.Parent.Volume)
	p, err := store.GetRecord[repl.Clones](ctx, s.env.Store, key)
	if err != nil || p.Revision == 0 {
		return err
	}
	next := p.Value
	next.List = slices.DeleteFunc(slices.Clone(next.List), func(k repl.Clone) bool { return k.Volume == v.ID })
	tx.If(key, p.Revision).Put(key, next)
	return nil
}

// parentName names what a clone reads, as VOLUME@SNAPSHOT; "" if nothing.
func parentName(rec *repl.VolumeRecord, recs map[ids.ID]*repl.VolumeRecord, names map[ids.ID]string) string {
	p := rec.Cfg.Parent
	if p.IsZero() {
		return ""
	}
	name, snap := names[p.Volume], fmt.Sprint(p.Snapshot)
	if name == "" {
		name = p.Volume.Short()
	}
	if r := recs[p.Volume]; r != nil {
		if n := r.Cfg.Snap.Find(p.Snapshot); n != nil {
			snap = n.Name
		}
	}
	return name + "@" + snap
}
