package volume

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/records"
)

// SnapshotInfo is a snapshot as the API shows it.
type SnapshotInfo struct {
	Name    string    `json:"name"`
	ID      ids.ID    `json:"id"`
	Number  uint32    `json:"number" doc:"rises with each attempt; numbers are never used again"`
	Created time.Time `json:"created"`
	Group   ids.ID    `json:"group,omitzero" doc:"shared by the snapshots of a VM's volumes that were taken at one moment"`
}

// SnapshotRequest is the body of POST /v1/volumes/{ref}/snapshots.
type SnapshotRequest struct {
	Name string `json:"name" doc:"unique in the volume" maxLength:"63"`
}

// SnapshotRef is the input of operations on a snapshot.
type SnapshotRef struct {
	Ref      string `path:"ref" doc:"volume: name or id" maxLength:"63"`
	Snapshot string `path:"snapshot" doc:"name of the snapshot" maxLength:"63"`
}

var snapshotName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// CheckSnapshotName refuses what cannot name a snapshot of the object.
func CheckSnapshotName(object, name string) error {
	if !snapshotName.MatchString(name) {
		return errs.New(errs.Invalid, "snapshot %s: name %q: want lower-case letters, digits, '.', '_', '-', at most 63", object, name)
	}
	return nil
}

func (s *Service) snapshotRoutes(r *api.Router) {
	huma.Register(r, api.Op("list-snapshots", "GET", "/v1/volumes/{ref}/snapshots", "List the snapshots of a volume"), func(ctx context.Context, in *api.Ref) (*api.Body[[]SnapshotInfo], error) {
		return api.OK(s.Snapshots(ctx, in.Ref))
	})
	huma.Register(r, api.Op("create-snapshot", "POST", "/v1/volumes/{ref}/snapshots", "Take a snapshot of a volume"), func(ctx context.Context, in *struct {
		api.Ref
		Body SnapshotRequest
	}) (*api.Body[SnapshotInfo], error) {
		return api.OK(s.TakeSnapshot(ctx, in.Ref.Ref, in.Body))
	})
	huma.Register(r, api.Op("delete-snapshot", "DELETE", "/v1/volumes/{ref}/snapshots/{snapshot}", "Delete a snapshot; its space comes back in the background"), func(ctx context.Context, in *SnapshotRef) (*struct{}, error) {
		return nil, s.DeleteSnapshot(ctx, in.Ref, in.Snapshot)
	})
	huma.Register(r, api.Op("clone-snapshot", "POST", "/v1/volumes/{ref}/snapshots/{snapshot}/clone", "Make a volume that begins as a snapshot; nothing is copied first"), func(ctx context.Context, in *struct {
		SnapshotRef
		Body CloneRequest
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.StartClone(ctx, in.Ref, in.Snapshot, in.Body))
	})
	huma.Register(r, api.Op("rollback-snapshot", "POST", "/v1/volumes/{ref}/snapshots/{snapshot}/rollback", "Take a volume that nobody uses back to a snapshot; what was written since is lost"), func(ctx context.Context, in *SnapshotRef) (*api.AcceptTask, error) {
		return api.Accepted(s.StartRollback(ctx, in.Ref, in.Snapshot))
	})
}

// Snapshots lists the snapshots of a volume, oldest first.
func (s *Service) Snapshots(ctx context.Context, ref string) ([]SnapshotInfo, error) {
	v, err := store.Get[model.Volume](ctx, s.env.Store.Relaxed(), ref)
	if err != nil {
		return nil, err
	}
	rec, err := records.Volume(ctx, s.env.Store, v.ID)
	if err != nil {
		return nil, err
	}
	out := make([]SnapshotInfo, 0, len(rec.Cfg.Snap.List))
	for i := range rec.Cfg.Snap.List {
		out = append(out, snapshotInfo(&rec.Cfg.Snap.List[i]))
	}
	return out, nil
}

func snapshotInfo(n *repl.Snapshot) SnapshotInfo {
	return SnapshotInfo{Name: n.Name, ID: n.ID, Number: n.Number, Created: time.Unix(n.CreatedUnix, 0).UTC(), Group: n.Group}
}

