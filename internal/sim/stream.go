package sim

import (
	"math/rand/v2"
	"time"
)

// stream is a source of events beside the faults. It draws from a generator of its
// own: whether it is on, and what it draws, changes nothing of what others draw of the
// same seed.
type stream struct {
	w     *world
	rng   *rand.Rand
	on    bool
	every time.Duration // from one event to the next, on average
}

// newStream: half of the seeds have the events, from least to least+spread apart, and
// no scenario has. salt tells the streams of a seed apart.
func newStream(w *world, salt uint64, least, spread time.Duration) stream {
	s := stream{w: w, rng: rand.New(rand.NewPCG(w.opt.Seed, salt))}
	s.on = s.rng.IntN(2) == 0 && w.opt.Scenario == nil
	s.every = least + time.Duration(s.rng.Int64N(int64(spread)))
	return s
}

// bias has the events so far apart, whatever was drawn. Zero: there are none.
func (s *stream) bias(every time.Duration) {
	if s.on = every > 0; s.on {
		s.every = every
	}
}

// run calls act again and again until the world calms down, if the stream is on.
func (s *stream) run(act func()) {
	if !s.on {
		return
	}
	s.w.after(s.every/2+time.Duration(s.rng.Int64N(int64(s.every))), func() {
		if !s.w.calm {
			act()
			s.run(act)
		}
	})
}
