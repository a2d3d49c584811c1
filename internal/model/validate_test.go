package model

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
)

func goodVM() *VM {
	return &VM{Meta: Meta{Name: "web"}, Spec: VMSpec{CPUs: 1, Memory: size.GiB, HA: HAOn, Accel: "auto",
		Disks: []VMDisk{{Volume: "web-0", Size: size.GiB}}, NICs: []VMNIC{{Network: "lan", MAC: "52:54:00:12:34:56"}}}}
}

func TestValidateVM(t *testing.T) {
	if err := goodVM().Validate(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		change func(*VM)
		want   string
	}{
		{func(v *VM) { v.Name = "Web" }, `name vm "Web": want 1 to 63`},
		{func(v *VM) { v.Name = "-a" }, `no dash at either end`},
		{func(v *VM) { v.Spec.CPUs = 0 }, `check vm web: cpus is "0", want 1 to 64`},
		{func(v *VM) { v.Spec.Memory = size.MiB }, `memory is "1MiB", want 32MiB to 4TiB`},
		{func(v *VM) { v.Spec.Memory += 512 }, `want whole MiB`},
		{func(v *VM) { v.Spec.HA = "yes" }, `ha is "yes", want on, best-effort or off`},
		{func(v *VM) { v.Spec.Accel = "xen" }, `accel is "xen"`},
		{func(v *VM) { v.Spec.Priority = 1000 }, `priority is "1000"`},
		{func(v *VM) { v.Spec.Disks = append(v.Spec.Disks, v.Spec.Disks[0]) }, `disks[1].volume is "web-0", want another volume than disks[0]`},
		{func(v *VM) { v.Spec.Disks[0].Size = 5000 }, `size is "4.9KiB", want 4MiB to 64TiB`},
		{func(v *VM) { v.Spec.Disks[0].Size = 5*size.MiB + 1 }, `want a multiple of 4096 bytes`},
		{func(v *VM) { v.Spec.NICs[0].MAC = "53:54:00:12:34:56" }, `unicast`},
		{func(v *VM) { v.Spec.NICs[0].MAC = "52:54:00" }, `six pairs`},
		{func(v *VM) { v.Spec.NICs = append(v.Spec.NICs, v.Spec.NICs[0]) }, `nics[1].mac`},
		{func(v *VM) { v.Spec.NICs[0].Network = "" }, `nics[0].network`},
	} {
		vm := goodVM()
		tt.change(vm)
		err := vm.Validate()
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}

func TestValidateOthers(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{(&Pool{Meta: Meta{Name: "p"}, Spec: PoolSpec{Copies: 4, MinISR: 1}}).Validate(), `copies is "4", want 1 to 3`},
		{(&Pool{Meta: Meta{Name: "p"}, Spec: PoolSpec{Copies: 1, MinISR: 2}}).Validate(), `min_isr is "2", want at most copies (1)`},
		{(&Volume{Meta: Meta{Name: "v"}, Spec: VolumeSpec{Size: size.GiB}}).Validate(), `pool is ""`},
		{(&Volume{Meta: Meta{Name: "v"}, Spec: VolumeSpec{Pool: "p", Size: size.GiB, VM: "a", Image: "b"}}).Validate(), `image is "b", want empty for a volume of vm a`},
		{(&Network{Meta: Meta{Name: "n"}, Spec: NetworkSpec{Kind: "nat"}}).Validate(), `kind is "nat", want bridged`},
	} {
		if tt.err == nil || !strings.Contains(tt.err.Error(), tt.want) {
			t.Errorf("got %v, want %s", tt.err, tt.want)
		}
	}
}

func TestNewerMigration(t *testing.T) {
	at := func(sec int64, over bool) *MigrationStatus {
		m := &MigrationStatus{Started: time.Unix(sec, 0)}
		if over {
			m.Downtime = 1
		}
		return m
	}
	for _, c := range []struct{ a, b, want *MigrationStatus }{
		{nil, nil, nil}, {at(1, false), nil, at(1, false)}, {nil, at(1, true), at(1, true)},
		{at(1, false), at(1, true), at(1, true)}, {at(1, true), at(1, false), at(1, true)},
		{at(2, false), at(1, true), at(2, false)}, {at(1, true), at(2, false), at(2, false)},
	} {
		if got := c.a.Newer(c.b); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v or %+v: %+v", c.a, c.b, got)
		}
	}
}
