package guard

import (
	"strings"
	"testing"
	"time"

	"roseau/internal/base/size"
)

func TestRemaining(t *testing.T) {
	for _, c := range []struct {
		left, rate, dirty int64
		want              time.Duration
	}{
		{0, 10, 0, 0}, {100, 10, 0, 10 * time.Second}, {100, 10, 5, 20 * time.Second}, {100, 10, 10, 0}, {100, 0, 0, 0},
	} {
		if got := remaining(c.left, c.rate, c.dirty); got != c.want {
			t.Errorf("%d left, %d sent, %d dirtied: %v, want %v", c.left, c.rate, c.dirty, got, c.want)
		}
	}
}

// TestHopeless: a stream is given up only if everything was tried for long.
func TestHopeless(t *testing.T) {
	base := func() streamInfo {
		in := streamInfo{Status: "active", Throttle: maxThrottle}
		in.RAM.Syncs, in.RAM.Remaining = hopelessRounds, 300<<20
		return in
	}
	const rate, dirty = 100 * size.MiB, 150 * size.MiB
	why := hopeless(base(), rate, dirty, hopelessAfter, 0)
	for _, w := range []string{"does not converge", "80 %", "300MiB are left", "100MiB/s are sent", "150MiB/s dirtied"} {
		if !strings.Contains(why, w) {
			t.Errorf("%q lacks %q", why, w)
		}
	}
	for name, change := range map[string]func(in *streamInfo, age *time.Duration){
		"young":            func(_ *streamInfo, age *time.Duration) { *age = hopelessAfter - time.Second },
		"its first rounds": func(in *streamInfo, _ *time.Duration) { in.RAM.Syncs = 3 },
		"not slowed down":  func(in *streamInfo, _ *time.Duration) { in.Throttle = 20 },
		"fits the limit":   func(in *streamInfo, _ *time.Duration) { in.RAM.Remaining = 150 << 20 },
		"switching":        func(in *streamInfo, _ *time.Duration) { in.Status = "pre-switchover" },
	} {
		in, age := base(), hopelessAfter
		if change(&in, &age); hopeless(in, rate, dirty, age, 0) != "" {
			t.Errorf("%s: given up", name)
		}
	}
	// With a patience it is over then, whatever was tried, but not when the end is near.
	young := base()
	young.RAM.Syncs, young.Throttle = 2, 0
	const patience = 20 * time.Second
	if hopeless(young, rate, dirty, patience-time.Second, patience) != "" {
		t.Error("given up before its time")
	}
	if why := hopeless(young, rate, dirty, patience, patience); !strings.Contains(why, "after 20s and 2 rounds") {
		t.Errorf("at its time: %q", why)
	}
	young.RAM.Remaining = 150 << 20
	if hopeless(young, rate, dirty, patience, patience) != "" {
		t.Error("given up although the rest fits into the downtime")
	}
}
