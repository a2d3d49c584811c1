// Package vmplan compiles what a VM should be into the command line of QEMU, as
// data. It starts nothing and reads nothing: the guard carries the plan out,
// golden tests compare its text form.
//
// Both ends of a migration must compile the same machine: everything that the
// guest can see depends on Spec alone, in a fixed order, with explicit PCI
// addresses, and the machine type is versioned.
package vmplan

import (
	"fmt"
	"strconv"
	"strings"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
)

// Accel is the accelerator that runs the guest's instructions.
type Accel string

// The accelerators.
const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
)

// Defaults of the machine that a guest sees.
const (
	// MachineType is versioned, so that a newer QEMU shows the same machine. 7.2
	// is the oldest supported.
	MachineType = "pc-q35-7.2"
	// CPUModelTCG is what every build of QEMU emulates completely; with `max` a
	// guest could not move to another version.
	CPUModelTCG = "qemu64"
	// CPUModelKVM is the common denominator of machines since 2008.
	CPUModelKVM = "Nehalem"
	// ReconnectDelaySeconds is how long QEMU stalls the guest's I/O while the NBD
	// server is away before it reports an error. Long: an error would be a lie.
	ReconnectDelaySeconds = 3600
)

// tcgUnalign is added to the RAM of a guest under TCG. QEMU 7.2 clears dirty
// bits of a RAM block whose length is a multiple of 256 KiB 64 pages at a time
// without telling TCG, and then misses later stores: a live migration corrupts
// the guest. An odd length takes the correct path. The guest does not notice:
// firmware reports RAM in its own granularity.
const tcgUnalign = 8 * size.KiB

// Spec is a VM on one node. Paths are absolute.
type Spec struct {
	Name     string     `json:"name"`
	UUID     string     `json:"uuid"`
	CPUs     int        `json:"cpus"`
	Memory   size.Bytes `json:"memory"` // as a person asked for
	Accel    Accel      `json:"accel"`
	CPUModel string     `json:"cpu_model,omitempty"` // empty: the accelerator's default
	Disks    []Disk     `json:"disks,omitempty"`     // boot order
	NICs     []NIC      `json:"nics,omitempty"`
	Incoming bool       `json:"incoming,omitempty"` // wait for a migration stream

	QMPSocket    string `json:"qmp_socket"`
	SerialSocket string `json:"serial_socket"`
	SerialLog    string `json:"serial_log"`
	VNCSocket    string `json:"vnc_socket"`
}

// Disk is an NBD export on a unix socket.
type Disk struct {
	Socket string     `json:"socket"`
	Export string     `json:"export"`
	Serial string     `json:"serial"` // at most 20 bytes reach the guest
	Size   size.Bytes `json:"size"`
}

// NIC is a tap that the launcher opened.
type NIC struct {
	FD  int    `json:"fd"` // number in QEMU, 3 and up
	MAC string `json:"mac"`
}

// Plan is a command line.
type Plan struct {
	Argv []string // without the program
}

// Text is the plan with one option a line.
func (p Plan) Text() string {
	var b strings.Builder
	for i, a := range p.Argv {
		switch {
		case i == 0:
		case strings.HasPrefix(a, "-"):
			b.WriteByte('\n')
		default:
			b.WriteByte(' ')
		}
		b.WriteString(a)
	}
	b.WriteByte('\n')
	return b.String()
}

// NodeName is the block node of disk i, for block-set-io-throttle and friends.
func NodeName(i int) string { return "disk" + strconv.Itoa(i) }

// DeviceName is the QOM id of disk i's device.
func DeviceName(i int) string { return "vd" + strconv.Itoa(i) }

// RAM is what QEMU is told for memory under an accelerator.
func RAM(memory size.Bytes, a Accel) size.Bytes {
	if a == TCG {
		return memory + tcgUnalign
	}
	return memory
}

// Limits bound what a QEMU may take from its node.
type Limits struct {
	Memory    size.Bytes // of the process, with what the kernel keeps for it
	CPUWeight int        // 100 is one ordinary process
	Pids      int        // threads
}

// Limits returns the bounds of a VM's QEMU. They hold back a QEMU that leaks or
// was taken over by its guest, not one that works: memory is the guest's RAM, a
// sixteenth of it for page tables and dirty bitmaps, the translation cache, and
// 384 MiB (4 GiB under KVM: 4.625 GiB). A vCPU weighs as much as a process, and
// so do the device threads together.
func (s *Spec) Limits() Limits {
	const overhead, threads, top = 384 * size.MiB, 512, 10000
	m := RAM(s.Memory, s.Accel) + s.Memory/16 + overhead
	if s.Accel == TCG {
		m += size.Bytes(s.translationCacheMiB()) * size.MiB
	}
	return Limits{Memory: (m + size.MiB - 1) / size.MiB * size.MiB, CPUWeight: min(100*(s.CPUs+1), top), Pids: threads}
}

// translationCacheMiB is tb-size: more than the guest's code is only memory.
func (s *Spec) translationCacheMiB() int {
	if s.Memory > 512*size.MiB {
		return 128
	}
	return 32
}

// PCI slots, fixed so that a disk added later moves nothing.
const (
	slotVGA  = 0x01
	slotRNG  = 0x02
	slotNIC  = 0x03 // to 0x0a
	maxNICs  = 8
	slotDisk = 0x0b // to 0x1e; 0x1f is the chipset's; functions multiply by 8
	maxDisks = 31
)

