// Package locate switches the lamp at a disk's bay, through the kernel's
// enclosure class (SES). A lab shows it in `lab status`.
package locate

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"roseau/internal/base/errs"
)

// Light switches lamps. Zero fields mean the machine's own /sys.
type Light struct {
	Sys string // default "/sys"
	// Lab is a directory in which <name of the disk>.locate stands for a lamp that
	// is on; empty: this is no lab.
	Lab string
}

// Set switches the lamp of the disk at path. errs.Unavailable: it has none that
// can be reached, and what to do instead.
func (l Light) Set(path string, on bool) error {
	if l.Lab != "" {
		return l.lab(path, on)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return errs.New(errs.Unavailable, "locate disk %s: %w", path, err).WithHint("it is not there: look for the bay without a sign of life")
	}
	if st, err := os.Stat(real); err == nil && st.Mode().IsRegular() {
		return errs.New(errs.Unavailable, "locate disk %s: it is a file; no lamp belongs to it", path)
	}
	lamp, err := l.lamp(filepath.Base(real))
	if err != nil {
		return err
	}
	value := "0"
	if on {
		value = "1"
	}
	if err := os.WriteFile(lamp, []byte(value), 0o644); err != nil {
		return errs.New(errs.Unavailable, "locate disk %s: %w", path, err).WithHint("the enclosure refuses: use its own management")
	}
	return nil
}

// lamp finds the enclosure's slot that names the block device.
func (l Light) lamp(name string) (string, error) {
	sys := l.Sys
	if sys == "" {
		sys = "/sys"
	}
	slots, err := filepath.Glob(filepath.Join(sys, "class", "enclosure", "*", "*", "locate"))
	if err != nil {
		return "", err
	}
	for _, s := range slots {
		if _, err := os.Stat(filepath.Join(filepath.Dir(s), "device", "block", name)); err == nil {
			return s, nil
		}
	}
	hint := "find it by its serial number: `roseau disk list -o json`; or by its activity lamp, when it is read"
	if strings.HasPrefix(name, "nvme") {
		hint = "NVMe bays are switched by the machine's management controller; " + hint
	}
	return "", errs.New(errs.Unavailable, "locate disk /dev/%s: no enclosure of this machine offers its lamp to the kernel", name).WithHint("%s", hint)
}

// LabFile is where a lab's lamp of a disk stands.
func LabFile(dir, path string) string {
	return filepath.Join(dir, strings.TrimSuffix(filepath.Base(path), ".img")+".locate")
}

func (l Light) lab(path string, on bool) error {
	f := LabFile(l.Lab, path)
	if on {
		if err := os.MkdirAll(l.Lab, 0o755); err != nil {
			return err
		}
		return os.WriteFile(f, nil, 0o644)
	}
	if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
