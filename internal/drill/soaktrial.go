package drill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"roseau/internal/base/errs"
)

// tryCheckers shows, before the first round, that the checks of VMs that run twice
// see it: a frame with a VM's address from another node's cable, and a write of
// another guest on its disk. A soak whose checks are blind proves nothing.
func (s *Soak) tryCheckers(ctx context.Context) error {
	p := s.probes[0]
	if err := s.begin(ctx, p); err != nil {
		return err
	}
	if err := s.tryFrames(ctx, p); err != nil {
		return fmt.Errorf("try the check of frames: %w", err)
	}
	if err := s.tryWrites(ctx, p); err != nil {
		return fmt.Errorf("try the check of writes: %w", err)
	}
	s.Env.say("the checks see a frame from two nodes, and a write of another guest")
	return nil
}

func (s *Soak) tryFrames(ctx context.Context, p *soakProbe) error {
	other := ""
	for _, n := range s.nodes {
		if n.Name != p.placed.Status.Node {
			other = n.Name
		}
	}
	listen, cancel := context.WithCancel(ctx)
	var ears errgroup.Group
	ears.Go(func() error { return s.Frames.Frames(listen, p.mac, p.note) })
	seen := func(what string, cond func(h *sightings) bool) error {
		return waitUntil(ctx, 20*time.Second, 10*time.Millisecond, what, func() (bool, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return cond(&p.heard), nil
		})
	}
	err := seen("frames of "+p.name, func(h *sightings) bool { return len(h.list) > 0 })
	if err == nil {
		err = s.Frames.Forge(ctx, other, p.mac)
	}
	if err == nil {
		err = seen("the forged frame to be seen", func(h *sightings) bool { return h.twice() != "" })
	}
	cancel()
	return errors.Join(err, ears.Wait())
}

func (s *Soak) tryWrites(ctx context.Context, p *soakProbe) error {
	if err := p.stopLoad(ctx); err != nil {
		return err
	}
	if _, _, err := p.readBack(ctx); err != nil {
		return err
	}
	// The next load begins with this number: it writes over what was forged.
	if err := p.post(ctx, fmt.Sprintf("/forge?seq=%d", p.acks.last()+2)); err != nil {
		return err
	}
	if _, _, err := p.readBack(ctx); !errors.Is(err, errs.Fenced) {
		return errs.New(errs.Conflict, "the forged write was not seen (%v)", err)
	}
	if err := p.startLoad(ctx, 5*time.Millisecond); err != nil {
		return err
	}
	if err := p.stopLoad(ctx); err != nil {
		return err
	}
	_, _, err := p.readBack(ctx)
	return err
}