// Compile checks s and returns the command line.
func Compile(s Spec) (Plan, error) {
	if err := s.check(); err != nil {
		return Plan{}, err
	}
	p := &builder{}
	p.add("-name", "guest="+escape(s.Name)+",debug-threads=on")
	p.add("-uuid", s.UUID)
	p.add("-nodefaults")
	p.add("-no-user-config")
	p.add("-S") // the guard says when the guest may run, always
	p.add("-machine", MachineType+",usb=off,dump-guest-core=off")
	s.compute(p)
	p.add("-msg", "timestamp=on")
	p.add("-display", "none")
	// A guest that powers off stays, paused, until its guard has released its
	// volumes: a guard that was away at that moment still learns what happened.
	p.add("-action", "reboot=reset,shutdown=pause,panic=pause")
	p.add("-boot", "strict=on")
	p.add("-chardev", "socket,id=qmp0,server=on,wait=off,path="+escape(s.QMPSocket))
	p.add("-mon", "chardev=qmp0,mode=control")
	p.add("-chardev", "socket,id=serial0,server=on,wait=off,logappend=on,path="+escape(s.SerialSocket)+
		",logfile="+escape(s.SerialLog))
	p.add("-device", "isa-serial,chardev=serial0,index=0")
	p.add("-vnc", "unix:"+escape(s.VNCSocket))
	p.add("-device", fmt.Sprintf("VGA,id=vga0,vgamem_mb=8,bus=pcie.0,addr=%#x", slotVGA))
	p.add("-object", "rng-builtin,id=rng0")
	p.add("-device", fmt.Sprintf("virtio-rng-pci,rng=rng0,id=rng1,romfile=,bus=pcie.0,addr=%#x", slotRNG))
	for i, n := range s.NICs {
		p.nic(i, n)
	}
	for i, d := range s.Disks {
		p.disk(i, d)
	}
	if s.Incoming {
		p.add("-incoming", "defer")
	}
	p.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	return Plan{Argv: p.argv}, nil
}

func (s *Spec) check() error {
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "plan vm %s: %s", s.Name, fmt.Sprintf(format, args...))
	}
	switch {
	case s.CPUs < 1 || s.CPUs > 64:
		return bad("cpus is %d, want 1 to 64", s.CPUs)
	case s.Memory < size.MiB || s.Memory%size.MiB != 0:
		return bad("memory is %s, want whole MiB", s.Memory)
	case s.Accel != KVM && s.Accel != TCG:
		return bad("accelerator is %q, want kvm or tcg", s.Accel)
	case len(s.NICs) > maxNICs:
		return bad("%d network interfaces, at most %d", len(s.NICs), maxNICs)
	case len(s.Disks) > maxDisks:
		return bad("%d disks, at most %d", len(s.Disks), maxDisks)
	}
	return nil
}

// CPUModel is QEMU's name of the CPU that a machine gets: model, or the
// accelerator's default if that is empty.
func CPUModel(accel Accel, model string) string {
	switch {
	case model != "":
		return model
	case accel == TCG:
		return CPUModelTCG
	}
	return CPUModelKVM
}

// compute adds processor and memory.
func (s *Spec) compute(p *builder) {
	switch {
	case s.Accel == TCG:
		p.add("-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", s.translationCacheMiB()))
	default:
		p.add("-accel", "kvm")
	}
	p.add("-cpu", escape(CPUModel(s.Accel, s.CPUModel)))
	p.add("-smp", fmt.Sprintf("cpus=%d,sockets=1,cores=%d,threads=1", s.CPUs, s.CPUs))
	p.add("-m", fmt.Sprintf("size=%dk", RAM(s.Memory, s.Accel)/size.KiB))
}

type builder struct{ argv []string }

func (p *builder) add(args ...string) { p.argv = append(p.argv, args...) }

func (p *builder) nic(i int, n NIC) {
	p.add("-netdev", fmt.Sprintf("tap,id=net%d,fd=%d,vhost=off", i, n.FD))
	p.add("-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,id=nic%d,mac=%s,romfile=,bus=pcie.0,addr=%#x",
		i, i, n.MAC, slotNIC+i))
}

func (p *builder) disk(i int, d Disk) {
	p.add("-blockdev", fmt.Sprintf("driver=nbd,node-name=%s,server.type=unix,server.path=%s,export=%s,"+
		"reconnect-delay=%d,open-timeout=30,cache.direct=on,cache.no-flush=off,discard=unmap",
		NodeName(i), escape(d.Socket), escape(d.Export), ReconnectDelaySeconds))
	serial := d.Serial
	if len(serial) > 20 {
		serial = serial[:20]
	}
	// The geometry is given so that QEMU does not read the first sector to guess
	// it: it starts while the volume still waits for the old writer's lease.
	const heads, sectors = 16, 63
	cylinders := min(max(int64(d.Size)/512/(heads*sectors), 1), 16383)
	p.add("-device", fmt.Sprintf("virtio-blk-pci,drive=%s,id=%s,serial=%s,bootindex=%d,num-queues=1,write-cache=on,"+
		"werror=stop,rerror=stop,discard=on,physical_block_size=4096,cyls=%d,heads=%d,secs=%d,bus=pcie.0,addr=%#x.%d,multifunction=on",
		NodeName(i), DeviceName(i), escape(serial), i+1, cylinders, heads, sectors, slotDisk+i/8, i%8))
}

// escape doubles commas, which separate properties.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
