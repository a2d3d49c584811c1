package member

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
	"roseau/internal/core/quorum"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/event"
	"roseau/internal/svc/task"
	"roseau/internal/svc/voters"
)

// Ports of a witness: the first of its range.
const (
	minWitnessPort = 1024
	maxWitnessPort = 65500
)

// txWitness adds to tx the making of the witness's object, or bringing that of
// the same machine up to date. A cluster has one witness.
func txWitness(ctx context.Context, tx *store.Tx, s *store.Store, req JoinRequest) error {
	if req.WitnessPort < minWitnessPort || req.WitnessPort > maxWitnessPort {
		return errs.New(errs.Invalid, "port %d: want %d to %d", req.WitnessPort, minWitnessPort, maxWitnessPort)
	}
	spec := model.WitnessSpec{Address: first(req.Addresses[model.RoleCluster]), Port: req.WitnessPort}
	w, err := voters.ReadWitness(ctx, s)
	switch {
	case err != nil:
		return err
	case w == nil:
		return store.TxCreate[model.Witness](tx, s, &model.Witness{Meta: model.Meta{ID: req.Node, Name: req.Name}, Spec: spec})
	case w.ID != req.Node:
		return errs.New(errs.Conflict, "the cluster has a witness already: %s at %s", w.Name, w.Spec.Address).
			WithHint("remove it first: `roseau witness remove %s`", w.Name)
	}
	w.Spec = spec
	return store.TxPut[model.Witness](tx, w)
}

func (m *Server) witnessRoutes(r *api.Router) {
	huma.Register(r, api.Op("witness-status", http.MethodGet, "/v1/witness", "The cluster's witness"),
		func(ctx context.Context, _ *struct{}) (*api.Body[*WitnessState], error) {
			return api.OK(m.WitnessStatus(ctx))
		})
	op := api.Op("remove-witness", http.MethodDelete, "/v1/witness/{ref}", "Take the witness's votes and remove it")
	op.DefaultStatus = http.StatusAccepted
	huma.Register(r, op, func(ctx context.Context, in *struct {
		api.Ref
		DryRun bool `query:"dry_run" doc:"say what would be done, change nothing"`
	}) (*api.AcceptTask, error) {
		t, err := m.RemoveWitness(ctx, in.Ref.Ref, in.DryRun)
		return api.Accepted(t, err)
	})
}

// WitnessStatus describes the witness; NotFound if there is none.
func (m *Server) WitnessStatus(ctx context.Context) (*WitnessState, error) {
	v, _, err := m.look(ctx, m.Store.Relaxed())
	if err != nil {
		return nil, err
	}
	st, err := m.witnessState(ctx, m.Store.Relaxed(), v)
	if err == nil && st == nil {
		err = errs.New(errs.NotFound, "find witness: the cluster has none").WithHint("`roseau witness add` prints how to add one")
	}
	return st, err
}

// RemoveWitness takes the votes of the witness, then the witness itself. It is
// refused while its votes hold the majority.
func (m *Server) RemoveWitness(ctx context.Context, ref string, dryRun bool) (*model.Task, error) {
	w, err := store.Get[model.Witness](ctx, m.Store, ref)
	if err != nil {
		return nil, err
	}
	v, _, err := m.look(ctx, m.Store)
	if err != nil {
		return nil, err
	}
	if v.Witness != nil {
		v.Witness.Leaving = true
	}
	for _, mem := range v.Members {
		if mem.Owner == w.ID && !quorum.Permits(v, quorum.Action{Do: quorum.Remove, Member: mem.ID}) {
			return nil, errs.New(errs.Conflict, "remove witness %s: its votes are needed: without them there is no majority", w.Name).
				WithHint("bring the other voters back first: `roseau cluster status` names them")
		}
	}
	if dryRun {
		return api.DryRun("witness remove "+w.Name, fmt.Sprintf("would take the votes of witness %s and remove it", w.Name)), nil
	}
	return m.Tasks.Start(ctx, "witness remove "+w.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		return m.removeWitness(ctx, h, w.ID, w.Name)
	})
}

func (m *Server) removeWitness(ctx context.Context, h *task.Handle, id ids.ID, name string) (string, error) {
	h.Phase("taking its votes")
	if _, err := store.Update(ctx, m.Store, id, func(w *model.Witness) error { w.Deleting = true; return nil }); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	for {
		v, _, err := m.look(ctx, m.Store)
		if err == nil && voteless(v, id) {
			break
		}
		select {
		case <-ctx.Done():
			return "", errs.New(errs.Unavailable, "remove witness %s: its votes were not taken within %s: %w", name, leaveTimeout, errors.Join(err, context.Cause(ctx))).
				WithHint("`roseau cluster status` says which voters are up; try again when they are")
		case <-time.After(leavePoll):
		}
	}
	w, err := store.GetID[model.Witness](ctx, m.Store, id)
	if errors.Is(err, errs.NotFound) {
		return "witness " + name + " removed", nil
	}
	if err != nil {
		return "", err
	}
	tx := store.NewTx().Put(RemovedKey(id), Removed{Name: name, Time: m.Clock.Wall().UTC()}).Delete(voters.WitnessKey(id))
	store.TxDelete[model.Witness](tx, w)
	if _, err := m.Store.Commit(ctx, tx); err != nil {
		return "", err
	}
	m.Events.Emit(event.Warn, "witness "+name, "removed from the cluster")
	return "witness " + name + " removed", nil
}

func voteless(v quorum.View, id ids.ID) bool {
	for _, mem := range v.Members {
		if mem.Owner == id {
			return false
		}
	}
	return true
}
