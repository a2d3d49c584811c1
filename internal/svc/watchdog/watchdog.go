// Package watchdog feeds the machine's hardware watchdog while core/watchdog
// says so, if the node was told to have one (`node set NODE --watchdog on`). It
// is off by default: docs/design/bmc.md.
package watchdog

import (
	"context"
	"time"

	core "roseau/internal/core/watchdog"
	driver "roseau/internal/driver/watchdog"
	"roseau/internal/model"
	"roseau/internal/svc"
	"roseau/internal/svc/event"
)

// Guards tells of the guards of this node that run a machine.
type Guards interface {
	// Leases counts them, and those that hold their leases or do not answer.
	Leases(ctx context.Context) (guards, holding int, err error)
}

// askTimeout bounds the questions of one round: less than a feeding interval.
const askTimeout = 2 * time.Second

// offPoll is how often the setting is looked at while it is off.
const offPoll = 2 * time.Second

// Service feeds one machine's watchdog.
type Service struct {
	env     *svc.Env
	node    func() *model.Node         // this node; nil: not known yet
	session func(context.Context) bool // this node's session is held
	guards  Guards
	device  string

	dog   *driver.Dog // of Run's goroutine; nil: not armed
	state core.State
	said  string
}

// New returns the service of a node whose watchdog is at device.
func New(env *svc.Env, node func() *model.Node, session func(context.Context) bool, g Guards, device string) *Service {
	return &Service{env: env, node: node, session: session, guards: g, device: device}
}

// Run feeds until ctx ends, then disarms.
func (s *Service) Run(ctx context.Context) error {
	defer s.disarm()
	for {
		s.round(ctx)
		pause := offPoll
		if s.dog != nil {
			pause = core.Interval(s.dog.Timeout())
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
}

func (s *Service) disarm() {
	if s.dog == nil {
		return
	}
	if err := s.dog.Close(); err != nil {
		s.env.Log.Error("disarm watchdog", "err", err)
	}
	s.dog, s.state = nil, core.State{}
}

// round follows the setting and feeds once, or does not.
func (s *Service) round(ctx context.Context) {
	n := s.node()
	if n == nil { // not known: what is armed stays so
		if s.dog == nil {
			return
		}
	} else if want := n.Spec.Watchdog; want == 0 || s.dog != nil && s.dog.Timeout() != want {
		s.disarm()
		if want == 0 {
			s.said = ""
			return
		}
	}
	if s.dog == nil {
		dog, err := driver.Open(s.device, n.Spec.Watchdog)
		if err != nil {
			s.say(event.Warn, "its watchdog is not armed: "+err.Error())
			return
		}
		s.dog = dog
		s.say(event.Info, "its watchdog is armed: the machine resets itself when it is not fed for "+dog.Timeout().String())
	}
	next, feed, why := core.Step(s.state, s.view(ctx), s.env.Clock.Now())
	s.state = next
	if !feed {
		s.say(event.Error, "its watchdog is not fed, the machine will reset itself: "+why)
		return
	}
	if err := s.dog.Feed(); err != nil {
		s.env.Log.Error("feed watchdog", "err", err)
	}
}

// say puts a line on the timeline, once.
func (s *Service) say(level, text string) {
	if text == s.said {
		return
	}
	s.said = text
	s.env.Events.Emit(level, "node "+s.env.NodeName, text)
}

// view asks the guards. Nothing that is not known counts against feeding.
func (s *Service) view(ctx context.Context) core.View {
	sctx, stop := context.WithTimeout(ctx, askTimeout/2)
	v := core.View{Session: s.session(sctx)}
	stop()
	if v.Session {
		return v
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout/2)
	defer cancel()
	guards, holding, err := s.guards.Leases(ctx)
	if err != nil {
		return v // as if there were none: fed
	}
	v.Guards, v.Holding = guards, holding
	return v
}
