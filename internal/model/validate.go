package model

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
)

// Limits of specs.
const (
	MinVolume    = 4 * size.MiB
	MaxVolume    = 64 * size.TiB
	VolumeAlign  = 4 * size.KiB
	MinMemory    = 32 * size.MiB
	MaxMemory    = 4 * size.TiB
	MaxCPUs      = 64
	MaxVMDisks   = 31 // with the state volume 32, what one transaction takes over
	MaxVMNICs    = 8
	MaxCopies    = 3
	MaxPriority  = 100
	MaxAfter     = 16
	MaxDelay     = 10 * time.Minute
	MaxFailures  = 100
	maxFieldShow = 60
)

// field builds the error of one field: its name, its value, what is expected
// and, as hint, the remedy.
func field(object, name string, value any, want, remedy string) error {
	v := fmt.Sprint(value)
	if len(v) > maxFieldShow {
		v = v[:maxFieldShow] + "…"
	}
	e := errs.New(errs.Invalid, "check %s: %s is %q, want %s", object, name, v, want)
	if remedy != "" {
		e = e.WithHint("%s", remedy)
	}
	return e
}

// CheckSize refuses a volume size that is out of range or no multiple of 4 KiB.
func CheckSize(object string, b size.Bytes) error {
	if b < MinVolume || b > MaxVolume {
		return field(object, "size", b, fmt.Sprintf("%s to %s", MinVolume, MaxVolume), "sizes are written 8GiB, 512MiB or in bytes")
	}
	if b%VolumeAlign != 0 {
		up := (b + VolumeAlign - 1) / VolumeAlign * VolumeAlign
		return field(object, "size", int64(b), "a multiple of 4096 bytes", fmt.Sprintf("the next one is %d", int64(up)))
	}
	return nil
}

// Validate reports the first thing wrong with the spec of a pool.
func (p *Pool) Validate() error {
	o := "pool " + p.Name
	if err := CheckName(KindPool, p.Name); err != nil {
		return err
	}
	if p.Spec.Copies < 1 || p.Spec.Copies > MaxCopies {
		return field(o, "copies", p.Spec.Copies, "1 to 3", "3 copies survive the loss of any two nodes")
	}
	if p.Spec.MinISR < 1 || p.Spec.MinISR > 2 {
		return field(o, "min_isr", p.Spec.MinISR, "1 or 2", "2 stops writing when one copy is left, 1 goes on")
	}
	switch p.Spec.Domain {
	case "", DomainDisk, DomainNode, DomainChassis, DomainRack, DomainSite:
	default:
		return field(o, "domain", p.Spec.Domain, "disk, node, chassis, rack or site", "copies of a block never share one")
	}
	if p.Spec.RebuildAfter < 0 {
		return field(o, "rebuild_after_ns", int64(p.Spec.RebuildAfter), "0 or more", "0 means 15 minutes")
	}
	if p.Spec.MinISR > p.Spec.Copies {
		return field(o, "min_isr", p.Spec.MinISR, fmt.Sprintf("at most copies (%d)", p.Spec.Copies), "")
	}
	return nil
}

// Validate reports the first thing wrong with the spec of a volume.
func (v *Volume) Validate() error {
	o := "volume " + v.Name
	if err := CheckName(KindVolume, v.Name); err != nil {
		return err
	}
	if v.Spec.Pool == "" {
		return field(o, "pool", "", "the name of a pool", "`roseau pool list` shows them")
	}
	if v.Spec.VM != "" && v.Spec.Image != "" {
		return field(o, "image", v.Spec.Image, "empty for a volume of vm "+v.Spec.VM, "a volume belongs to a VM or to an image, not to both")
	}
	return CheckSize(o, v.Spec.Size)
}

// Validate reports the first thing wrong with the spec of a network.
func (n *Network) Validate() error {
	if err := CheckName(KindNetwork, n.Name); err != nil {
		return err
	}
	if n.Spec.Kind != NetworkBridged {
		return field("network "+n.Name, "kind", n.Spec.Kind, "bridged", "other kinds are not in this version")
	}
	return nil
}

