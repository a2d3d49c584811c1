package quorum

import (
	"fmt"
	"testing"

	"roseau/internal/base/ids"
)

// members reads "aVb.cV-": a name, V if it votes, . or - : - means gone.
func members(spec string) []Member {
	var out []Member
	for i := 0; i+2 < len(spec)+1; i += 3 {
		out = append(out, Member{ID: ids.ID{0: byte(i + 1)}, Name: spec[i : i+1], Voter: spec[i+1] == 'V', Alive: spec[i+2] == '+', Order: int64(i)})
	}
	return out
}

func TestCounts(t *testing.T) {
	got := ""
	for n := 0; n <= 7; n++ {
		got += fmt.Sprintf("%d/%d ", Voters(n), WitnessVotes(Voters(n)))
	}
	if want := "0/0 1/0 2/1 3/2 3/2 5/0 5/0 5/0 "; got != want {
		t.Errorf("got %s want %s", got, want)
	}
}

func TestPlan(t *testing.T) {
	for _, tt := range []struct{ spec, want string }{
		{"aV+", ""},
		{"aV+b.+", "+b 2 nodes should have 2 voters"},
		{"aV+bV+cV+", ""},
		{"aV+bV+cV+d.+", ""},
		{"aV+bV+cV+d.+e.+", "+d 5 nodes should have 5 voters"},
		{"aV+bV+cV-d.+", "+d d votes in place of c, which is gone"},
		{"aV+bV+cV-dV+", "-c c is gone and 3 voters are enough"},
		{"aV+bV-cV-d.+", ""},
		{"aV+bV+cV-", ""},
	} {
		ms := members(tt.spec)
		c := Plan(ms)
		got := ""
		for _, m := range ms {
			if m.ID == c.Promote {
				got = "+" + m.Name + " " + c.Why
			}
			if m.ID == c.Demote {
				got = "-" + m.Name + " " + c.Why
			}
		}
		if got != tt.want {
			t.Errorf("%s: got %q want %q", tt.spec, got, tt.want)
		}
	}
}

func TestOutlook(t *testing.T) {
	for _, tt := range []struct{ spec, want string }{
		{"aV+", "one voter: its loss stops changes (running machines go on)"},
		{"aV+bV+", "no more voter may fail: a and b must stay up for changes and restarts"},
		{"aV+bV+cV+", "any 1 of a, b, c may fail"},
		{"aV+bV+cV-", "c gone; no more voter may fail: a and b must stay up for changes and restarts"},
		{"aV+bV-cV-", "b and c gone; no majority (1 of 3 votes): changes are stopped, running machines go on"},
		{"aV+bV+cV+dV+eV-f.+", "e gone; any 1 of a, b, c, d may fail"},
	} {
		if got := Outlook(members(tt.spec)); got != tt.want {
			t.Errorf("%s: got %q want %q", tt.spec, got, tt.want)
		}
	}
}
