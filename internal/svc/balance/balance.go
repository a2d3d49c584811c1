// Package balance is the shell of core/balance: it shows it the cluster where the
// HA manager sits and, if the mode is on, has the machines moved. It decides
// nothing itself.
package balance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	core "roseau/internal/core/balance"
	coreha "roseau/internal/core/ha"
	"roseau/internal/core/place"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/ha"
	"roseau/internal/svc/task"
)

// settingsKey holds Settings.
const settingsKey = "/c/balance"

// interval is how often the balancer looks: much shorter than a move must stand.
const interval = 10 * time.Second

// Settings are what a person chose.
type Settings struct {
	Mode core.Mode `json:"mode"` // empty: off
}

// Mover moves a machine; svc/vm does.
type Mover interface {
	Move(ctx context.Context, vm, node, why string) (*model.Task, error)
}

// Service has the operations, and the balancer of this node.
type Service struct {
	env     *svc.Env
	viewer  *ha.Viewer
	mover   Mover
	leading func() bool

	state  core.State // of Run's goroutine
	advice string     // last told; of Run's goroutine
}

// New returns the service. leading tells whether this node's HA manager acts.
func New(env *svc.Env, v *ha.Viewer, mover Mover, leading func() bool) *Service {
	return &Service{env: env, viewer: v, mover: mover, leading: leading}
}

// Report is the answer of GET /v1/balance.
type Report struct {
	Mode      core.Mode         `json:"mode"`
	Imbalance float64           `json:"imbalance"` // points
	Nodes     []core.NodeLoad   `json:"nodes"`
	CPUModel  string            `json:"cpu_model,omitempty"` // common to all nodes; empty: the emulator's
	CPUWhy    string            `json:"cpu_why"`
	Broken    []place.Violation `json:"broken_rules,omitempty"`
	Moves     []core.Move       `json:"moves"` // what would be done now, without waiting
}

// Routes adds the operations.
func (s *Service) Routes(r *api.Router) {
	huma.Register(r, api.Op("show-balance", "GET", "/v1/balance", "Loads of the nodes and what should move"), func(ctx context.Context, _ *struct{}) (*api.Body[*Report], error) {
		return api.OK(s.Show(ctx))
	})
	huma.Register(r, api.Op("set-balance", "PATCH", "/v1/balance", "Say what the balancer may do"), func(ctx context.Context, in *struct{ Body Settings }) (*api.Body[Settings], error) {
		return api.OK(in.Body, s.Set(ctx, in.Body))
	})
	huma.Register(r, api.Op("run-balance", "POST", "/v1/balance/run", "Make the moves that the balancer proposes, now"), func(ctx context.Context, in *struct {
		DryRun bool `query:"dry_run"`
	}) (*api.AcceptTask, error) {
		if in.DryRun {
			return s.dryRun()
		}
		return api.Accepted(s.StartRun(ctx))
	})
}

func (s *Service) input() core.Input {
	now := s.env.Clock.Now()
	return coreha.Balance(s.viewer.View(now), now)
}

// Show computes the report on this node.
func (s *Service) Show(ctx context.Context) (*Report, error) {
	set, err := s.settings(ctx, s.env.Store.Relaxed())
	if err != nil {
		return nil, err
	}
	in := s.input()
	r := &Report{Mode: set.Mode, Moves: core.Plan(in, core.Params{}, nil)}
	r.Nodes, r.Imbalance = core.Loads(in)
	now := s.env.Clock.Now()
	view := s.viewer.View(now)
	r.Broken = coreha.Violations(view, view.Rules, now)
	r.CPUModel, r.CPUWhy = ha.Baseline(s.viewer.World.Nodes.List())
	return r, nil
}

func (s *Service) settings(ctx context.Context, st *store.Store) (Settings, error) {
	rec, err := store.GetRecord[Settings](ctx, st, settingsKey)
	if err != nil {
		return Settings{}, err
	}
	if rec.Value.Mode == "" {
		rec.Value.Mode = core.Off
	}
	return rec.Value, nil
}

// Set stores the mode.
func (s *Service) Set(ctx context.Context, set Settings) error {
	switch set.Mode {
	case core.Off, core.Advise, core.On:
	default:
		return errs.New(errs.Invalid, "set balance: mode is %q, want off, advise or on", set.Mode).WithHint("advise tells what would be gained, on moves machines")
	}
	if _, err := s.env.Store.Commit(ctx, store.NewTx().Put(settingsKey, set)); err != nil {
		return fmt.Errorf("set balance: %w", err)
	}
	s.env.Events.Emit("info", "balance", "set to "+string(set.Mode))
	return nil
}

