package volume

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
	"roseau/internal/driver/guardctl"
	"roseau/internal/driver/volumectl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/records"
	"roseau/internal/unit"
)

// Writers starts and stops the writers of volumes without a VM on this node.
type Writers interface {
	// Start writes the configuration and starts the process; a writer that is
	// there already is left as it is.
	Start(ctx context.Context, c *volumectl.Config) error
	// Status asks the writer; Unavailable if there is none.
	Status(ctx context.Context, vol ids.ID) (volumectl.Status, error)
	// Stop lets the writer release the volume, then ends its process. No writer
	// is no error.
	Stop(ctx context.Context, vol ids.ID) error
	// ReplaceDisk asks the writer to rebuild.
	ReplaceDisk(ctx context.Context, vol ids.ID, r volumectl.Replace) error
	// Snapshot has the writer take or delete a snapshot.
	Snapshot(ctx context.Context, vol ids.ID, o repl.SnapshotOrder) error
	// Scrub starts, stops or shows the comparison of the copies.
	Scrub(ctx context.Context, vol ids.ID, a volumectl.ScrubAction) (volumectl.ScrubStatus, error)
	// Tail tells what the writer waits to be allowed, and with accept allows it.
	Tail(ctx context.Context, vol ids.ID, accept bool) (volumectl.Tail, error)
	// Ended reports whether no process of the writer runs or will run.
	Ended(ctx context.Context, vol ids.ID) bool
}

// unitWriters runs writers as units.
type unitWriters struct{ units unit.Controller }

// NewWriters returns the writers of a node whose units are run by c.
func NewWriters(c unit.Controller) Writers { return unitWriters{c} }

func (w unitWriters) Start(ctx context.Context, c *volumectl.Config) error {
	if st, err := w.Status(ctx, c.Volume); err == nil {
		if !final(st.Phase) {
			if st.Purpose != c.Purpose {
				return errs.New(errs.Conflict, "open volume %s for %s: it is open for %s on this node", c.Name, c.Purpose, st.Purpose)
			}
			return nil
		}
		if err := w.units.Stop(ctx, unit.Volume(c.Volume)); err != nil {
			return err
		}
	}
	if err := volumectl.WriteConfig(c); err != nil {
		return err
	}
	return w.units.Start(ctx, unit.Volume(c.Volume))
}

func (w unitWriters) Status(ctx context.Context, vol ids.ID) (volumectl.Status, error) {
	return volumectl.Dial(vol).Status(ctx)
}

// releaseTimeout bounds how long a writer may drain and release; then it is
// stopped, and the next writer waits out its lease.
const releaseTimeout = 20 * time.Second

func (w unitWriters) Stop(ctx context.Context, vol ids.ID) error {
	c := volumectl.Dial(vol)
	if err := c.Release(ctx); err == nil {
		wctx, cancel := context.WithTimeout(ctx, releaseTimeout)
		defer cancel()
		_ = svc.WaitFor(wctx, 50*time.Millisecond, func(ctx context.Context) (bool, error) {
			st, err := c.Status(ctx)
			return err != nil || final(st.Phase), nil
		})
	}
	if err := w.units.Stop(ctx, unit.Volume(vol)); err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	return volumectl.Remove(vol)
}

func (w unitWriters) ReplaceDisk(ctx context.Context, vol ids.ID, r volumectl.Replace) error {
	return volumectl.Dial(vol).ReplaceDisk(ctx, r)
}

func (w unitWriters) Snapshot(ctx context.Context, vol ids.ID, o repl.SnapshotOrder) error {
	return volumectl.Dial(vol).Snapshot(ctx, o)
}

func (w unitWriters) Scrub(ctx context.Context, vol ids.ID, a volumectl.ScrubAction) (volumectl.ScrubStatus, error) {
	return volumectl.Dial(vol).Scrub(ctx, a)
}

func (w unitWriters) Tail(ctx context.Context, vol ids.ID, accept bool) (volumectl.Tail, error) {
	return volumectl.Dial(vol).Tail(ctx, accept)
}

func (w unitWriters) Ended(ctx context.Context, vol ids.ID) bool {
	st, err := w.units.Status(ctx, unit.Volume(vol))
	return errors.Is(err, errs.NotFound) || err == nil && (st.State == unit.Stopped || st.State == unit.Failed)
}

