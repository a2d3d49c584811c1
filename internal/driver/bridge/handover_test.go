package bridge

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

// TestHandover sends frames to a tap whose reader has stopped, reads them out of
// its queue and puts them into another tap: the bytes arrive, in order, seen by
// the watcher, and the bridge learns nothing from it.
func TestHandover(t *testing.T) {
	inNamespace(t)
	from, err := OpenTap("taa")
	must(t, err)
	defer from.Close()
	to, err := OpenTap("tbb")
	must(t, err)
	defer to.Close()
	c := Config{Table: "roseau_test", Ports: []Port{{Tap: "taa", Bridge: "rbt", Uplink: "vm0", MAC: ownMAC.String()}, {Tap: "tbb", Bridge: "rbt", MAC: ownMAC.String()}}}
	must(t, Set(c))
	in, err := OpenSocket("taa", false)
	must(t, err)
	defer in.Close()
	if err := in.Send(append(make(Frame, vnetHeader), frame(ownMAC, foreignMAC, 1)...)); !errors.Is(err, errs.Unavailable) {
		t.Fatalf("send to a tap that is down: %v", err)
	}
	must(t, c.SetUp(true))
	link, err := netlink.LinkByName("taa")
	must(t, err)
	if n := link.Attrs().TxQLen; n != tapQueue {
		t.Errorf("queue of %d frames, want %d", n, tapQueue)
	}
	watch, err := OpenSocket("taa", true)
	must(t, err)
	defer watch.Close()
	for mark := byte(1); mark <= 3; mark++ {
		must(t, in.Send(append(make(Frame, vnetHeader), frame(ownMAC, foreignMAC, mark)...)))
	}
	seen, err := watch.Seen()
	must(t, err)
	if len(seen) != 3 || time.Since(seen[2].At) > time.Minute || seen[0].At.After(seen[2].At) {
		t.Fatalf("saw %+v", seen)
	}
	fd, err := unix.FcntlInt(from.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	must(t, unix.SetNonblock(fd, true))
	tap, err := NewTap(fd)
	must(t, err)
	defer tap.Close()
	frames, err := tap.Read()
	must(t, err)
	if len(frames) != 3 || !bytes.Equal(frames[0][vnetHeader:], seen[0].Frame[vnetHeader:]) {
		t.Fatalf("read %d frames, the first %x", len(frames), frames)
	}
	var wire bytes.Buffer
	out, err := OpenSocket("tbb", false)
	must(t, err)
	defer out.Close()
	for _, f := range frames {
		must(t, WriteFrame(&wire, 1, f))
	}
	for range frames {
		port, f, err := ReadFrame(&wire)
		if must(t, err); port != 1 {
			t.Fatalf("port %d", port)
		}
		must(t, out.Send(f))
	}
	must(t, unix.SetNonblock(int(to.Fd()), true))
	b := make([]byte, 2000)
	for mark := byte(1); mark <= 3; mark++ {
		n, err := unix.Read(int(to.Fd()), b)
		must(t, err)
		if n < 25 || b[24] != mark {
			t.Fatalf("frame %d: % x", mark, b[:n])
		}
	}
	fdb, err := netlink.NeighList(0, unix.AF_BRIDGE)
	must(t, err)
	for _, e := range fdb {
		if bytes.Equal(e.HardwareAddr, foreignMAC) {
			t.Errorf("a bridge learned %s at interface %d from a frame that was handed over", e.HardwareAddr, e.LinkIndex)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func FuzzReadFrame(f *testing.F) {
	var b bytes.Buffer
	if err := WriteFrame(&b, 0, make(Frame, 70)); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		_, frame, err := ReadFrame(bytes.NewReader(in))
		if err == nil && len(frame) <= vnetHeader {
			t.Fatal("an empty frame")
		}
		if err != nil && !errors.Is(err, errs.Invalid) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
	})
}
