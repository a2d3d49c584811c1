package care

import (
	"strings"
	"testing"
	"time"

	"roseau/internal/core/diskcare"
	"roseau/internal/driver/storagectl"
	"roseau/internal/svc/records"
)

func p[T any](v T) *T { return &v }

func TestNewsIsSaidOnce(t *testing.T) {
	quiet := careOf(DiskReport{Health: &diskcare.Health{Source: "x", TemperatureC: p(40)}}, diskcare.Verdict{})
	for _, c := range []struct {
		name   string
		r      DiskReport
		v      diskcare.Verdict
		level  string
		word   string
		urgent bool
	}{
		{"nothing", DiskReport{Health: &diskcare.Health{Source: "x", TemperatureC: p(41)}}, diskcare.Verdict{}, "", "", false},
		{"progress", DiskReport{Care: storagectl.Care{Scrub: storagectl.Scrub{Extents: 3, Total: 9}}, Health: &diskcare.Health{Source: "x"}}, diskcare.Verdict{}, "", "", false},
		{"bad block", DiskReport{Care: storagectl.Care{BadBlocks: 1}}, diskcare.Verdict{}, "warn", "1 blocks could not be read", true},
		{"too many", DiskReport{Care: storagectl.Care{BadBlocks: 17, RetirePropose: true}}, diskcare.Verdict{}, "error", "should be retired", true},
		{"repaired", DiskReport{Care: storagectl.Care{Repaired: 2}}, diskcare.Verdict{}, "info", "repaired", true},
		{"slow", DiskReport{}, diskcare.Verdict{Slow: true, Score: 42, Median: time.Second, Cohort: time.Millisecond}, "warn", "is slow", true},
		{"hot", DiskReport{Health: &diskcare.Health{Source: "x", TemperatureC: p(80)}}, diskcare.Verdict{}, "error", "80 C", true},
		{"worn", DiskReport{Health: &diskcare.Health{Source: "x", WearPercent: p(81)}}, diskcare.Verdict{}, "warn", "81 %", true},
	} {
		now := careOf(c.r, c.v)
		if c.r.Health == nil {
			now.Health, now.Summary, now.TemperatureC = quiet.Health, quiet.Summary, quiet.TemperatureC
		}
		got := news(quiet, now)
		if (c.word == "") != (len(got) == 0) || c.word != "" && (got[0].level != c.level || !strings.Contains(got[0].text, c.word)) {
			t.Errorf("%s: %+v", c.name, got)
		}
		if u := urgent(quiet, now); u != c.urgent {
			t.Errorf("%s: urgent %v", c.name, u)
		}
		if again := news(now, now); len(again) > 0 {
			t.Errorf("%s: said again: %+v", c.name, again)
		}
	}
	if got := news(careOf(DiskReport{Health: &diskcare.Health{Source: "x", TemperatureC: p(80)}}, diskcare.Verdict{}), quiet); len(got) != 1 || got[0].level != "info" {
		t.Errorf("good again: %+v", got)
	}
	// A hot disk's temperature changes its alarm's words, and is not said each time.
	if got := news(careOf(DiskReport{Health: &diskcare.Health{Source: "x", TemperatureC: p(80)}}, diskcare.Verdict{}),
		careOf(DiskReport{Health: &diskcare.Health{Source: "x", TemperatureC: p(81)}}, diskcare.Verdict{})); len(got) != 0 {
		t.Errorf("one degree more: %+v", got)
	}
}

func TestFindings(t *testing.T) {
	if s := Findings(records.PoolScrub{}); s != "nothing bad found" {
		t.Error(s)
	}
	if s := Findings(records.PoolScrub{BadBlocks: 2, Skipped: 1}); !strings.Contains(s, "2 bad blocks") || !strings.Contains(s, "1 volumes were not compared") {
		t.Error(s)
	}
	if _, d := (&records.PoolScrub{}).Every(), (&records.PoolScrub{EveryDays: 7}).Every(); d != 7*24*time.Hour {
		t.Error(d)
	}
}
