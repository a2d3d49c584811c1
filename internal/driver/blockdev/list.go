package blockdev

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Device is a disk that the machine has, and everything that stands against
// giving it to somebody new.
type Device struct {
	Path       string      `json:"path"`             // /dev/sda, or the path of a file
	Model      string      `json:"model,omitempty"`  // as the drive says
	Serial     string      `json:"serial,omitempty"` // as the drive says
	SizeBytes  int64       `json:"size_bytes"`
	File       bool        `json:"file,omitempty"` // a regular file
	Rotational bool        `json:"rotational,omitempty"`
	Removable  bool        `json:"removable,omitempty"`
	ReadOnly   bool        `json:"read_only,omitempty"`
	Signatures []Signature `json:"signatures,omitempty"`
	Partitions []string    `json:"partitions,omitempty"` // names the kernel knows
	Mounts     []string    `json:"mounts,omitempty"`     // where it or a partition is mounted
	Swap       bool        `json:"swap,omitempty"`       // it or a partition is swapped to
	Holders    []string    `json:"holders,omitempty"`    // device-mapper, md, bcache devices above it
	Open       bool        `json:"open,omitempty"`       // some process holds it exclusively
	Error      string      `json:"error,omitempty"`      // why it could not be looked at
}

// Blank reports whether nothing stands against using d.
func (d *Device) Blank() bool { return len(d.Uses()) == 0 }

// Uses lists in words what stands against using d.
func (d *Device) Uses() []string {
	var uses []string
	for _, m := range d.Mounts {
		uses = append(uses, "mounted at "+m)
	}
	if d.Swap {
		uses = append(uses, "used as swap")
	}
	if len(d.Holders) > 0 {
		uses = append(uses, "held by "+strings.Join(d.Holders, ", "))
	}
	if d.Open && len(uses) == 0 {
		uses = append(uses, "held open by a process")
	}
	for _, s := range d.Signatures {
		uses = append(uses, "holds "+s.String())
	}
	if len(d.Partitions) > 0 {
		uses = append(uses, "has partitions "+strings.Join(d.Partitions, ", "))
	}
	if d.ReadOnly {
		uses = append(uses, "is read only")
	}
	if d.Error != "" {
		uses = append(uses, "cannot be read: "+d.Error)
	}
	return uses
}

// InUse reports whether something would be disturbed at this moment by writing
// to d; wiping cannot help then.
func (d *Device) InUse() bool {
	return len(d.Mounts) > 0 || d.Swap || len(d.Holders) > 0 || d.Open || d.ReadOnly
}

// Host is where the kernel shows its devices. Tests put a tree of their own.
type Host struct {
	Sys  string // /sys
	Proc string // /proc
	Dev  string // /dev
}

// System is the machine that runs this process.
var System = Host{Sys: "/sys", Proc: "/proc", Dev: "/dev"}

// List returns the whole disks of the machine by name. Devices that are no
// disks to a storage pool (loop, RAM, optical, floppy, device-mapper, md,
// network block) are left out.
func (h Host) List() ([]Device, error) {
	entries, err := os.ReadDir(filepath.Join(h.Sys, "block"))
	if err != nil {
		return nil, fmt.Errorf("list block devices: %w", err)
	}
	var list []Device
	for _, e := range entries {
		if skipDevice(e.Name()) || h.number(e.Name(), "size") == 0 {
			continue
		}
		list = append(list, h.device(e.Name()))
	}
	return list, nil
}

func skipDevice(name string) bool {
	for _, p := range []string{"loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd", "drbd", "bcache", "mtdblock"} {
		rest, ok := strings.CutPrefix(name, p)
		if ok && rest != "" && rest[0] >= '0' && rest[0] <= '9' {
			return true
		}
	}
	return false
}

// Describe looks at the device or file at path.
func (h Host) Describe(path string) (Device, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return Device{}, wrapNotExist(path, err)
	}
	st, err := os.Stat(real)
	if err != nil {
		return Device{}, wrapNotExist(path, err)
	}
	if st.Mode().IsRegular() {
		d := Device{Path: path, SizeBytes: st.Size(), File: true}
		h.look(&d, real)
		return d, nil
	}
	name := filepath.Base(real)
	if _, err := os.Stat(filepath.Join(h.Sys, "block", name)); err == nil {
		d := h.device(name)
		d.Path = path
		return d, nil
	}
	// A partition, or a device of a kind that List leaves out.
	d := Device{Path: path}
	devs := h.devNumbers(filepath.Join("class/block", name))
	h.uses(&d, devs, []string{name})
	h.look(&d, real)
	return d, nil
}

