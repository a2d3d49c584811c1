package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

// OpenTap makes the tap and returns it for QEMU to inherit. It lives as long as
// somebody holds the file. errs.Conflict: it exists, so another QEMU has it.
func OpenTap(name string) (*os.File, error) {
	if _, err := netlink.LinkByName(name); err == nil {
		return nil, errs.New(errs.Conflict, "open tap %s: it exists", name).
			WithHint("another QEMU of this VM holds it")
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "open tap %s: /dev/net/tun: %w", name, err).
			WithHint("load the kernel module tun")
	}
	f := os.NewFile(uintptr(fd), "/dev/net/tun")
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open tap %s: %w", name, err), f.Close())
	}
	setSysctl("ipv6/conf/"+name+"/disable_ipv6", "1")
	// What waits while the guest stands still, during a switch-over or a pause.
	if link, err := netlink.LinkByName(name); err == nil {
		_ = netlink.LinkSetTxQLen(link, tapQueue) // else the kernel's 1000
	}
	return f, nil
}

// tapQueue is how many frames wait for the guest: 2 s of 2000 a second.
const tapQueue = 4096

// Set brings the node to c: the table (all ports silent), the bridges with
// their uplinks, and each tap that exists a port of its bridge. Idempotent. Taps
// are left down; see SetUp.
func Set(c Config) error {
	p, err := Compile(c)
	if err != nil {
		return err
	}
	// Rules before ports: no frame may pass in between.
	if err := p.apply(); err != nil {
		return err
	}
	for _, q := range c.Ports {
		if err := q.attach(); err != nil {
			return fmt.Errorf("attach port %s: %w", q.Tap, err)
		}
	}
	return nil
}

func (q Port) attach() error {
	br, err := q.bridge()
	if err != nil {
		return err
	}
	tap, err := netlink.LinkByName(q.Tap)
	if err != nil {
		return fmt.Errorf("find tap: %w", err)
	}
	return join(tap, br)
}

// bridge returns the bridge that the port belongs to, made and joined with its
// uplink if need be.
func (q Port) bridge() (netlink.Link, error) {
	var uplink netlink.Link
	if q.Uplink != "" {
		var err error
		if uplink, err = netlink.LinkByName(q.Uplink); err != nil {
			return nil, errs.New(errs.NotFound, "find uplink %s: %w", q.Uplink, err).
				WithHint("name an interface of this node with `roseau node set`")
		}
		if uplink.Type() == "bridge" {
			return uplink, nil
		}
	}
	br, err := netlink.LinkByName(q.Bridge)
	if err != nil {
		off := false
		attrs := netlink.NewLinkAttrs()
		attrs.Name = q.Bridge
		err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off})
		if err != nil && !errors.Is(err, unix.EEXIST) { // another guard was faster
			return nil, fmt.Errorf("make bridge %s: %w", q.Bridge, err)
		}
		if br, err = netlink.LinkByName(q.Bridge); err != nil {
			return nil, fmt.Errorf("find bridge %s: %w", q.Bridge, err)
		}
		// The node itself is no station of its VMs' networks, and the inet
		// tables' forward policy is not for frames that are only switched.
		setSysctl("ipv6/conf/"+q.Bridge+"/disable_ipv6", "1")
		for _, s := range []string{"iptables", "ip6tables", "arptables"} {
			setSysctl("bridge/bridge-nf-call-"+s, "0")
		}
	}
	if uplink != nil {
		if err := joinUplink(uplink, br); err != nil {
			return nil, err
		}
	}
	return br, netlink.LinkSetUp(br)
}

// joinUplink enslaves the uplink, unless it is in use for something else.
func joinUplink(uplink, br netlink.Link) error {
	name := uplink.Attrs().Name
	if uplink.Attrs().MasterIndex == br.Attrs().Index {
		return netlink.LinkSetUp(uplink)
	}
	if uplink.Attrs().MasterIndex != 0 {
		return errs.New(errs.Conflict, "join uplink %s to %s: it belongs to another bridge or bond", name, br.Attrs().Name)
	}
	addrs, err := netlink.AddrList(uplink, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		if a.Scope == int(netlink.SCOPE_UNIVERSE) {
			return errs.New(errs.Conflict, "join uplink %s to %s: it carries the node's address %s", name, br.Attrs().Name, a.IPNet).
				WithHint("move the address to a bridge over %s and name that bridge as the uplink", name)
		}
	}
	setSysctl("ipv6/conf/"+name+"/disable_ipv6", "1")
	return join(uplink, br)
}