// final reports whether a writer will do nothing more.
func final(p volumectl.Phase) bool {
	return p == volumectl.PhaseReleased || p == volumectl.PhaseLost
}

// WriterRequest is the body of POST /v1/nodes/{node}/writers/{volume}.
type WriterRequest struct {
	Purpose  repl.Purpose `json:"purpose" enum:"serve,import,export,maintenance"`
	Socket   string       `json:"socket,omitempty" doc:"path of the NBD socket on the node; default: in its run directory"`
	Snapshot string       `json:"snapshot,omitempty" doc:"name of the snapshot to be served, read-only; default: the volume as it is"`
	// Replace lists disks to be replaced, with purpose maintenance.
	Replace []volumectl.Replace `json:"replace,omitempty"`
	// Scrub compares the copies first, with purpose maintenance.
	Scrub bool `json:"scrub,omitempty"`
	// Merge keeps it open until the copies may merge, with purpose maintenance.
	Merge bool `json:"merge,omitempty"`
}

// WriterRef is the input of operations on the writer of a volume on a node.
type WriterRef struct {
	Node   string `path:"node"`
	Volume string `path:"volume"`
}

func (s *Service) writerRoutes(r *api.Router) {
	on := func(op huma.Operation) huma.Operation {
		op.Middlewares = huma.Middlewares{r.OnNode(s.env.OnNode("node"))}
		return op
	}
	const path = "/v1/nodes/{node}/writers/{volume}"
	huma.Register(r, on(api.Op("get-writer", "GET", path, "Show the writer of a volume on a node")), func(ctx context.Context, in *WriterRef) (*api.Body[volumectl.Status], error) {
		id, err := s.idOf(ctx, in.Volume)
		if err != nil {
			return nil, err
		}
		return api.OK(s.writers.Status(ctx, id))
	})
	huma.Register(r, on(api.Op("open-writer", "POST", path, "Open a volume on a node without a VM")), func(ctx context.Context, in *struct {
		WriterRef
		Body WriterRequest
	}) (*api.Body[volumectl.Status], error) {
		id, err := s.idOf(ctx, in.Volume)
		if err != nil {
			return nil, err
		}
		return api.OK(s.OpenHere(ctx, id, in.Body))
	})
	huma.Register(r, on(api.Op("close-writer", "DELETE", path, "Release a volume and end its writer on a node")), func(ctx context.Context, in *WriterRef) (*struct{}, error) {
		id, err := s.idOf(ctx, in.Volume)
		if err != nil {
			return nil, err
		}
		return nil, s.writers.Stop(ctx, id)
	})
	huma.Register(r, on(api.Op("replace-writer-disk", "POST", path+"/replace-disk", "Rebuild the copies of a volume that lie on a disk onto another")), func(ctx context.Context, in *struct {
		WriterRef
		Body volumectl.Replace
	}) (*struct{}, error) {
		id, err := s.idOf(ctx, in.Volume)
		if err != nil {
			return nil, err
		}
		return nil, s.writers.ReplaceDisk(ctx, id, in.Body)
	})
	huma.Register(r, on(api.Op("snapshot-writer", "POST", path+"/snapshot", "Have the writer of a volume take or delete a snapshot")), func(ctx context.Context, in *struct {
		WriterRef
		Body repl.SnapshotOrder
	}) (*struct{}, error) {
		id, err := s.idOf(ctx, in.Volume)
		if err != nil {
			return nil, err
		}
		return nil, s.writers.Snapshot(ctx, id, in.Body)
	})
	huma.Register(r, on(api.Op("scrub-writer-volume", "POST", path+"/scrub", "Compare the copies of a volume that is open without a VM")), func(ctx context.Context, in *struct {
		WriterRef
		Body volumectl.ScrubRequest
	}) (*api.Body[volumectl.ScrubStatus], error) {
		id, err := s.idOf(ctx, in.Volume)
		if err != nil {
			return nil, err
		}
		return api.OK(s.writers.Scrub(ctx, id, in.Body.Action))
	})
	huma.Register(r, on(api.Op("accept-writer-tail", "POST", path+"/accept-tail", "Tell what an open volume waits to be allowed, or allow it")), func(ctx context.Context, in *struct {
		WriterRef
		Body volumectl.TailRequest
	}) (*api.Body[volumectl.Tail], error) {
		id, err := s.idOf(ctx, in.Volume)
		if err != nil {
			return nil, err
		}
		return api.OK(s.writers.Tail(ctx, id, in.Body.Accept))
	})
	huma.Register(r, api.Op("unserve-volume", "DELETE", "/v1/volumes/{ref}/writer", "Release a volume that is served, wherever"), func(ctx context.Context, in *api.Ref) (*struct{}, error) {
		id, err := s.idOf(ctx, in.Ref)
		if err != nil {
			return nil, err
		}
		return nil, s.closeAnywhere(ctx, id)
	})
}

