package diskcare

import (
	"fmt"
	"strings"
)

// Health is what a disk says of itself. Pointers are nil where it does not say.
type Health struct {
	Source string `json:"source,omitempty"` // "smartctl", "nvme log", "lab"; empty: nothing is known
	// Missing says why nothing is known, in words for people.
	Missing string `json:"missing,omitempty"`
	Kind    string `json:"kind,omitempty"` // ata, nvme, scsi
	// Failing: the drive itself predicts its failure.
	Failing         bool     `json:"failing,omitempty"`
	TemperatureC    *int     `json:"temperature_c,omitempty"`
	WarnAtC         *int     `json:"warn_at_c,omitempty"` // the drive's own limit
	WearPercent     *int     `json:"wear_percent,omitempty"`
	SparePercent    *int     `json:"spare_percent,omitempty"`
	SpareLimit      *int     `json:"spare_limit_percent,omitempty"` // the drive's own
	MediaErrors     *uint64  `json:"media_errors,omitempty"`        // NVMe media errors; ATA uncorrectable
	Reallocated     *uint64  `json:"reallocated,omitempty"`         // sectors
	Pending         *uint64  `json:"pending,omitempty"`             // sectors waiting to be reallocated
	CRCErrors       *uint64  `json:"crc_errors,omitempty"`          // of the cable
	PowerOnHours    *uint64  `json:"power_on_hours,omitempty"`
	UnsafeShutdowns *uint64  `json:"unsafe_shutdowns,omitempty"`
	Notes           []string `json:"notes,omitempty"` // the drive's own critical warnings
}

// Level is how bad something is.
type Level string

// The levels. Unknown: the disk or the machine does not tell.
const (
	Unknown  Level = "unknown"
	Good     Level = "ok"
	Warning  Level = "warning"
	Critical Level = "critical"
)

// Thresholds that are ours; the drive's own go before them.
const (
	HotC         = 60  // an SSD throttles at about 70, a hard disk ages quickly above 55
	CriticalC    = 75  //
	WearWarn     = 80  // percent of the rated endurance
	WearCritical = 95  //
	SpareWarn    = 20  // percent of the spare blocks
	PendingWarn  = 1   // sectors
	MediaWarn    = 1   // media errors
	ReallocWarn  = 50  // sectors: a few are normal on a hard disk
	CRCWarn      = 100 // cable errors
)

// Alarm is one thing that stands against a disk.
type Alarm struct {
	Level Level  `json:"level"`
	Text  string `json:"text"`
}

// Judge lists what stands against a disk, the worst first, and the level of the
// whole.
func Judge(h *Health) (Level, []Alarm) {
	if h == nil || h.Source == "" {
		return Unknown, nil
	}
	var crit, warn []Alarm
	add := func(critical bool, format string, args ...any) {
		if critical {
			crit = append(crit, Alarm{Critical, fmt.Sprintf(format, args...)})
		} else {
			warn = append(warn, Alarm{Warning, fmt.Sprintf(format, args...)})
		}
	}
	if h.Failing {
		add(true, "the drive predicts its own failure: replace it")
	}
	for _, n := range h.Notes {
		add(true, "the drive warns: %s", n)
	}
	if t := h.TemperatureC; t != nil {
		limit := CriticalC
		if h.WarnAtC != nil && *h.WarnAtC > 0 {
			limit = *h.WarnAtC
		}
		switch {
		case *t >= limit:
			add(true, "%d C, the limit is %d C: see to its cooling", *t, limit)
		case *t >= HotC:
			add(false, "%d C: see to its cooling", *t)
		}
	}
	if w := h.WearPercent; w != nil && *w >= WearWarn {
		add(*w >= WearCritical, "%d %% of its rated endurance is used: plan its replacement", *w)
	}
	if s := h.SparePercent; s != nil {
		limit := 0
		if h.SpareLimit != nil {
			limit = *h.SpareLimit
		}
		if *s <= limit {
			add(true, "%d %% of its spare blocks are left, its limit is %d %%: replace it", *s, limit)
		} else if *s < SpareWarn {
			add(false, "%d %% of its spare blocks are left", *s)
		}
	}
	count := func(n *uint64, from uint64, format string) {
		if n != nil && *n >= from {
			add(false, format, *n)
		}
	}
	count(h.MediaErrors, MediaWarn, "%d errors of its medium so far")
	count(h.Pending, PendingWarn, "%d sectors cannot be read and wait to be reallocated")
	count(h.Reallocated, ReallocWarn, "%d sectors are reallocated")
	count(h.CRCErrors, CRCWarn, "%d transfer errors: see to its cable")
	alarms := append(crit, warn...)
	switch {
	case len(crit) > 0:
		return Critical, alarms
	case len(warn) > 0:
		return Warning, alarms
	}
	return Good, nil
}

// Summary is one line for a table: "ok 38C wear 3%".
func (h *Health) Summary() string {
	level, _ := Judge(h)
	parts := []string{string(level)}
	if h != nil && h.TemperatureC != nil {
		parts = append(parts, fmt.Sprintf("%dC", *h.TemperatureC))
	}
	if h != nil && h.WearPercent != nil {
		parts = append(parts, fmt.Sprintf("wear %d%%", *h.WearPercent))
	}
	return strings.Join(parts, " ")
}
