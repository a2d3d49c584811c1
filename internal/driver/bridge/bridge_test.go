package bridge

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func TestGolden(t *testing.T) {
	datadriven.RunTest(t, "testdata/plans", func(t *testing.T, d *datadriven.TestData) string {
		var c Config
		if err := json.NewDecoder(strings.NewReader(d.Input)).Decode(&c); err != nil {
			d.Fatalf(t, "%v", err)
		}
		p, err := Compile(c)
		if err != nil {
			return err.Error() + "\n"
		}
		return p.Text()
	})
}

// inNamespace moves the test's thread into a namespace of its own, with an
// uplink "vm0" whose other end is "wire".
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and the namespace with it
	if _, err := netns.New(); err != nil {
		t.Skipf("no network namespaces: %v", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "vm0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wire"}); err != nil {
		t.Skipf("no veth: %v", err)
	}
	wire, err := netlink.LinkByName("wire")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(wire); err != nil {
		t.Fatal(err)
	}
}

var (
	ownMAC     = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	foreignMAC = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 9}
)

const testEther = 0x88b5 // for experiments

func frame(dst, src net.HardwareAddr, mark byte) []byte {
	b := append(append(append([]byte{}, dst...), src...), testEther>>8, testEther&0xff, mark)
	return append(b, make([]byte, 60-len(b))...)
}

// say sends a frame as the guest would: through the tap's file, after a
// virtio-net header.
func say(t *testing.T, tap *os.File, f []byte) {
	t.Helper()
	if _, err := unix.Write(int(tap.Fd()), append(make([]byte, 10), f...)); err != nil {
		t.Fatalf("write to tap: %v", err)
	}
}

func listen(t *testing.T, name string, proto int) *packet.Conn {
	t.Helper()
	i, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	c, err := packet.Listen(i, packet.Raw, proto, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// heard returns the mark of the next frame on c, or 0 after wait.
func heard(t *testing.T, c *packet.Conn, wait time.Duration) byte {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2000)
	n, _, err := c.ReadFrom(b)
	if err != nil {
		return 0
	}
	if n < 15 {
		t.Fatalf("frame of %d bytes", n)
	}
	return b[14]
}

func testPort(t *testing.T) (Config, *os.File) {
	t.Helper()
	c := Config{Table: "roseau_test", Ports: []Port{{Tap: "ttest0", Bridge: "rbtest", Uplink: "vm0", MAC: ownMAC.String()}}}
	tap, err := OpenTap("ttest0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tap.Close() })
	for range 2 { // idempotent
		if err := Set(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.SetUp(true); err != nil {
		t.Fatal(err)
	}
	return c, tap
}

// A port is silent until it is refreshed, speaks under its own MAC only, and
// falls silent by itself when nobody refreshes it.
func TestSilence(t *testing.T) {
	inNamespace(t)
	c, tap := testPort(t)
	wire := listen(t, "wire", testEther)
	say(t, tap, frame(broadcast, ownMAC, 1))
	if m := heard(t, wire, 150*time.Millisecond); m != 0 {
		t.Fatalf("a port that nobody opened said %d", m)
	}
	if err := c.Refresh(700 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	opened := time.Now()
	say(t, tap, frame(broadcast, foreignMAC, 2))
	say(t, tap, frame(broadcast, ownMAC, 3))
	if m := heard(t, wire, time.Second); m != 3 {
		t.Fatalf("heard %d, want 3: the foreign MAC is dropped, the own passes", m)
	}
	// A refresh shortens as well as lengthens.
	if err := c.Refresh(400 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	silentAfter := time.Duration(0)
	for time.Since(opened) < 3*time.Second {
		say(t, tap, frame(broadcast, ownMAC, 4))
		if heard(t, wire, 50*time.Millisecond) == 0 {
			silentAfter = time.Since(opened)
			break
		}
	}
	if silentAfter == 0 || silentAfter > 700*time.Millisecond {
		t.Fatalf("silent after %v, want at 400 ms", silentAfter)
	}
	if err := c.Refresh(time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := c.Refresh(0); err != nil {
		t.Fatal(err)
	}
	say(t, tap, frame(broadcast, ownMAC, 5))
	if m := heard(t, wire, 150*time.Millisecond); m != 0 {
		t.Fatalf("a port that was shut said %d", m)
	}
}

// Frames toward the guest arrive while its port is silent, also when the bridge
// had learned the address at the uplink, and the announcement leaves the uplink.
func TestAnnounceAndQueue(t *testing.T) {
	inNamespace(t)
	c, tap := testPort(t)
	out := listen(t, "wire", testEther)
	rarp := listen(t, "wire", etherRARP)
	send := func(f []byte) {
		t.Helper()
		if _, err := out.WriteTo(f, &packet.Addr{HardwareAddr: broadcast}); err != nil {
			t.Fatal(err)
		}
	}
	send(frame(broadcast, ownMAC, 1)) // the VM speaks at its old place: learned at the uplink
	if err := c.Announce(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if err := rarp.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, _, err := rarp.ReadFrom(b)
	if err != nil || !bytes.Equal(b[:n], RARP(ownMAC)) {
		t.Fatalf("announcement %x, %v", b[:n], err)
	}
	send(frame(ownMAC, foreignMAC, 7))
	deadline := time.Now().Add(2 * time.Second)
	for {
		n, err := unix.Read(int(tap.Fd()), b)
		if err == nil && n > 24 && bytes.Equal(b[10:16], ownMAC) && b[24] == 7 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the frame toward the silent guest did not arrive")
		}
		if err != nil {
			time.Sleep(time.Millisecond) // polls a file without events
		}
	}
}

// An uplink that carries the node's own address is refused.
func TestUplinkInUse(t *testing.T) {
	inNamespace(t)
	vm0, err := netlink.LinkByName("vm0")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr("10.9.9.1/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(vm0, addr); err != nil {
		t.Fatal(err)
	}
	tap, err := OpenTap("ttest1")
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	if _, err := OpenTap("ttest1"); err == nil {
		t.Fatal("a tap was opened twice")
	}
	err = Set(Config{Table: "roseau_test", Ports: []Port{{Tap: "ttest1", Bridge: "rbtest", Uplink: "vm0", MAC: ownMAC.String()}}})
	if err == nil || !strings.Contains(err.Error(), "10.9.9.1/24") {
		t.Fatalf("error %v", err)
	}
}
