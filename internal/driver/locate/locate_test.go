package locate

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"roseau/internal/base/errs"
)

func TestEnclosure(t *testing.T) {
	sys := t.TempDir()
	for _, slot := range []string{"0:0:8:0/Slot 01", "0:0:8:0/Slot 02"} {
		dir := filepath.Join(sys, "class", "enclosure", slot)
		block := map[string]string{"0:0:8:0/Slot 01": "sda", "0:0:8:0/Slot 02": "sdb"}[slot]
		if err := os.MkdirAll(filepath.Join(dir, "device", "block", block), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "locate"), []byte("0\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l := Light{Sys: sys}
	lamp, err := l.lamp("sdb")
	if err != nil || !strings.Contains(lamp, "Slot 02") {
		t.Fatalf("%s %v", lamp, err)
	}
	if _, err := l.lamp("nvme0n1"); !errors.Is(err, errs.Unavailable) || !strings.Contains(errs.Hint(err), "management controller") {
		t.Errorf("%v", err)
	}
	// A device node that leads to sdb switches that slot and no other.
	dev := filepath.Join(sys, "sdb")
	if err := os.Symlink("/dev/null", filepath.Join(sys, "null")); err != nil {
		t.Fatal(err)
	}
	if err := l.Set(filepath.Join(sys, "null"), true); !errors.Is(err, errs.Unavailable) {
		t.Errorf("a device without a slot: %v", err)
	}
	if err := os.WriteFile(dev, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.Set(dev, true); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "file") {
		t.Errorf("a file: %v", err)
	}
}

func TestLab(t *testing.T) {
	l := Light{Lab: filepath.Join(t.TempDir(), "lamps")}
	for _, on := range []bool{true, true, false, false} {
		if err := l.Set("/x/d1.img", on); err != nil {
			t.Fatal(err)
		}
		_, err := os.Stat(LabFile(l.Lab, "d1"))
		if (err == nil) != on {
			t.Errorf("on %v: %v", on, err)
		}
	}
}
