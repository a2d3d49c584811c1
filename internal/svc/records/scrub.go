package records

import (
	"time"

	"roseau/internal/base/ids"
)

// Cycle of scrubs, in days.
const (
	ScrubDaysMin     = 7
	ScrubDaysDefault = 14
	ScrubDaysMax     = 30
)

// PoolScrub is /r/scrub/pool/<id>: what is wanted of the scrubs of a pool, and how
// the last one went.
type PoolScrub struct {
	EveryDays   int       `json:"every_days,omitempty"`   // 7 to 30; 0 = 14
	DutyPercent int       `json:"duty_percent,omitempty"` // of the disks' time; 0 = 5
	Paused      bool      `json:"paused,omitempty"`       // by stop, until the next start
	Running     bool      `json:"running"`
	Started     time.Time `json:"started,omitzero"` // of the one that runs, or of the last
	Ended       time.Time `json:"ended,omitzero"`   // of the last one that saw everything; zero: none
	// Findings of the last one that ended.
	BadBlocks   int `json:"bad_blocks"`
	BadMetadata int `json:"bad_metadata"`
	Differ      int `json:"differ"` // blocks whose copies differed although each was sound
	Repaired    int `json:"repaired"`
	Skipped     int `json:"skipped,omitempty"` // volumes that could not be compared
}

// Every is the length of the cycle.
func (p *PoolScrub) Every() time.Duration {
	days := p.EveryDays
	if days == 0 {
		days = ScrubDaysDefault
	}
	return time.Duration(days) * 24 * time.Hour
}

// VolumeScrub is /r/scrub/volume/<id>: the last comparison of a volume's copies.
type VolumeScrub struct {
	Ended    time.Time `json:"ended"`
	Extents  int       `json:"extents"`
	Differ   int       `json:"differ"`
	Repaired int       `json:"repaired"`
	Skipped  string    `json:"skipped,omitempty"` // why it was not compared
}

// PoolScrubKey is the record of a pool's scrubs.
func PoolScrubKey(pool ids.ID) string { return PoolScrubPrefix + pool.String() }

// VolumeScrubKey is the record of a volume's last comparison.
func VolumeScrubKey(vol ids.ID) string { return VolumeScrubPrefix + vol.String() }