func (s *Service) findSnapshot(ctx context.Context, vol ids.ID, name string) (*repl.Snapshot, error) {
	rec, err := records.Volume(ctx, s.env.Store, vol)
	if err != nil {
		return nil, err
	}
	for i := range rec.Cfg.Snap.List {
		if n := &rec.Cfg.Snap.List[i]; n.Name == name {
			return n, nil
		}
	}
	return nil, errs.New(errs.NotFound, "read snapshot %q of volume %s: not found", name, s.nameOf(ctx, vol)).
		WithHint("`roseau volume snapshot list %s`", s.nameOf(ctx, vol))
}

// TakeSnapshot takes a snapshot of a volume, whoever writes it, and returns when
// it exists. A volume that nobody writes is opened for it on this node.
func (s *Service) TakeSnapshot(ctx context.Context, ref string, req SnapshotRequest) (SnapshotInfo, error) {
	if err := CheckSnapshotName("volume "+ref, req.Name); err != nil {
		return SnapshotInfo{}, err
	}
	v, err := store.Get[model.Volume](ctx, s.env.Store, ref)
	if err != nil {
		return SnapshotInfo{}, err
	}
	o := repl.SnapshotOrder{Volume: v.ID, Snapshot: repl.Snapshot{ID: ids.New(), Name: req.Name, CreatedUnix: s.env.Clock.Wall().Unix()}}
	if err := s.OrderSnapshot(ctx, v, o); err != nil {
		return SnapshotInfo{}, err
	}
	n, err := s.findSnapshot(ctx, v.ID, req.Name)
	if err != nil {
		return SnapshotInfo{}, err
	}
	s.env.Events.Emit("info", "volume "+v.Name, fmt.Sprintf("snapshot %s taken", n.Name))
	return snapshotInfo(n), nil
}

// DeleteSnapshot deletes a snapshot and returns when it does not exist any more.
func (s *Service) DeleteSnapshot(ctx context.Context, ref, name string) error {
	v, err := store.Get[model.Volume](ctx, s.env.Store, ref)
	if err != nil {
		return err
	}
	n, err := s.findSnapshot(ctx, v.ID, name)
	if err != nil {
		return err
	}
	if st, err := s.WriterStatus(ctx, v.ID); err == nil && st.Snapshot == n.Number && !final(st.Phase) {
		return errs.New(errs.Conflict, "delete snapshot %s of volume %s: it is being served", name, v.Name).
			WithHint("`roseau volume unserve %s` first", v.Name)
	}
	if err := s.OrderSnapshot(ctx, v, repl.SnapshotOrder{Volume: v.ID, Delete: n.Number}); err != nil {
		return err
	}
	s.env.Events.Emit("info", "volume "+v.Name, fmt.Sprintf("snapshot %s deleted", name))
	return nil
}

// OrderSnapshot passes an order to whoever writes the volume: only the writer
// may change its records [S8]. A volume that nobody writes is opened for it on
// this node. It returns when the order is carried out.
func (s *Service) OrderSnapshot(ctx context.Context, v *model.Volume, o repl.SnapshotOrder) error {
	rec, err := records.Volume(ctx, s.env.Store, v.ID)
	if err != nil {
		return err
	}
	if o.Delete != 0 {
		if err := s.leaveSnapshot(ctx, v, o.Delete); err != nil {
			return err
		}
	}
	if !rec.Cfg.VM.IsZero() {
		p, err := records.Placement(ctx, s.env.Store, rec.Cfg.VM)
		if err != nil {
			return err
		}
		if !p.Value.Node.IsZero() {
			return s.env.Ask(ctx, rec.Own.Node, http.MethodPost, fmt.Sprintf("/v1/nodes/%s/vms/%s/snapshot", rec.Own.Node, rec.Cfg.VM), o, nil)
		}
	}
	if st, err := s.WriterStatus(ctx, v.ID); err == nil && !final(st.Phase) {
		if rec.Own.Node == s.env.Node {
			return s.writers.Snapshot(ctx, v.ID, o)
		}
		return s.env.Ask(ctx, rec.Own.Node, http.MethodPost, writerPath(rec.Own.Node, v.ID)+"/snapshot", o, nil)
	}
	if _, err := s.OpenHere(ctx, v.ID, WriterRequest{Purpose: repl.PurposeServe}); err != nil {
		return err
	}
	err = s.writers.Snapshot(ctx, v.ID, o)
	return errors.Join(err, s.CloseHere(context.WithoutCancel(ctx), v.ID))
}
