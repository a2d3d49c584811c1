package diskcare

import (
	"cmp"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
)

// The slow-disk detector compares each disk with the others of its class, not
// with its own past: a baseline of its own would adapt to the sick state.
//
//	score = (median latency of the disk - median of the cohort's medians) / MAD of the cohort
//
// Example: cohort 200, 210, 190, 205 us and a disk of 4000 us: median 205, MAD
// max(10, floor) -> score > 100. The floor keeps a cohort of equals from calling
// 5 us more an outlier.
const (
	// SlowScore above which a disk counts as slow in a window.
	SlowScore = 6.0
	// SlowFor is how long it must stay above before it is reported, and below
	// before that ends.
	SlowFor = 60 * time.Second
	// SlowWindow is the time that one sample covers.
	SlowWindow = 10 * time.Second
	// minCohort disks of a class must have samples.
	minCohort = 3
	// minSamples of a disk in a window; probe writes alone give five.
	minSamples = 3
)

// madFloor is the least MAD that is believed: a tenth of the cohort's median,
// and 100 us.
func madFloor(median time.Duration) time.Duration { return max(median/10, 100*time.Microsecond) }

// Sample is what one window says of a disk.
type Sample struct {
	Disk    ids.ID
	Class   string        // hdd, ssd, nvme, file: only like is compared with like
	Median  time.Duration // of the writes finished in the window
	Count   int
	Exclude bool // it is the target of a resync or scrub, or is dead: no steady state
}

// Verdict is what is said of a disk after a window.
type Verdict struct {
	Disk    ids.ID
	Score   float64 // 0 if it cannot be judged
	Median  time.Duration
	Cohort  time.Duration // median of the cohort
	Slow    bool
	Changed bool // Slow is news
}

// Detector remembers since when each disk is above or below the limit. The zero
// value is ready.
type Detector struct {
	state map[ids.ID]*slowState
}

type slowState struct {
	slow  bool
	since clock.Instant // since when the windows say otherwise; 0 = they do not
}

// Step judges one window; verdicts are by disk. Disks that are not among the
// samples are forgotten.
func (d *Detector) Step(now clock.Instant, samples []Sample) []Verdict {
	if d.state == nil {
		d.state = map[ids.ID]*slowState{}
	}
	seen := map[ids.ID]bool{}
	var out []Verdict
	for _, s := range samples {
		seen[s.Disk] = true
		v := score(s, samples)
		st := d.state[s.Disk]
		if st == nil {
			st = &slowState{}
			d.state[s.Disk] = st
		}
		v.Changed = st.step(now, v.Score > SlowScore)
		v.Slow = st.slow
		out = append(out, v)
	}
	for id := range d.state { // order does not show
		if !seen[id] {
			delete(d.state, id)
		}
	}
	slices.SortFunc(out, func(a, b Verdict) int { return a.Disk.Compare(b.Disk) })
	return out
}

// step takes what one window says; it reports whether the state changed.
func (s *slowState) step(now clock.Instant, above bool) bool {
	if above == s.slow {
		s.since = 0
		return false
	}
	if s.since == 0 {
		s.since = now
		return false
	}
	if now.Sub(s.since) < SlowFor {
		return false
	}
	s.slow, s.since = above, 0
	return true
}

// score compares a disk with the others of its class.
func score(s Sample, all []Sample) Verdict {
	v := Verdict{Disk: s.Disk, Median: s.Median}
	if s.Exclude || s.Count < minSamples {
		return v
	}
	var others []time.Duration
	for _, o := range all {
		if o.Class == s.Class && o.Count >= minSamples && !o.Exclude && o.Disk != s.Disk {
			others = append(others, o.Median)
		}
	}
	if len(others)+1 < minCohort {
		return v
	}
	v.Cohort = median(others)
	dev := make([]time.Duration, len(others))
	for i, o := range others {
		dev[i] = (o - v.Cohort).Abs()
	}
	mad := max(median(dev), madFloor(v.Cohort))
	v.Score = float64(s.Median-v.Cohort) / float64(mad)
	return v
}

func median(list []time.Duration) time.Duration {
	s := slices.Clone(list)
	slices.SortFunc(s, func(a, b time.Duration) int { return cmp.Compare(a, b) })
	n := len(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}
