package smart

import (
	"encoding/binary"
	"encoding/json"

	"roseau/internal/base/errs"
	"roseau/internal/core/diskcare"
)

// report is the part of `smartctl --json --all` that is used.
type report struct {
	Smartctl struct {
		Messages []struct {
			Text string `json:"string"`
		} `json:"messages"`
	} `json:"smartctl"`
	Device struct {
		Protocol string `json:"protocol"`
	} `json:"device"`
	Status *struct {
		Passed bool `json:"passed"`
	} `json:"smart_status"`
	Temperature *struct {
		Current int `json:"current"`
	} `json:"temperature"`
	PowerOn *struct {
		Hours uint64 `json:"hours"`
	} `json:"power_on_time"`
	Endurance *struct {
		Percent int `json:"current_percent"`
	} `json:"endurance_used"`
	Spare *struct {
		Percent int `json:"current_percent"`
		Limit   int `json:"threshold_percent"`
	} `json:"spare_available"`
	NVMeLimit *struct {
		Warning int `json:"warning"`
	} `json:"nvme_composite_temperature_threshold"`
	NVMe *struct {
		Critical uint8  `json:"critical_warning"`
		Spare    int    `json:"available_spare"`
		Limit    int    `json:"available_spare_threshold"`
		Used     int    `json:"percentage_used"`
		Media    uint64 `json:"media_errors"`
		Unsafe   uint64 `json:"unsafe_shutdowns"`
	} `json:"nvme_smart_health_information_log"`
	ATA *struct {
		Table []attribute `json:"table"`
	} `json:"ata_smart_attributes"`
	Grown *uint64 `json:"scsi_grown_defect_list"`
}

// attribute is one ATA SMART attribute. Value counts down from 100, 200 or 253.
type attribute struct {
	ID    int `json:"id"`
	Value int `json:"value"`
	Raw   struct {
		Value uint64 `json:"value"`
	} `json:"raw"`
}

// DecodeSmartctl reads a report of smartctl --json --all. errs.Unavailable: it
// says nothing of the disk, and why.
func DecodeSmartctl(b []byte) (*diskcare.Health, error) {
	var r report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, errs.New(errs.Corrupt, "read report of smartctl: %w", err)
	}
	if r.Status == nil && r.Temperature == nil && r.NVMe == nil && r.ATA == nil {
		why := "the disk does not tell its health"
		if len(r.Smartctl.Messages) > 0 {
			why = r.Smartctl.Messages[0].Text
		}
		return nil, errs.New(errs.Unavailable, "%s", why)
	}
	h := &diskcare.Health{Source: "smartctl", Kind: kindOf(r.Device.Protocol), Failing: r.Status != nil && !r.Status.Passed, Reallocated: r.Grown}
	if r.Temperature != nil && r.Temperature.Current > 0 {
		h.TemperatureC = &r.Temperature.Current
	}
	if r.PowerOn != nil {
		h.PowerOnHours = &r.PowerOn.Hours
	}
	if r.Endurance != nil {
		h.WearPercent = &r.Endurance.Percent
	}
	if r.Spare != nil {
		h.SparePercent, h.SpareLimit = &r.Spare.Percent, &r.Spare.Limit
	}
	if r.NVMeLimit != nil {
		h.WarnAtC = &r.NVMeLimit.Warning
	}
	if n := r.NVMe; n != nil {
		h.SparePercent, h.SpareLimit, h.WearPercent = &n.Spare, &n.Limit, &n.Used
		h.MediaErrors, h.UnsafeShutdowns = &n.Media, &n.Unsafe
		h.Notes = criticalNotes(n.Critical)
		h.Failing = false // smartctl's verdict is this very byte
	}
	if r.ATA != nil {
		for i := range r.ATA.Table {
			r.ATA.Table[i].fill(h)
		}
	}
	return h, nil
}

func kindOf(protocol string) string {
	switch protocol {
	case "NVMe":
		return "nvme"
	case "SCSI":
		return "scsi"
	}
	return "ata"
}

// fill takes the attributes whose meaning is the same on nearly all models. Raw
// values are 48 bits, of which some models use the upper ones for other things.
func (a *attribute) fill(h *diskcare.Health) {
	raw := a.Raw.Value & 0xffffffff
	switch a.ID {
	case 5:
		h.Reallocated = &raw
	case 187, 198:
		if h.MediaErrors == nil || *h.MediaErrors < raw {
			h.MediaErrors = &raw
		}
	case 197:
		h.Pending = &raw
	case 199:
		h.CRCErrors = &raw
	case 177, 202, 231, 233: // wear, as life that is left
		if h.WearPercent == nil && a.Value >= 0 && a.Value <= 100 {
			used := 100 - a.Value
			h.WearPercent = &used
		}
	}
}

// criticalNotes names the bits of NVMe's critical warning.
func criticalNotes(b uint8) (out []string) {
	for i, text := range []string{
		"its spare blocks are used up", "its temperature is out of range", "its reliability is degraded by errors",
		"its medium is read-only", "the backup of its volatile memory has failed", "its persistent memory is unreliable",
	} {
		if b&(1<<i) != 0 {
			out = append(out, text)
		}
	}
	return out
}

// nvmeLogBytes is the length of NVMe log page 02h, "SMART / Health Information".
const nvmeLogBytes = 512

// DecodeNVMe reads NVMe log page 02h. Counters of 128 bits are cut to 64.
func DecodeNVMe(b []byte) *diskcare.Health {
	if len(b) < nvmeLogBytes {
		return &diskcare.Health{Missing: "the disk's health log is too short"}
	}
	le := binary.LittleEndian
	counter := func(off int) *uint64 {
		v := le.Uint64(b[off:])
		if le.Uint64(b[off+8:]) != 0 {
			v = 1<<64 - 1
		}
		return &v
	}
	num := func(v int) *int { return &v }
	h := &diskcare.Health{Source: "nvme log", Kind: "nvme", Notes: criticalNotes(b[0]),
		SparePercent: num(int(b[3])), SpareLimit: num(int(b[4])), WearPercent: num(int(b[5])),
		PowerOnHours: counter(128), UnsafeShutdowns: counter(144), MediaErrors: counter(160)}
	if kelvin := int(le.Uint16(b[1:])); kelvin > 0 {
		h.TemperatureC = num(kelvin - 273)
	}
	return h
}

func decodeLab(b []byte) *diskcare.Health {
	h := new(diskcare.Health)
	if err := json.Unmarshal(b, h); err != nil {
		return &diskcare.Health{Missing: "the lab's health file is broken: " + err.Error()}
	}
	h.Source, h.Missing = "lab", ""
	return h
}
