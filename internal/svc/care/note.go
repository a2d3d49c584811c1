package care

import (
	"fmt"
	"reflect"
	"slices"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/core/diskcare"
	"roseau/internal/model"
	"roseau/internal/svc/event"
)

func sorted[V any](m map[ids.ID]V) []ids.ID {
	out := make([]ids.ID, 0, len(m))
	for id := range m {
		out = append(out, id)
	}
	slices.SortFunc(out, ids.ID.Compare)
	return out
}

// careOf is what the cluster is told of a disk.
func careOf(r DiskReport, v diskcare.Verdict) *model.DiskCare {
	c := &model.DiskCare{BadBlocks: r.BadBlocks, Repaired: r.Repaired, Metadata: r.Metadata, RetireProposed: r.RetirePropose,
		Scrubbing: r.Scrub.Running, ScrubEnded: r.Scrub.Ended, ScrubFound: r.Scrub.BadBlocks, ScrubBadMeta: r.Scrub.BadMetadata}
	if r.Scrub.Running {
		c.ScrubDone, c.ScrubTotal = r.Scrub.Extents, r.Scrub.Total
	}
	for _, d := range r.Damage {
		c.Damaged += d.Blocks
	}
	if v.Slow {
		c.Slow, c.SlowScore, c.WriteMedian, c.Cohort = true, float64(int(v.Score*10))/10, v.Median.Round(time.Microsecond), v.Cohort.Round(time.Microsecond)
	}
	level, alarms := diskcare.Judge(r.Health)
	c.Health, c.Summary = string(level), r.Health.Summary()
	for _, a := range alarms {
		c.Alarms = append(c.Alarms, a.Text)
	}
	if h := r.Health; h != nil {
		c.Unknown = h.Missing
		c.TemperatureC, c.WearPercent, c.SparePercent, c.MediaErrors = h.TemperatureC, h.WearPercent, h.SparePercent, h.MediaErrors
	}
	return c
}

func changed(a, b *model.DiskCare) bool { return !reflect.DeepEqual(a, b) }

// urgent reports whether more changed than progress and temperature.
func urgent(a, b *model.DiskCare) bool {
	x, y := *a, *b
	for _, c := range []*model.DiskCare{&x, &y} {
		c.ScrubDone, c.ScrubTotal, c.TemperatureC, c.Summary = 0, 0, nil, ""
		c.SlowScore, c.WriteMedian, c.Cohort = 0, 0, 0
		c.Alarms = nil // with the level, and for what is new in it see news
	}
	return changed(&x, &y) || len(a.Alarms) != len(b.Alarms)
}

// alarm is one event.
type alarm struct{ level, text string }

// news lists what a person should hear of.
func news(was, now *model.DiskCare) (out []alarm) {
	say := func(level, format string, args ...any) { out = append(out, alarm{level, fmt.Sprintf(format, args...)}) }
	if now.RetireProposed && !was.RetireProposed {
		say(event.Error, "%d blocks went bad within 24 hours: it should be retired (`roseau disk retire`)", now.BadBlocks)
	} else if now.BadBlocks > was.BadBlocks {
		say(event.Warn, "%d blocks could not be read; %d within 24 hours", now.BadBlocks-was.BadBlocks, now.BadBlocks)
	}
	if n := now.Repaired - was.Repaired; now.Repaired > was.Repaired {
		say(event.Info, "%d blocks repaired from other copies", n)
	}
	if now.Metadata > was.Metadata {
		say(event.Warn, "bad metadata at rest was written again")
	}
	switch {
	case now.Slow && !was.Slow:
		say(event.Warn, "is slow: a write takes %s, those of its like %s (score %.1f for %s)", now.WriteMedian, now.Cohort, now.SlowScore, diskcare.SlowFor)
	case was.Slow && !now.Slow:
		say(event.Info, "is as fast as its like again")
	}
	for _, a := range now.Alarms {
		if !slices.Contains(was.Alarms, a) && (now.Health != was.Health || len(now.Alarms) > len(was.Alarms)) {
			level := event.Warn
			if now.Health == string(diskcare.Critical) {
				level = event.Error
			}
			say(level, "%s", a)
		}
	}
	if was.Health != now.Health && now.Health == string(diskcare.Good) && was.Health != "" && was.Health != string(diskcare.Unknown) {
		say(event.Info, "its health is good again")
	}
	return out
}