// Validate reports the first thing wrong with the spec of a VM.
func (v *VM) Validate() error {
	o, s := "vm "+v.Name, &v.Spec
	if err := CheckName(KindVM, v.Name); err != nil {
		return err
	}
	switch {
	case s.CPUs < 1 || s.CPUs > MaxCPUs:
		return field(o, "cpus", s.CPUs, fmt.Sprintf("1 to %d", MaxCPUs), "")
	case s.Memory < MinMemory || s.Memory > MaxMemory:
		return field(o, "memory", s.Memory, fmt.Sprintf("%s to %s", MinMemory, MaxMemory), "sizes are written 2GiB or 512MiB")
	case s.Memory%size.MiB != 0:
		return field(o, "memory", int64(s.Memory), "whole MiB", fmt.Sprintf("for example %s", s.Memory/size.MiB*size.MiB))
	case len(s.Disks) > MaxVMDisks:
		return field(o, "disks", len(s.Disks), fmt.Sprintf("at most %d", MaxVMDisks), "all disks of a VM change hands in one transaction")
	case len(s.NICs) > MaxVMNICs:
		return field(o, "nics", len(s.NICs), fmt.Sprintf("at most %d", MaxVMNICs), "")
	case s.Priority < -MaxPriority || s.Priority > MaxPriority:
		return field(o, "priority", s.Priority, "-100 to 100", "higher starts first")
	}
	if err := v.validateOrder(o); err != nil {
		return err
	}
	switch s.HA {
	case HAOn, HABestEffort, HAOff:
	default:
		return field(o, "ha", s.HA, "on, best-effort or off", "")
	}
	switch s.Accel {
	case "auto", "kvm", "tcg":
	default:
		return field(o, "accel", s.Accel, "auto, kvm or tcg", "auto takes KVM where it works")
	}
	return v.validateDevices(o)
}

// validateOrder checks what concerns starts; whether the others exist and whether
// they go in a circle is checked by who knows them.
func (v *VM) validateOrder(o string) error {
	s := &v.Spec
	switch {
	case len(s.After) > MaxAfter:
		return field(o, "after", len(s.After), fmt.Sprintf("at most %d VMs", MaxAfter), "")
	case slices.Contains(s.After, v.Name):
		return field(o, "after", v.Name, "other VMs", "a VM cannot wait for itself")
	case s.StartDelay < 0 || s.StartDelay > MaxDelay:
		return field(o, "start_delay_ns", s.StartDelay, "0 to 10m", "")
	case s.StartDelay > 0 && len(s.After) == 0:
		return field(o, "start_delay_ns", s.StartDelay, "0 without --after", "the delay counts from when the VMs of --after run")
	case s.MaxRestarts < 0 || s.MaxRestarts > MaxFailures:
		return field(o, "max_restarts", s.MaxRestarts, "1 to 100, or 0 for 5", "")
	}
	return nil
}

func (v *VM) validateDevices(o string) error {
	volumes, macs := map[string]int{}, map[string]int{}
	for i, d := range v.Spec.Disks {
		name := fmt.Sprintf("disks[%d]", i)
		if d.Volume == "" {
			return field(o, name+".volume", "", "the name of a volume", "")
		}
		if j, dup := volumes[d.Volume]; dup {
			return field(o, name+".volume", d.Volume, fmt.Sprintf("another volume than disks[%d]", j), "a volume is one disk")
		}
		volumes[d.Volume] = i
		if err := CheckSize(o+", "+name, d.Size); err != nil {
			return err
		}
	}
	for i, n := range v.Spec.NICs {
		name := fmt.Sprintf("nics[%d]", i)
		if n.Network == "" {
			return field(o, name+".network", "", "the name of a network", "`roseau network list` shows them")
		}
		if n.MAC == "" {
			continue // drawn at creation
		}
		if err := CheckMAC(o+", "+name, n.MAC); err != nil {
			return err
		}
		if j, dup := macs[strings.ToLower(n.MAC)]; dup {
			return field(o, name+".mac", n.MAC, fmt.Sprintf("another address than nics[%d]", j), "leave it empty to have one drawn")
		}
		macs[strings.ToLower(n.MAC)] = i
	}
	return nil
}

// CheckMAC refuses what is not a unicast Ethernet address.
func CheckMAC(object, mac string) error {
	const want = "six pairs of hexadecimal digits, 52:54:00:12:34:56"
	hw, err := net.ParseMAC(mac)
	if err != nil || len(hw) != 6 {
		return field(object, "mac", mac, want, "leave it empty to have one drawn")
	}
	if hw[0]&1 != 0 {
		return field(object, "mac", mac, "a unicast address: the first byte even", "leave it empty to have one drawn")
	}
	if hw.String() == "00:00:00:00:00:00" {
		return field(object, "mac", mac, "not all zeros", "leave it empty to have one drawn")
	}
	return nil
}
