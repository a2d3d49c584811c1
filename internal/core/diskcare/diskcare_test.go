package diskcare

import (
	"strings"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
)

func disk(n byte) ids.ID { return ids.ID{15: n} }

func TestLedgerCountsDistinctBlocksForADay(t *testing.T) {
	var l Ledger
	now := int64(1_000_000)
	for i := range RetireAbove {
		if !l.Add(now, BadBlock{Volume: disk(1), Extent: 3, Block: i}) || l.Add(now+1, BadBlock{Volume: disk(1), Extent: 3, Block: i}) {
			t.Fatalf("block %d", i)
		}
	}
	if l.Propose(now) {
		t.Errorf("%d blocks propose already", l.Recent(now))
	}
	l.Add(now+WindowMS-1, BadBlock{Volume: disk(1), Extent: 4})
	if !l.Propose(now + WindowMS - 1) {
		t.Error("17 blocks do not propose")
	}
	if n := l.Recent(now + WindowMS + 2); n != 1 {
		t.Errorf("a day later %d are left", n)
	}
	// The clock is set back by a year: nothing counts for more than a day from then.
	l.Recent(0)
	if n := l.Recent(WindowMS + 1); n != 0 {
		t.Errorf("%d count for ever", n)
	}
}

// windows runs n windows of 10 s in which disk 1 has that latency.
func windows(d *Detector, now *clock.Instant, n int, sick time.Duration, others ...time.Duration) (last Verdict, changes int) {
	for range n {
		*now = now.Add(SlowWindow)
		s := []Sample{{Disk: disk(1), Class: "ssd", Median: sick, Count: 100}}
		for i, o := range others {
			s = append(s, Sample{Disk: disk(byte(2 + i)), Class: "ssd", Median: o, Count: 100})
		}
		for _, v := range d.Step(*now, s) {
			if v.Changed {
				changes++
			}
			if v.Disk == disk(1) {
				last = v
			}
		}
	}
	return last, changes
}

func TestDetector(t *testing.T) {
	const us = time.Microsecond
	var d Detector
	now := clock.Instant(time.Hour)
	if v, n := windows(&d, &now, 20, 220*us, 200*us, 210*us, 190*us, 205*us, 600*us); v.Slow || n != 0 {
		t.Errorf("one of many: %+v, %d changes", v, n)
	}
	if v, n := windows(&d, &now, 5, 100*time.Millisecond, 200*us, 210*us, 190*us); v.Slow || n != 0 || v.Score < SlowScore {
		t.Errorf("50 s: %+v, %d changes", v, n)
	}
	if v, n := windows(&d, &now, 2, 100*time.Millisecond, 200*us, 210*us, 190*us); !v.Slow || n != 1 {
		t.Errorf("70 s: %+v, %d changes", v, n)
	}
	// A good window in between begins the wait for its end anew.
	windows(&d, &now, 5, 220*us, 200*us, 210*us, 190*us)
	windows(&d, &now, 1, 100*time.Millisecond, 200*us, 210*us, 190*us)
	if v, n := windows(&d, &now, 5, 220*us, 200*us, 210*us, 190*us); !v.Slow || n != 0 {
		t.Errorf("ended too early: %+v, %d changes", v, n)
	}
	if v, n := windows(&d, &now, 2, 220*us, 200*us, 210*us, 190*us); v.Slow || n != 1 {
		t.Errorf("not ended: %+v, %d changes", v, n)
	}
}

func TestDetectorComparesLikeWithLike(t *testing.T) {
	now := clock.Instant(time.Hour)
	ssd := func(n byte, m time.Duration) Sample { return Sample{Disk: disk(n), Class: "ssd", Median: m, Count: 50} }
	hdd := Sample{Disk: disk(9), Class: "hdd", Median: 8 * time.Millisecond, Count: 50}
	few := ssd(1, time.Second)
	few.Count = 2
	resync := ssd(1, time.Second)
	resync.Exclude = true
	for _, c := range []struct {
		name string
		s    []Sample
		want bool
	}{
		{"a hard disk among SSDs", []Sample{hdd, ssd(2, 1e5), ssd(3, 1e5), ssd(4, 1e5)}, false},
		{"two disks have no cohort", []Sample{ssd(1, time.Second), ssd(2, 1e5)}, false},
		{"three have", []Sample{ssd(1, time.Second), ssd(2, 1e5), ssd(3, 1e5)}, true},
		{"too few samples", []Sample{few, ssd(2, 1e5), ssd(3, 1e5), ssd(4, 1e5)}, false},
		{"target of a resync", []Sample{resync, ssd(2, 1e5), ssd(3, 1e5), ssd(4, 1e5)}, false},
		{"equals and 50 us more", []Sample{ssd(1, 150e3), ssd(2, 100e3), ssd(3, 100e3), ssd(4, 100e3)}, false},
		{"everything is slow", []Sample{ssd(1, time.Second), ssd(2, time.Second), ssd(3, 900e6), ssd(4, time.Second)}, false},
	} {
		var d Detector
		slow := false
		for i := range 10 {
			for _, v := range d.Step(now.Add(time.Duration(i)*SlowWindow), c.s) {
				slow = slow || v.Slow
			}
		}
		if slow != c.want {
			t.Errorf("%s: slow %v", c.name, slow)
		}
	}
}

func p[T any](v T) *T { return &v }

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name  string
		h     *Health
		level Level
		text  string // of the first alarm
	}{
		{"nothing known", nil, Unknown, ""},
		{"tool absent", &Health{Missing: "smartctl is not installed"}, Unknown, ""},
		{"good", &Health{Source: "x", TemperatureC: p(38), WearPercent: p(3), SparePercent: p(100), SpareLimit: p(10), MediaErrors: p(uint64(0))}, Good, ""},
		{"hot", &Health{Source: "x", TemperatureC: p(61)}, Warning, "61 C"},
		{"above its own limit", &Health{Source: "x", TemperatureC: p(71), WarnAtC: p(70)}, Critical, "the limit is 70"},
		{"cold, whatever its limit says", &Health{Source: "x", TemperatureC: p(20), WarnAtC: p(0)}, Good, ""},
		{"worn", &Health{Source: "x", WearPercent: p(80)}, Warning, "80 %"},
		{"worn out", &Health{Source: "x", WearPercent: p(130)}, Critical, "130 %"},
		{"spare at its limit", &Health{Source: "x", SparePercent: p(10), SpareLimit: p(10)}, Critical, "spare"},
		{"media errors", &Health{Source: "x", MediaErrors: p(uint64(2))}, Warning, "2 errors"},
		{"pending", &Health{Source: "x", Pending: p(uint64(8))}, Warning, "8 sectors"},
		{"few reallocated", &Health{Source: "x", Reallocated: p(uint64(5))}, Good, ""},
		{"the worst first", &Health{Source: "x", WearPercent: p(85), Failing: true}, Critical, "predicts"},
		{"critical warning", &Health{Source: "x", Notes: []string{"media is read-only"}}, Critical, "read-only"},
	} {
		level, alarms := Judge(c.h)
		if level != c.level || (c.text == "") != (len(alarms) == 0) || c.text != "" && !strings.Contains(alarms[0].Text, c.text) {
			t.Errorf("%s: %s %+v", c.name, level, alarms)
		}
	}
	if s := (&Health{Source: "x", TemperatureC: p(38), WearPercent: p(3)}).Summary(); s != "ok 38C wear 3%" {
		t.Error(s)
	}
}
