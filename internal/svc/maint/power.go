package maint

import (
	"context"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/core/maint"
	"roseau/internal/model"
	"roseau/internal/unit"
)

// LeaveOrder is the body of POST /v1/nodes/{node}/leave, which the conductor
// sends.
type LeaveOrder struct {
	Verb model.OrderVerb `json:"verb" enum:"shutdown,reboot"`
	Boot string          `json:"boot" doc:"boot identity that is to end: a repeated order cannot end the next one"`
}

// GoDown begins to take this node down, if the cluster's records say so too. It
// returns when the order was taken; a repeated one changes nothing.
func (s *Service) GoDown(_ context.Context, r LeaveOrder) error {
	fail := func(format string, args ...any) error {
		return errs.New(errs.Conflict, "power of node %s: "+format, append([]any{s.env.NodeName}, args...)...)
	}
	if r.Boot != s.Boot() {
		return fail("the order is for boot %s, this is %s", r.Boot, s.Boot())
	}
	if !s.ordered(r) {
		return fail("nobody ordered a %s", r.Verb)
	}
	if _, ok := s.env.Units.(unit.Machine); !ok {
		return fail("its supervisor has no power over the machine")
	}
	s.accept(r)
	return nil
}

// accept hands an order to obey.
func (s *Service) accept(r LeaveOrder) {
	select {
	case s.orders <- r:
	default: // it is at it already
	}
}

// obey carries power orders out.
func (s *Service) obey(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-s.orders:
			s.goDown(ctx, r)
		}
	}
}

// ordered: this node's object or the plan says that it is to go.
func (s *Service) ordered(r LeaveOrder) bool {
	if n := s.World.Nodes.Get(s.env.Node); n != nil && n.Spec.Order != nil {
		o := n.Spec.Order
		if o.Phase != model.OrderDraining && o.Boot == r.Boot && o.Verb == r.Verb {
			return true
		}
	}
	p, _ := s.World.Plan()
	if p == nil || p.Kind != maint.Shutdown || p.Phase != maint.Off || r.Verb != model.OrderShutdown {
		return false
	}
	for _, m := range p.Nodes {
		if m.ID == s.env.Node && m.Boot == r.Boot {
			return true
		}
	}
	return false
}

// stopLimit bounds the stop of one unit.
const stopLimit = 30 * time.Second

// goDown stops writers, then the storage, then asks for the power. What fails
// before the last step does not keep the node up: its supervisor ends the rest.
func (s *Service) goDown(ctx context.Context, r LeaveOrder) {
	log := s.env.Log.With("verb", r.Verb)
	log.Info("this node goes down, as asked")
	units, err := s.env.Units.List(ctx)
	if err != nil {
		log.Warn("list units", "err", err)
	}
	for _, u := range units {
		if _, writer := u.Name.VolumeID(); writer && u.State != unit.Stopped {
			s.stop(ctx, u.Name)
		}
	}
	s.stop(ctx, unit.Storage)
	if err := s.env.Units.(unit.Machine).Power(ctx, r.Verb == model.OrderReboot); err != nil {
		log.Error("go down", "err", err)
		s.env.Events.Emit("error", "node "+s.env.NodeName, "did not go down: "+strings.TrimSpace(err.Error()))
		if err := s.env.Units.Start(ctx, unit.Storage); err != nil {
			log.Error("start storage again", "err", err)
		}
		return
	}
	<-ctx.Done() // the supervisor ends this process; what is ordered again is this
}

func (s *Service) stop(ctx context.Context, name unit.Name) {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	if err := s.env.Units.Stop(ctx, name); err != nil {
		s.env.Log.Warn("stop unit", "unit", name, "err", err)
	}
}
