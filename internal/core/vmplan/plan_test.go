package vmplan

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"roseau/internal/base/size"
)

func TestGolden(t *testing.T) {
	datadriven.RunTest(t, "testdata/plans", func(t *testing.T, d *datadriven.TestData) string {
		var s Spec
		dec := json.NewDecoder(strings.NewReader(d.Input))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&s); err != nil {
			d.Fatalf(t, "%v", err)
		}
		p, err := Compile(s)
		if err != nil {
			return err.Error() + "\n"
		}
		return p.Text()
	})
}

// Under TCG no RAM size may be a multiple of 256 KiB (see tcgUnalign).
func TestRAMUnaligned(t *testing.T) {
	for m := 32 * size.MiB; m < 64*size.GiB; m = m*3/2/size.MiB*size.MiB + size.MiB {
		if RAM(m, TCG)%(256*size.KiB) == 0 {
			t.Errorf("%s under TCG is aligned", m)
		}
		if RAM(m, KVM) != m {
			t.Errorf("%s under KVM is %s", m, RAM(m, KVM))
		}
	}
}

// Disks do not share addresses, nor with the other devices.
func TestAddressesDiffer(t *testing.T) {
	s := Spec{Name: "x", CPUs: 1, Memory: size.GiB, Accel: KVM, NICs: make([]NIC, maxNICs), Disks: make([]Disk, maxDisks)}
	p, err := Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, a := range p.Argv {
		if _, addr, ok := strings.Cut(a, "addr="); ok {
			if seen[addr] {
				t.Errorf("address %s twice", addr)
			}
			seen[addr] = true
		}
	}
	if len(seen) != 2+maxNICs+maxDisks {
		t.Errorf("%d addresses", len(seen))
	}
}

// A QEMU that works must never meet its limit: what it was seen to use beside
// the guest's RAM stays below a third of the head-room.
func TestLimits(t *testing.T) {
	for _, c := range []struct {
		s    Spec
		want Limits
	}{
		{Spec{CPUs: 1, Memory: 96 * size.MiB, Accel: TCG}, Limits{Memory: (96 + 1 + 6 + 384 + 32) * size.MiB, CPUWeight: 200, Pids: 512}},
		{Spec{CPUs: 4, Memory: 4 * size.GiB, Accel: KVM}, Limits{Memory: (4096 + 256 + 384) * size.MiB, CPUWeight: 500, Pids: 512}},
		{Spec{CPUs: 64, Memory: size.GiB, Accel: TCG}, Limits{Memory: (1024 + 1 + 64 + 384 + 128) * size.MiB, CPUWeight: 6500, Pids: 512}},
	} {
		if got := c.s.Limits(); got != c.want {
			t.Errorf("%d CPUs, %s, %s: %+v, want %+v", c.s.CPUs, c.s.Memory, c.s.Accel, got, c.want)
		}
	}
}
