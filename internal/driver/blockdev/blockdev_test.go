package blockdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"roseau/internal/base/errs"
)

const mib = 1 << 20

func newFile(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := Create(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func poke(t *testing.T, path string, off int64, data string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(data), off); err != nil {
		t.Fatal(err)
	}
}

func kinds(d Device) (k []string) {
	for _, s := range d.Signatures {
		k = append(k, s.Kind)
	}
	return k
}

func TestOpenIsExclusiveAndReads(t *testing.T) {
	path := newFile(t, 4*mib)
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, errs.Conflict) {
		t.Fatalf("second open: %v", err)
	}
	link := filepath.Join(t.TempDir(), "other")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(link); !errors.Is(err, errs.Conflict) {
		t.Fatalf("open by another path: %v", err)
	}
	if d, err := System.Describe(path); err != nil || !d.Open || d.Blank() {
		t.Fatalf("a disk that is open: %+v, %v", d, err)
	}
	var bufs [][]byte
	var want []byte
	for i := range 1030 { // more than the kernel takes at once
		b := alignedBytes(512)
		b[0] = byte(i)
		bufs, want = append(bufs, b), append(want, b...)
	}
	bufs, want = bufs[:1024+8], want[:512*(1024+8)]
	if err := f.WritevAt(bufs, 8192); err != nil {
		t.Fatal(err)
	}
	if err := f.Datasync(); err != nil {
		t.Fatal(err)
	}
	got := alignedBytes(len(want))
	if _, err := f.ReadAt(got, 8192); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read back: %v", err)
	}
	if _, err := f.ReadAt(alignedBytes(8192), f.Size()-4096); err == nil {
		t.Fatal("read past the end")
	}
	if err := errors.Join(f.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(got, 0); !errors.Is(err, os.ErrClosed) {
		t.Fatalf("read after close: %v", err)
	}
	if f, err = Open(path); err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, errs.NotFound) {
		t.Errorf("missing: %v", err)
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, errs.Invalid) {
		t.Errorf("directory: %v", err)
	}
	if err := Create(newFile(t, 4096), 4096); !errors.Is(err, errs.Conflict) {
		t.Errorf("create twice: %v", err)
	}
}

// Signatures written by hand at the places that the formats define.
func TestIdentifySynthetic(t *testing.T) {
	const size = 8 * mib
	le32 := func(v uint32) string { return string(binary.LittleEndian.AppendUint32(nil, v)) }
	mbr := make([]byte, 66)
	mbr[4], mbr[12], mbr[64], mbr[65] = 0x83, 1, 0x55, 0xaa
	for _, c := range []struct {
		kind string
		off  int64
		data string
	}{
		{"roseau", 0, RoseauMagic},
		{"roseau", size - mib + 64<<10, RoseauMagic},
		{"gpt", 512, "EFI PART"},
		{"gpt", size - 512, "EFI PART"}, // the copy alone: the head was overwritten
		{"mbr", 446, string(mbr)},
		{"lvm2", 512, "LABELONE" + strings.Repeat("\x00", 16) + "LVM2 001"},
		{"luks", 0, "LUKS\xba\xbe"},
		{"luks", 16384, "SKUL\xba\xbe"},
		{"mdraid", 4096, le32(0xa92b4efc)},
		{"mdraid", size - 8<<10, le32(0xa92b4efc)},
		{"mdraid", size - 64<<10, le32(0xa92b4efc)},
		{"zfs", 128 << 10, "\x0c\xb1\xba\x00\x00\x00\x00\x00"},
		{"zfs", size - 256<<10 + 128<<10 + 1024, "\x00\x00\x00\x00\x00\xba\xb1\x0c"},
		{"xfs", 0, "XFSB"},
		{"btrfs", 64<<10 + 64, "_BHRfS_M"},
		{"f2fs", 1024, "\x10\x20\xf5\xf2"},
		{"ntfs", 3, "NTFS    "},
		{"exfat", 3, "EXFAT   "},
		{"vfat", 82, "FAT32   "},
		{"iso9660", 32769, "CD001"},
		{"squashfs", 0, "hsqs"},
		{"ceph", 0, "bluestore block device"},
		{"qcow2", 0, "QFI\xfb"},
		{"swap", 65536 - 10, "SWAPSPACE2"},
		{"data", 5000, "x"},
		{"data", size - 1, "x"},
	} {
		path := newFile(t, size)
		poke(t, path, c.off, c.data)
		d, err := System.Describe(path)
		if err != nil || !slices.Equal(kinds(d), []string{c.kind}) {
			t.Errorf("%s at %d: found %v, %v", c.kind, c.off, d.Signatures, err)
		}
		if d.Blank() || d.InUse() {
			t.Errorf("%s: blank %v, in use %v", c.kind, d.Blank(), d.InUse())
		}
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(Erase(f), f.Close()); err != nil {
			t.Fatal(err)
		}
		if d, _ := System.Describe(path); !d.Blank() {
			t.Errorf("%s: after erase: %v", c.kind, d.Uses())
		}
	}
}

