package guard

import (
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"roseau/internal/base/ids"
	"roseau/internal/driver/guardctl"
)

// speaking counts the ports of the world's VM that may speak, in the namespace
// of the calling thread.
func (w *world) speaking() int {
	w.t.Helper()
	c, err := nftables.New()
	if err != nil {
		w.t.Fatal(err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyBridge, Name: "roseau_" + w.vm.Short()}
	set, err := c.GetSetByName(table, "alive")
	if err != nil {
		w.t.Fatal(err)
	}
	e, err := c.GetSetElements(set)
	if err != nil {
		w.t.Fatal(err)
	}
	return len(e)
}

// S2: the guard is killed and nobody stops its QEMU: the port falls silent by
// itself within the lease, and speaks again under the next guard.
func TestPortsFallSilent(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	w := newWorld(t)
	runtime.LockOSThread() // never unlocked: thread and namespace end with the test; guards inherit it
	if _, err := netns.New(); err != nil {
		t.Skipf("no network namespaces: %v", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "vm0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wire"}); err != nil {
		t.Skipf("no veth: %v", err)
	}
	a := w.node("a")
	cfg := a.config()
	cfg.NICs = []guardctl.NIC{{Network: ids.New(), Name: "lan", Uplink: "vm0", MAC: "52:54:00:00:00:01"}}
	a.start(cfg)
	s := a.running()
	if !s.PortOpen || w.speaking() != 1 {
		t.Fatalf("port open: %v, %d may speak", s.PortOpen, w.speaking())
	}
	w.counts(0, 5)
	tap, err := netlink.LinkByName("t" + w.vm.Short() + "n0")
	if err != nil || tap.Attrs().MasterIndex == 0 {
		t.Fatalf("the tap is no port of a bridge: %v", err)
	}
	a.kill()
	killed := time.Now()
	for w.speaking() != 0 {
		if time.Since(killed) > fakeLease {
			t.Fatal("the port speaks without a guard")
		}
		time.Sleep(20 * time.Millisecond) // polls the kernel
	}
	t.Logf("silent %v after the guard's death", time.Since(killed))
	a.startAgain()
	if s := a.running(); s.Adoptions != 1 || !s.PortOpen || w.speaking() != 1 {
		t.Fatalf("after the adoption: %+v", s)
	}
	w.fault(faultLease, true)
	a.until("shut", func(s guardctl.Status) bool { return !s.PortOpen })
	if w.speaking() != 0 {
		t.Fatal("the port speaks without a lease")
	}
}