func (s *Service) idOf(ctx context.Context, ref string) (ids.ID, error) {
	if id, err := ids.Parse(ref); err == nil {
		return id, nil
	}
	v, err := store.Get[model.Volume](ctx, s.env.Store, ref)
	if err != nil {
		return ids.ID{}, err
	}
	return v.ID, nil
}

// OpenHere opens a volume on this node for a purpose and waits until it serves.
// Only a volume that no VM holds is opened; a maintenance writer is asked to
// yield first.
func (s *Service) OpenHere(ctx context.Context, id ids.ID, req WriterRequest) (volumectl.Status, error) {
	v, err := store.GetID[model.Volume](ctx, s.env.Store, id)
	if err != nil {
		return volumectl.Status{}, err
	}
	if err := s.start(ctx, v, req); err != nil {
		return volumectl.Status{}, err
	}
	if req.Purpose == repl.PurposeMaintenance {
		return volumectl.Status{Volume: id, Node: s.env.Node, Purpose: req.Purpose, Phase: volumectl.PhasePreparing}, nil
	}
	return s.waitServing(ctx, v)
}

// CloseHere releases a volume that OpenHere opened on this node.
func (s *Service) CloseHere(ctx context.Context, id ids.ID) error { return s.writers.Stop(ctx, id) }

// start starts the writer of a volume on this node, and does not wait for it.
func (s *Service) start(ctx context.Context, v *model.Volume, req WriterRequest) error {
	if err := s.checkFree(ctx, v, req.Purpose); err != nil {
		return err
	}
	if req.Purpose != repl.PurposeMaintenance {
		if err := s.Yield(ctx, v.ID); err != nil {
			return err
		}
	}
	c, err := s.writerConfig(ctx, v, req)
	if err != nil {
		return err
	}
	return s.writers.Start(ctx, c)
}

// openTimeout is how long opening a volume may take: another writer's lease
// (3.3 s), a takeover, and a slow machine.
const openTimeout = 30 * time.Second

func (s *Service) waitServing(ctx context.Context, v *model.Volume) (volumectl.Status, error) {
	wctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	var st volumectl.Status
	err := svc.WaitFor(wctx, 50*time.Millisecond, func(ctx context.Context) (bool, error) {
		now, err := s.writers.Status(ctx, v.ID)
		if err == nil {
			st = now
		}
		switch {
		case st.Phase == volumectl.PhaseServing:
			return true, nil
		case final(st.Phase), err != nil && s.writers.Ended(ctx, v.ID):
			return false, errs.New(errs.Conflict, "open volume %s: its writer ended: %s", v.Name, orElse(st.Reason, "see its log")).
				WithHint("`journalctl -u roseau-volume@%s` on %s", v.ID, s.env.NodeName)
		}
		return false, nil
	})
	if err == nil {
		return st, nil
	}
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = errs.New(errs.Unavailable, "open volume %s: does not serve after %s: %s", v.Name, openTimeout, orElse(st.Reason, "its writer does not answer")).
			WithHint("`roseau volume show %s` shows which copies can be reached", v.Name)
	}
	serr := s.writers.Stop(context.WithoutCancel(ctx), v.ID)
	return st, errors.Join(err, serr)
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// checkFree refuses a volume whose VM is placed on a node.
func (s *Service) checkFree(ctx context.Context, v *model.Volume, purpose repl.Purpose) error {
	if v.Spec.Image != "" && purpose != repl.PurposeImport && purpose != repl.PurposeExport && purpose != repl.PurposeMaintenance {
		return errs.New(errs.Conflict, "open volume %s for %s: it holds image %s", v.Name, purpose, v.Spec.Image).
			WithHint("images do not change; create a VM from it")
	}
	if v.Spec.VM == "" {
		return nil
	}
	vm, err := store.Get[model.VM](ctx, s.env.Store, v.Spec.VM)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	p, err := records.Placement(ctx, s.env.Store, vm.ID)
	if err != nil {
		return err
	}
	if !p.Value.Node.IsZero() || vm.Spec.Running {
		return errs.New(errs.Conflict, "open volume %s for %s: vm %s has it", v.Name, purpose, vm.Name).
			WithHint("`roseau vm stop %s` first", vm.Name)
	}
	return nil
}

