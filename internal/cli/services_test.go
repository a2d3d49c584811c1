package cli

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/model"
	"roseau/internal/svc/disk"
	"roseau/internal/svc/volume"
)

func TestSplitDisks(t *testing.T) {
	m, order, err := splitDisks([]string{"n2/sdb", "n1//dev/sdc", "n2/dev/sdd"})
	if got := fmt.Sprint(m, order, err); got != "map[n1:[/dev/sdc] n2:[sdb /dev/sdd]] [n2 n1] <nil>" {
		t.Error(got)
	}
	for _, bad := range []string{"sdb", "/dev/sdb", "n1/"} {
		if _, _, err := splitDisks([]string{bad}); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestParseVMFlags(t *testing.T) {
	ds, err := parseDisks("deb", []string{"8GiB", "image=x,size=1GiB", "volume=old"})
	if got := fmt.Sprint(ds, err); got != "[{0B deb } {8GiB  } {1GiB x } {0B  old}] <nil>" {
		t.Error(got)
	}
	if _, err := parseDisks("", []string{"colour=red"}); !errors.Is(err, errs.Invalid) {
		t.Error(err)
	}
	n, err := parseNIC("lan,mac=52:54:00:00:00:01,allow-mac-spoofing")
	if err != nil || n.Network != "lan" || n.MAC == "" || !n.AllowMACSpoofing {
		t.Error(n, err)
	}
	if got := imageName("/a/Debian 12_x.QCOW2"); got != "debian-12-x" {
		t.Error(got)
	}
}

func TestServiceTables(t *testing.T) {
	l := &disk.List{Disks: []disk.Info{
		{Node: "n1", Name: "n1-d1", Pool: "p", Device: disk.Device{Path: "/dev/sdb", Size: 8 * size.GiB, State: model.DiskActive, Data: 7 * size.GiB, Used: size.GiB},
			Care: &model.DiskCare{Summary: "ok 38C", Slow: true, BadBlocks: 17, RetireProposed: true}},
		{Node: "n2", Device: disk.Device{Path: "/dev/sdc", Size: size.GiB, State: model.DiskInUse, Content: "ext4 mounted on /srv"}},
	}, Unreachable: []string{"n3: down"}}
	vs := []volume.Info{{Volume: model.Volume{Meta: model.Meta{Name: "web-0"}, Spec: model.VolumeSpec{Size: size.GiB, Pool: "p", VM: "web"},
		Status: model.VolumeStatus{Health: model.Syncing, Copies: 2, SyncDone: 1, SyncTotal: 4, Writer: "n1, vm", Out: []string{"n3-d1: rebuild"}}}}}
	var b bytes.Buffer
	for _, tb := range []*table{diskTable(l), volumeTable(vs)} {
		if err := tb.write(&b); err != nil {
			t.Fatal(err)
		}
	}
	want := `NODE  PATH      SIZE  MODEL  STATE   HEALTH                                  NAME   POOL  USED          CONTENT
n1    /dev/sdb  8GiB  -      active  ok 38C, slow, 17 bad blocks, retire it  n1-d1  p     1GiB of 7GiB  -
n2    /dev/sdc  1GiB  -      in-use  -                                       -      -     -             ext4 mounted on /srv
not asked: n3: down
NAME   SIZE  POOL  HEALTH       COPIES  WRITER  OF   OUT
web-0  1GiB  p     syncing 25%  2       n1, vm  web  n3-d1: rebuild
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
