package qemuimg

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"roseau/internal/base/size"
)

func TestDetect(t *testing.T) {
	tar := make([]byte, 512)
	copy(tar[257:], "ustar")
	iso := make([]byte, HeadBytes)
	copy(iso[32769:], "CD001")
	for head, want := range map[string]string{
		"QFI\xfb\x00\x00\x00\x03": "qcow2", "QFI\xfb\x00\x00\x00\x01": "qcow", "KDMV....": "vmdk", "vhdxfile": "vhdx",
		"\x1f\x8b\x08": "gzip", "": "raw", "\xeb\x63\x90": "raw", string(tar): "tar", string(iso): "iso",
	} {
		if got := Detect([]byte(head)); got != want {
			t.Errorf("%.8q: got %s, want %s", head, got, want)
		}
	}
}

func TestScanProgress(t *testing.T) {
	var got []string
	scanProgress(strings.NewReader("    (0.00/100%)\r    (12.50/100%)\r    (100.00/100%)\r"), func(p float64) { got = append(got, fmt.Sprint(p)) })
	if s := strings.Join(got, " "); s != "0 12.5 100" {
		t.Error(s)
	}
}

// TestRealConvert copies with the qemu-img that is installed.
func TestRealConvert(t *testing.T) {
	if _, err := exec.LookPath(Binary); err != nil {
		t.Skip("qemu-img is not installed")
	}
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "b.raw")
	if out, err := exec.Command(Binary, "create", "-f", "qcow2", src, "8M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	i, err := Inspect(t.Context(), src, "qcow2")
	if err != nil || i.VirtualSize != 8*size.MiB || i.Backing != "" {
		t.Fatalf("%+v, %v", i, err)
	}
	if err := os.WriteFile(dst, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	last := -1.0
	if err := (Convert{Source: src, SourceFormat: "qcow2", Target: dst, TargetIsZero: true}).Run(t.Context(), func(p float64) { last = p }); err != nil {
		t.Fatal(err)
	}
	if last != 100 {
		t.Errorf("last progress %v", last)
	}
	if _, err := Inspect(t.Context(), dst, "qcow2"); err == nil {
		t.Error("a raw file is no qcow2")
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add([]byte(`{"virtual-size": 8388608, "format": "qcow2", "format-specific": {"type": "qcow2", "data": {"data-file": "x"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if i, err := ParseInfo(data); err == nil && i.VirtualSize < 0 {
			t.Fatal("negative size")
		}
	})
}

func FuzzDetect(f *testing.F) {
	f.Add([]byte("QFI\xfb"))
	f.Fuzz(func(t *testing.T, data []byte) { Detect(data) })
}
