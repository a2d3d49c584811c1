package smart

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"roseau/internal/base/errs"
	"roseau/internal/core/diskcare"
)

func fixture(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecodeSmartctl(t *testing.T) {
	h, err := DecodeSmartctl(fixture(t, "nvme.json"))
	if err != nil || h.Kind != "nvme" || *h.TemperatureC != 38 || *h.WarnAtC != 84 || *h.WearPercent != 3 || *h.SparePercent != 100 || *h.MediaErrors != 0 || *h.PowerOnHours != 12000 {
		t.Errorf("%+v %v", h, err)
	}
	if l, _ := diskcare.Judge(h); l != diskcare.Good {
		t.Errorf("level %s", l)
	}
	h, err = DecodeSmartctl(fixture(t, "ata.json"))
	if err != nil || h.Kind != "ata" || !h.Failing || *h.Reallocated != 64 || *h.Pending != 8 || *h.MediaErrors != 2 || *h.CRCErrors != 3 || *h.WearPercent != 88 || *h.TemperatureC != 38 {
		t.Errorf("%+v %v", h, err)
	}
	if l, a := diskcare.Judge(h); l != diskcare.Critical || len(a) != 5 {
		t.Errorf("level %s %v", l, a)
	}
	if _, err = DecodeSmartctl(fixture(t, "denied.json")); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "No such device") {
		t.Errorf("%v", err)
	}
	if _, err = DecodeSmartctl([]byte("smartctl: unknown option")); !errors.Is(err, errs.Corrupt) {
		t.Errorf("%v", err)
	}
}

func TestDecodeNVMe(t *testing.T) {
	b := make([]byte, nvmeLogBytes)
	b[0], b[3], b[4], b[5] = 1<<3, 9, 10, 97
	b[1], b[2] = 0x4b, 0x01 // 331 K
	b[160], b[144], b[128] = 7, 2, 1
	b[136] = 1 // more than 64 bits of hours
	h := DecodeNVMe(b)
	if *h.TemperatureC != 58 || *h.SparePercent != 9 || *h.WearPercent != 97 || *h.MediaErrors != 7 || *h.UnsafeShutdowns != 2 || *h.PowerOnHours != 1<<64-1 {
		t.Errorf("%+v", h)
	}
	if l, a := diskcare.Judge(h); l != diskcare.Critical || !strings.Contains(a[0].Text, "read-only") {
		t.Errorf("%s %v", l, a)
	}
	if n := unsafe.Sizeof(adminCommand{}); n != 72 {
		t.Errorf("the kernel's structure has 72 bytes, ours %d", n)
	}
}

// What is not there is said, and is no error.
func TestAbsenceIsSaid(t *testing.T) {
	r := Reader{Smartctl: "no-such-smartctl"}
	if h := r.Read(t.Context(), "/dev/null"); h.Source != "" || !strings.Contains(h.Missing, "smartmontools") {
		t.Errorf("%+v", h)
	}
	file := filepath.Join(t.TempDir(), "d1.img")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if h := r.Read(t.Context(), file); h.Source != "" || !strings.Contains(h.Missing, "file") {
		t.Errorf("%+v", h)
	}
	r.Lab = t.TempDir()
	if h := r.Read(t.Context(), file); h.Source != "" || !strings.Contains(h.Missing, "lab disk health") {
		t.Errorf("%+v", h)
	}
	if err := os.WriteFile(filepath.Join(r.Lab, "d1.json"), []byte(`{"temperature_c":71,"wear_percent":90}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if h := r.Read(t.Context(), file); h.Source != "lab" || h.Summary() != "warning 71C wear 90%" {
		t.Errorf("%+v", h)
	}
}

func FuzzDecodeSmartctl(f *testing.F) {
	for _, n := range []string{"nvme.json", "ata.json", "denied.json"} {
		b, err := os.ReadFile(filepath.Join("testdata", n))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := DecodeSmartctl(b); err == nil {
			diskcare.Judge(h)
			h.Summary()
		}
	})
}

func FuzzDecodeNVMe(f *testing.F) {
	f.Add(make([]byte, nvmeLogBytes))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) { diskcare.Judge(DecodeNVMe(b)) })
}