// device describes the whole disk named name in /sys/block.
func (h Host) device(name string) Device {
	d := Device{
		Path:       filepath.Join(h.Dev, name),
		Model:      h.text(name, "device/model"),
		Serial:     h.text(name, "device/serial"),
		SizeBytes:  h.number(name, "size") * 512,
		Rotational: h.number(name, "queue/rotational") == 1,
		Removable:  h.number(name, "removable") == 1,
		ReadOnly:   h.number(name, "ro") == 1,
	}
	if d.Serial == "" {
		d.Serial = h.text(name, "serial") // virtio
	}
	names := []string{name}
	devs := h.devNumbers(filepath.Join("block", name))
	for _, p := range h.children(name) {
		d.Partitions = append(d.Partitions, p)
		names = append(names, p)
		devs = append(devs, h.devNumbers(filepath.Join("block", name, p))...)
	}
	h.uses(&d, devs, names)
	h.look(&d, d.Path)
	return d
}

func (h Host) text(name, attr string) string {
	b, err := os.ReadFile(filepath.Join(h.Sys, "block", name, attr))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (h Host) number(name, attr string) int64 {
	n, _ := strconv.ParseInt(h.text(name, attr), 10, 64)
	return n
}

// children returns the partitions of name, sorted.
func (h Host) children(name string) []string {
	parts, _ := filepath.Glob(filepath.Join(h.Sys, "block", name, name+"*", "partition"))
	var names []string
	for _, p := range parts {
		names = append(names, filepath.Base(filepath.Dir(p)))
	}
	slices.Sort(names)
	return names
}

func (h Host) devNumbers(rel string) []string {
	b, err := os.ReadFile(filepath.Join(h.Sys, rel, "dev"))
	if err != nil {
		return nil
	}
	return []string{strings.TrimSpace(string(b))}
}

// uses fills in mounts, swap and holders of the devices numbered devs.
func (h Host) uses(d *Device, devs, names []string) {
	if b, err := os.ReadFile(filepath.Join(h.Proc, "self/mountinfo")); err == nil {
		for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
			f := strings.Fields(sc.Text())
			if len(f) > 4 && slices.Contains(devs, f[2]) && !slices.Contains(d.Mounts, f[4]) {
				d.Mounts = append(d.Mounts, f[4])
			}
		}
	}
	if b, err := os.ReadFile(filepath.Join(h.Proc, "swaps")); err == nil {
		for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
			f := strings.Fields(sc.Text())
			d.Swap = d.Swap || len(f) > 0 && slices.Contains(names, filepath.Base(f[0]))
		}
	}
	for _, n := range names {
		held, _ := os.ReadDir(filepath.Join(h.Sys, "class/block", n, "holders"))
		for _, e := range held {
			d.Holders = append(d.Holders, e.Name())
		}
	}
}

// look reads the signatures, and tries whether the device is free.
func (h Host) look(d *Device, path string) {
	f, err := os.Open(path)
	if err != nil {
		d.Error = err.Error()
		return
	}
	defer f.Close()
	if d.SizeBytes == 0 {
		d.SizeBytes, _ = f.Seek(0, io.SeekEnd)
	}
	if d.Signatures, err = Identify(f, d.SizeBytes); err != nil {
		d.Error = err.Error()
	}
	d.Open = heldElsewhere(path, d.File)
}

// heldElsewhere asks the kernel without taking anything: an exclusive open that
// is closed at once for a device, a test of the lock for a file.
func heldElsewhere(path string, file bool) bool {
	flags := unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK
	if !file {
		flags |= unix.O_EXCL
	}
	fd, err := unix.Open(path, flags, 0)
	if err != nil {
		return err == unix.EBUSY
	}
	defer unix.Close(fd)
	if !file {
		return false
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lock) == nil && lock.Type != unix.F_UNLCK
}