func (s *Service) writerConfig(ctx context.Context, v *model.Volume, req WriterRequest) (*volumectl.Config, error) {
	peers, gen, err := s.Peers(ctx)
	if err != nil {
		return nil, err
	}
	c := &volumectl.Config{Volume: v.ID, Name: v.Name, Cluster: s.env.Cluster, Generation: gen, Node: s.env.Node,
		Purpose: req.Purpose, Etcd: s.env.Endpoints(), Socket: req.Socket, Replace: req.Replace, Scrub: req.Scrub, Merge: req.Merge}
	if req.Snapshot != "" {
		snap, err := s.findSnapshot(ctx, v.ID, req.Snapshot)
		if err != nil {
			return nil, err
		}
		c.Snapshot = snap.Number
	}
	for _, p := range peers {
		c.Nodes = append(c.Nodes, volumectl.Peer(p))
	}
	return c, nil
}

// Peers lists the nodes as guards need them, and the cluster's generation.
func (s *Service) Peers(ctx context.Context) ([]guardctl.Peer, uint32, error) {
	nodes, err := store.List[model.Node](ctx, s.env.Store)
	if err != nil {
		return nil, 0, err
	}
	var out []guardctl.Peer
	for _, n := range nodes {
		out = append(out, guardctl.Peer{ID: n.ID, Name: n.Name, Addresses: n.Spec.Addresses})
	}
	c, err := store.GetRecord[model.Cluster](ctx, s.env.Store, "/s/cluster")
	if err != nil {
		return nil, 0, err
	}
	return out, c.Value.Generation, nil
}

// WriterStatus asks the node that own names for the writer of a volume.
func (s *Service) WriterStatus(ctx context.Context, id ids.ID) (volumectl.Status, error) {
	rec, err := records.Volume(ctx, s.env.Store, id)
	if err != nil {
		return volumectl.Status{}, err
	}
	if rec.Own.Node.IsZero() || rec.Own.Purpose == repl.PurposeVM {
		return volumectl.Status{}, errs.New(errs.Unavailable, "ask writer of volume %s: it has none", id)
	}
	if rec.Own.Node == s.env.Node {
		return s.writers.Status(ctx, id)
	}
	var st volumectl.Status
	return st, s.env.Ask(ctx, rec.Own.Node, http.MethodGet, writerPath(rec.Own.Node, id), nil, &st)
}

func writerPath(node, vol ids.ID) string {
	return fmt.Sprintf("/v1/nodes/%s/writers/%s", node, vol)
}

// closeAnywhere releases a volume on the node that own names.
func (s *Service) closeAnywhere(ctx context.Context, id ids.ID) error {
	rec, err := records.Volume(ctx, s.env.Store, id)
	if err != nil {
		return err
	}
	switch {
	case rec.Own.Purpose == repl.PurposeVM:
		return errs.New(errs.Conflict, "release volume %s: a VM has it", id)
	case rec.Own.Node.IsZero() || rec.Own.Node == s.env.Node:
		return s.writers.Stop(ctx, id)
	}
	return s.env.Ask(ctx, rec.Own.Node, http.MethodDelete, writerPath(rec.Own.Node, id), nil, nil)
}

// Yield asks a maintenance writer of the volume, wherever it is, to release it.
// A node that does not answer is no error: its lease runs out.
func (s *Service) Yield(ctx context.Context, id ids.ID) error {
	rec, err := records.Volume(ctx, s.env.Store, id)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if rec.Own.Purpose != repl.PurposeMaintenance || rec.Own.Node.IsZero() {
		return nil
	}
	if err := s.closeAnywhere(ctx, id); err != nil && !errors.Is(err, errs.Unavailable) {
		return err
	}
	return nil
}
