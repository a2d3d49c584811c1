package guard

import (
	"bytes"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"roseau/internal/base/ids"
	"roseau/internal/core/vmguard"
	"roseau/internal/driver/bridge"
	"roseau/internal/driver/guardctl"
	"roseau/internal/driver/qemu"
)

// TestBacklog: what the guest has not seen, as far as can be told.
func TestBacklog(t *testing.T) {
	stop := time.Unix(1000, 0)
	fr := func(c rune) bridge.Frame { return append(make(bridge.Frame, vnetBytes), byte(c)) }
	for _, c := range []struct{ name, seen, queue, want string }{
		{"nothing was seen", "", "", ""},
		{"two before the head, the queue", "abcdef", "def", "bcdef"},
		{"one before the head", "abc", "bc", "abc"},
		{"the last two of a queue that is empty", "abcd", "", "cd"},
		{"the first since the stop was swallowed", "abc12", "2", "c12"}, // digits: since the stop
		{"it alone came", "abc1", "", "bc1"},
		{"more came since the queue was read", "abcdefg", "de", "bcdefg"},
		{"the queue is older than the watch", "12", "xyz", "xyz12"},
		{"a part of it is", "z12", "xyz1", "xyz12"},
		{"only those of the last moment", "ABcd", "d", "cd"}, // upper case: long ago
	} {
		var seen []bridge.Sighting
		for _, r := range c.seen {
			at := stop.Add(-time.Millisecond)
			switch {
			case unicode.IsUpper(r):
				at = stop.Add(-swallowWithin)
			case unicode.IsDigit(r):
				at = stop.Add(time.Millisecond)
			}
			seen = append(seen, bridge.Sighting{Frame: fr(r), At: at})
		}
		var queue []bridge.Frame
		for _, r := range c.queue {
			queue = append(queue, fr(r))
		}
		got := ""
		for _, f := range backlog(seen, queue, stop) {
			got += string(f[vnetBytes:])
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestWatchOfAnEndedMigration: a watch that looks only after the migration's end
// still says that the guest has stopped, and only then.
func TestWatchOfAnEndedMigration(t *testing.T) {
	for range 64 { // one of two ready cases is taken at random
		for _, stops := range []bool{true, false} {
			s := newSource(t.Context(), vmguard.Peer{})
			if stops {
				s.stop(time.Unix(1000, 0))
			}
			s.end()
			h := &handover{seen: &sightings{}}
			if stopped, err := h.watch(s); err != nil || stopped != stops {
				t.Fatalf("stopped %v, %v, want %v", stopped, err, stops)
			}
		}
	}
}

// netSpace is a network namespace in which a node's guard runs.
type netSpace struct {
	ns      netns.NsHandle
	address string
}

// within runs f in it; nil: in that of the calling thread.
func (n *netSpace) within(f func() error) error {
	if n == nil {
		return f()
	}
	here, err := netns.Get()
	if err != nil {
		return err
	}
	defer here.Close()
	if err := netns.Set(n.ns); err != nil {
		return err
	}
	err = f()
	if e := netns.Set(here); e != nil {
		panic(e) // the thread is lost
	}
	return err
}

// twoNets gives two nodes a namespace each and a wire in between. The test's
// thread stays in the first.
func twoNets(t *testing.T) (a, b *netSpace) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	nsB, err := netns.New()
	if err != nil {
		t.Skipf("no network namespaces: %v", err)
	}
	nsA, err := netns.New()
	must(t, err)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "wire0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wire1"}); err != nil {
		t.Skipf("no veth: %v", err)
	}
	far, err := netlink.LinkByName("wire1")
	must(t, err)
	must(t, netlink.LinkSetNsFd(far, int(nsB)))
	a, b = &netSpace{nsA, "10.9.0.1"}, &netSpace{nsB, "10.9.0.2"}
	for n, name := range map[*netSpace]string{a: "wire0", b: "wire1"} {
		must(t, n.within(func() error {
			link, err := netlink.LinkByName(name)
			must(t, err)
			addr, err := netlink.ParseAddr(n.address + "/24")
			must(t, err)
			lo, err := netlink.LinkByName("lo")
			must(t, err)
			must(t, netlink.LinkSetUp(lo))
			must(t, netlink.AddrAdd(link, addr))
			return netlink.LinkSetUp(link)
		}))
	}
	return a, b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// toward sends frames with these marks to the guest, past the bridge.
func (n *node) toward(marks string) {
	n.w.t.Helper()
	must(n.w.t, n.net.within(func() error {
		s, err := bridge.OpenSocket("t"+n.w.vm.Short()+"n0", false)
		must(n.w.t, err)
		defer s.Close()
		for _, m := range marks {
			f := make(bridge.Frame, vnetBytes+60)
			f[vnetBytes+14] = byte(m)
			must(n.w.t, s.Send(f))
		}
		return nil
	}))
}

// waiting reads what waits for the guest.
func (n *node) waiting(s guardctl.Status) string {
	n.w.t.Helper()
	start, err := qemu.StartTime(s.QEMUPID)
	must(n.w.t, err)
	p, err := qemu.Attach(s.QEMUPID, start)
	must(n.w.t, err)
	fd, err := p.File(firstTap)
	must(n.w.t, err)
	tap, err := bridge.NewTap(fd)
	must(n.w.t, err)
	defer tap.Close()
	frames, err := tap.Read()
	must(n.w.t, err)
	var marks bytes.Buffer
	for _, f := range frames {
		if m := f[vnetBytes+14]; m >= 'a' && m <= 'z' { // else the kernel's own
			marks.WriteByte(m)
		}
	}
	return marks.String()
}

// TestHandOver: what waits in the source's tap is in the destination's after a
// migration, and back in the source's if the guest stays. The guest has no
// network driver: of what it is sent QEMU reads one frame at each start and stop and
// keeps it.
func TestHandOver(t *testing.T) {
	na, nb := twoNets(t)
	w := newWorld(t)
	a, b := w.node("a"), w.node("b")
	a.net, b.net = na, nb
	plug := func(c *guardctl.Config) {
		c.NICs = []guardctl.NIC{{Network: ids.MustParse("6f1b9c34-0000-4000-8000-000000000001"), Name: "lan", MAC: "52:54:00:00:00:01"}}
	}
	cfg := a.config()
	plug(&cfg)
	a.start(cfg)
	s := a.running()
	a.toward("abcdefgh")
	w.fault(faultEtcd, true) // no migration passes pre-switchover
	a.migrateAs(b, plug)
	a.until("cancelled", func(s guardctl.Status) bool { return s.Migration != nil && !s.Migration.Active && len(s.Pauses) == 0 })
	b.until("given up", func(s guardctl.Status) bool { return s.Phase == guardctl.PhaseLost && s.QEMUPID == 0 })
	deadline := time.Now().Add(10 * time.Second)
	got := ""
	for !strings.HasSuffix(got, "efgh") {
		if got += a.waiting(s); time.Now().After(deadline) {
			t.Fatalf("%q waits for the guest that stayed, want efgh at the end", got)
		}
		time.Sleep(20 * time.Millisecond) // polls the kernel
	}
	w.fault(faultEtcd, false)
	b.kill()
	must(t, os.RemoveAll(b.vmDir()))
	a.toward("uvwxyz")
	a.migrateAs(b, plug)
	there := b.running()
	got = "" // what waits follows when the guest runs
	for deadline = time.Now().Add(10 * time.Second); !strings.HasSuffix(got, "z") && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond) // polls the kernel
		got += b.waiting(there)
	}
	if !strings.HasSuffix("uvwxyz", got) || len(got) < 4 {
		t.Errorf("%q waits at the destination, want the end of uvwxyz", got)
	}
	a.until("moved", func(s guardctl.Status) bool { return s.Phase == guardctl.PhaseMoved && s.QEMUPID == 0 })
}
