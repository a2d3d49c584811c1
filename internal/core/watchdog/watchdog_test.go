package watchdog

import (
	"strings"
	"testing"
	"time"

	"roseau/internal/base/clock"
)

func TestStep(t *testing.T) {
	lost, held := View{Guards: 2}, View{Guards: 2, Holding: 1}
	start := clock.Instant(time.Hour)
	for name, c := range map[string]struct {
		views []View // one a second
		fed   bool   // at the last
	}{
		"all is well":                              {views: repeat(View{Session: true, Guards: 2, Holding: 2}, 100), fed: true},
		"control plane down, leases held":          {views: repeat(View{Guards: 2, Holding: 2}, 4000), fed: true},
		"control plane down, no machine here":      {views: repeat(View{}, 4000), fed: true},
		"leases lost, session held":                {views: repeat(View{Session: true, Guards: 2}, 4000), fed: true},
		"isolated for 29 s":                        {views: repeat(lost, 30), fed: true},
		"isolated for 30 s":                        {views: repeat(lost, 31), fed: false},
		"isolated for 40 s, then one lease back":   {views: append(repeat(lost, 41), held), fed: true},
		"back for a moment: the time begins again": {views: append(append(repeat(lost, 25), held), repeat(lost, 30)...), fed: true},
	} {
		var s State
		var fed bool
		var why string
		for i, v := range c.views {
			s, fed, why = Step(s, v, start.Add(time.Duration(i)*time.Second))
		}
		if fed != c.fed || fed == strings.Contains(why, "session is lost") {
			t.Errorf("%s: fed %v (%q), want %v", name, fed, why, c.fed)
		}
	}
}

func repeat(v View, n int) (out []View) {
	for range n {
		out = append(out, v)
	}
	return out
}
