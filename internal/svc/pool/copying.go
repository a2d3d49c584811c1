package pool

import (
	"fmt"
	"strings"

	"roseau/internal/core/place"
	"roseau/internal/core/repl"
	"roseau/internal/model"
	"roseau/internal/svc/records"
)

// copying says in one line how the copies of a pool are: from the records, so it
// is what the planner of repairs sees.
func (v *View) copying(p *model.Pool) string {
	var last, degraded, rebuilding, moving int
	for _, vol := range v.Volumes {
		if vol.Cfg.Pool != p.ID {
			continue
		}
		in := records.Health(vol, v.Names, nil).Copies
		rebuild, move := false, false
		for _, o := range vol.Own.Out {
			rebuild = rebuild || o.Reason == repl.OutRebuild
			move = move || o.Reason == repl.OutMoving
		}
		switch {
		case in == 1 && vol.Cfg.Copies > 1:
			last++
		case in < vol.Cfg.Copies:
			degraded++
		}
		if rebuild {
			rebuilding++
		} else if move {
			moving++
		}
	}
	var parts []string
	for _, x := range []struct {
		n    int
		text string
	}{{last, "with one copy left"}, {degraded, "degraded"}, {rebuilding, "being rebuilt"}, {moving, "moving"}} {
		if x.n > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", plural(x.n, "volume"), x.text))
		}
	}
	if len(parts) > 0 {
		return strings.Join(parts, ", ")
	}
	if _, more := place.Balance(v.Disks[p.ID], v.rows(p)); more {
		return "in sync, to be balanced"
	}
	return "in sync, balanced"
}

func (v *View) rows(p *model.Pool) []place.Row {
	var rows []place.Row
	for id, vol := range v.Volumes {
		if vol.Cfg.Pool == p.ID {
			for s := range vol.Seg.Map {
				rows = append(rows, place.Row{Volume: id, Segment: s, Disks: vol.Seg.Row(s), Busy: len(vol.Own.Out) > 0})
			}
		}
	}
	return rows
}