func line(mv core.Move) string {
	return fmt.Sprintf("%s %s -> %s: %s", mv.Name, mv.From, mv.To, mv.Why)
}

func (s *Service) dryRun() (*api.AcceptTask, error) {
	moves := core.Plan(s.input(), core.Params{}, nil)
	t := &model.Task{Action: "balance run", Node: s.env.NodeName, Result: fmt.Sprintf("%d machines would move", len(moves))}
	for _, mv := range moves {
		t.Log = append(t.Log, line(mv))
	}
	return &api.AcceptTask{Status: 200, Body: t}, nil
}

// maxRounds bounds the plans of one run: each moves at least one machine, and none
// moves twice.
const maxRounds = 64

// StartRun starts the task that carries plans out until nothing is left to gain.
func (s *Service) StartRun(ctx context.Context) (*model.Task, error) {
	return s.env.Tasks.Start(ctx, "balance run", func(ctx context.Context, h *task.Handle) (string, error) {
		moved := map[ids.ID]bool{}
		_, before := core.Loads(s.input())
		var failed error
		for range maxRounds {
			moves := core.Plan(s.input(), core.Params{}, moved)
			if len(moves) == 0 {
				break
			}
			for _, mv := range moves {
				moved[mv.VM] = true
				h.Phase("moves %s", line(mv))
				h.Logf("%s", line(mv))
				if err := s.move(ctx, mv); err != nil {
					failed = errors.Join(failed, err)
				}
				if ctx.Err() != nil {
					return "", ctx.Err()
				}
			}
		}
		_, after := core.Loads(s.input())
		return fmt.Sprintf("%d machines moved, imbalance %.0f -> %.0f", len(moved), before, after), failed
	})
}

// move moves one machine and waits for it.
func (s *Service) move(ctx context.Context, mv core.Move) error {
	t, err := s.mover.Move(ctx, mv.Name, mv.To, "balance: "+mv.Why)
	if err != nil {
		return err
	}
	return svc.WaitFor(ctx, time.Second/4, func(ctx context.Context) (bool, error) {
		now, err := store.GetID[model.Task](ctx, s.env.Store, t.ID)
		if err != nil {
			return false, err
		}
		switch now.State {
		case model.TaskRunning:
			return false, nil
		case model.TaskDone:
			return true, nil
		}
		if now.Error != nil {
			return false, errs.New(errs.Conflict, "balance: %s", now.Error.Text)
		}
		return false, errs.New(errs.Conflict, "balance: task %s is %s", now.Name, now.State)
	})
}

// Run balances while this node leads.
func (s *Service) Run(ctx context.Context) error {
	return s.env.Loop(ctx, "balance", interval, nil, s.once)
}

func (s *Service) once(ctx context.Context) error {
	if !s.leading() || !s.viewer.World.Synced() {
		s.state, s.advice = core.State{}, ""
		return nil
	}
	set, err := s.settings(ctx, s.env.Store)
	if err != nil {
		return err
	}
	if set.Mode == core.Off {
		s.state, s.advice = core.State{}, ""
		return nil
	}
	var moves, proposals []core.Move
	if set.Mode == core.Advise {
		proposals = core.Plan(s.input(), core.Params{}, nil)
	} else {
		s.state, moves, proposals = core.Step(s.state, s.input(), core.Params{}, s.env.Clock.Now())
	}
	s.advise(set.Mode, proposals)
	for _, mv := range moves {
		s.env.Events.Emit("info", "vm "+mv.Name, fmt.Sprintf("is moved from %s to %s: %s", mv.From, mv.To, mv.Why))
		if _, merr := s.mover.Move(ctx, mv.Name, mv.To, "balance: "+mv.Why); merr != nil {
			err = errors.Join(err, merr)
		}
	}
	return err
}

// advise tells of proposals once, not each time that a figure changes.
func (s *Service) advise(mode core.Mode, proposals []core.Move) {
	var names, texts []string
	for _, mv := range proposals {
		names = append(names, mv.Name+mv.From)
		texts = append(texts, line(mv))
	}
	if key := strings.Join(names, " "); key != s.advice {
		s.advice = key
		if mode == core.Advise && key != "" {
			s.env.Events.Emit("info", "balance", "advises: "+strings.Join(texts, "; "))
		}
	}
}