func join(port, br netlink.Link) error {
	if port.Attrs().MasterIndex != br.Attrs().Index {
		if err := netlink.LinkSetMaster(port, br); err != nil {
			return fmt.Errorf("join %s to %s: %w", port.Attrs().Name, br.Attrs().Name, err)
		}
	}
	if port.Type() == "tuntap" {
		return nil
	}
	return netlink.LinkSetUp(port)
}

// SetUp brings the taps up or down. Up, they take frames toward the guest, which
// wait in their queues until the guest reads; what comes from the guest passes
// by Refresh alone.
func (c Config) SetUp(up bool) error {
	var all error
	for _, q := range c.Ports {
		link, err := netlink.LinkByName(q.Tap)
		if err == nil && up {
			err = netlink.LinkSetUp(link)
		} else if err == nil {
			err = netlink.LinkSetDown(link)
		}
		if err != nil {
			all = errors.Join(all, fmt.Errorf("bring port %s up=%v: %w", q.Tap, up, err))
		}
	}
	return all
}

// Refresh lets the ports speak for d from now on; d <= 0 shuts them at once.
func (c Config) Refresh(d time.Duration) error { return refresh(c.Table, c.taps(), d) }

// Remove deletes the table, after the taps went with their QEMU. The bridges
// stay: other VMs may use them.
func (c Config) Remove() error { return deleteTable(c.Table) }

func (c Config) taps() []string {
	names := make([]string, len(c.Ports))
	for i, q := range c.Ports {
		names[i] = q.Tap
	}
	return names
}

// Announce tells the networks that the VM's addresses are here: the local
// bridge learns them for the taps, and a RARP frame leaves each uplink, so that
// the switches beyond send frames here.
func (c Config) Announce() error {
	var all error
	for _, q := range c.Ports {
		if err := q.announce(); err != nil {
			all = errors.Join(all, fmt.Errorf("announce %s: %w", q.MAC, err))
		}
	}
	return all
}

func (q Port) announce() error {
	mac, err := net.ParseMAC(q.MAC)
	if err != nil {
		return err
	}
	tap, err := netlink.LinkByName(q.Tap)
	if err != nil {
		return fmt.Errorf("find tap: %w", err)
	}
	// Without this the bridge, which has learned the address at its uplink while
	// the VM was elsewhere, would drop frames for it that come from there.
	err = netlink.NeighSet(&netlink.Neigh{LinkIndex: tap.Attrs().Index, Family: unix.AF_BRIDGE,
		State: netlink.NUD_REACHABLE, Flags: netlink.NTF_MASTER, HardwareAddr: mac})
	if err != nil {
		return fmt.Errorf("tell the bridge: %w", err)
	}
	if q.Uplink == "" {
		return nil // an isolated network
	}
	out, err := net.InterfaceByName(q.Uplink)
	if err != nil {
		return fmt.Errorf("find uplink %s: %w", q.Uplink, err)
	}
	conn, err := packet.Listen(out, packet.Raw, etherRARP, nil)
	if err != nil {
		return fmt.Errorf("open %s: %w", out.Name, err)
	}
	_, err = conn.WriteTo(RARP(mac), &packet.Addr{HardwareAddr: broadcast})
	return errors.Join(err, conn.Close())
}

const etherRARP = 0x8035

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// RARP is the frame that QEMU and others use to announce a station whose IP
// address they do not know: "request reverse, from mac about mac", 60 bytes.
func RARP(mac net.HardwareAddr) []byte {
	b := make([]byte, 0, 60)
	b = append(b, broadcast...)
	b = append(b, mac...)
	b = append(b, etherRARP>>8, etherRARP&0xff)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 3) // Ethernet, IPv4, 6, 4, request reverse
	b = append(b, mac...)
	b = append(b, 0, 0, 0, 0)
	b = append(b, mac...)
	b = append(b, 0, 0, 0, 0)
	return b[:60]
}

// WaitGone waits until the tap is gone, after its QEMU was killed.
func WaitGone(ctx context.Context, tap string) error {
	for {
		var missing netlink.LinkNotFoundError
		if _, err := netlink.LinkByName(tap); errors.As(err, &missing) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of tap %s: %w", tap, context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// setSysctl writes a value under /proc/sys/net where the kernel has it; where it
// has not, there is nothing to turn off.
func setSysctl(name, value string) {
	_ = os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0o644)
}