// Signatures written by the tools themselves.
func TestIdentifyTools(t *testing.T) {
	for _, c := range []struct {
		want string
		cmd  []string
		in   string
	}{
		{"ext4", []string{"mke2fs", "-q", "-t", "ext4", "-L", "home", "DISK"}, ""},
		{"ext2", []string{"mke2fs", "-q", "-t", "ext2", "DISK"}, ""},
		{"swap", []string{"mkswap", "-L", "spare", "DISK"}, ""},
		{"gpt", []string{"sfdisk", "-q", "DISK"}, "label: gpt\n1M,2M\n"},
		{"mbr", []string{"sfdisk", "-q", "DISK"}, "label: dos\n1M,2M\n"},
		{"xfs", []string{"mkfs.xfs", "-q", "DISK"}, ""},
		{"vfat", []string{"mkfs.vfat", "DISK"}, ""},
	} {
		t.Run(c.cmd[0]+"-"+c.want, func(t *testing.T) {
			if _, err := exec.LookPath(c.cmd[0]); err != nil {
				t.Skip(err)
			}
			path := newFile(t, 320*mib) // sparse; XFS takes no less
			args := slices.Clone(c.cmd)
			args[len(args)-1] = path
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Stdin = strings.NewReader(c.in)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", args, err, out)
			}
			d, err := System.Describe(path)
			if err != nil || !slices.Contains(kinds(d), c.want) || slices.Contains(kinds(d), "data") {
				t.Fatalf("found %v, %v", d.Signatures, err)
			}
		})
	}
}

// A machine with a mounted disk, a swap partition, an array member and a free
// disk, as the kernel shows it.
func TestList(t *testing.T) {
	root := t.TempDir()
	h := Host{Sys: root + "/sys", Proc: root + "/proc", Dev: root + "/dev"}
	write := func(path, text string) {
		t.Helper()
		p := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range []string{"sda", "sdb", "sdc", "loop0", "sr0", "dm-0", "nvme0n1"} {
		base := "sys/block/" + name
		write(base+"/size", "16\n")
		write(base+"/dev", "8:"+string(rune('0'+i))+"\n")
		write(base+"/device/model", "Fast Disk  \n")
		write("dev/"+name, strings.Repeat("\x00", 8192))
	}
	write("sys/block/sdb/sdb1/partition", "1")
	write("sys/block/sdb/sdb1/dev", "8:17\n")
	write("sys/block/sdd/size", "0") // an empty card reader
	write("sys/class/block/sdc/holders/md0", "")
	write("proc/self/mountinfo", "22 1 8:0 / /srv rw shared:1 - ext4 /dev/sda rw\n")
	write("proc/swaps", "Filename Type Size Used Priority\n/dev/sdb1 partition 1 0 -2\n")

	list, err := h.List()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range list {
		got = append(got, filepath.Base(d.Path)+": "+strings.Join(d.Uses(), "; "))
	}
	want := []string{"nvme0n1: ", "sda: mounted at /srv", "sdb: used as swap; has partitions sdb1", "sdc: held by md0"}
	if !slices.Equal(got, want) {
		t.Fatalf("got  %q\nwant %q", got, want)
	}
	if list[0].SizeBytes != 8192 || list[0].Model != "Fast Disk" || !list[0].Blank() || !list[1].InUse() {
		t.Fatalf("%+v", list[0])
	}
}

func FuzzIdentify(f *testing.F) {
	f.Add([]byte("XFSB"), uint16(0))
	f.Add([]byte("\xfc\x4e\x2b\xa9"), uint16(4096))
	f.Fuzz(func(t *testing.T, b []byte, at uint16) {
		disk := append(make([]byte, at), b...)
		sigs, err := Identify(bytes.NewReader(disk), int64(len(disk)))
		blank := len(bytes.Trim(disk, "\x00")) == 0
		if err != nil || blank != (len(sigs) == 0) {
			t.Fatalf("blank %v, found %v, %v", blank, sigs, err)
		}
	})
}
