// Package inlab lets the drill run on a lab: faults are the lab's orders, and
// the place outside the cluster is the lab's outside host.
package inlab

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
	"roseau/internal/lab/labclient"
)

// The lab's VM network (see docs/design/lab.md). Probes take addresses at the
// end of its range, away from those that people hand out.
var (
	prefixBits  = 16
	gateway     = netip.MustParseAddr("10.202.255.254")
	firstProbe  = netip.MustParseAddr("10.202.6.200")
	probesCount = 50
)

// Lab is a lab as the drill needs it.
type Lab struct{ client *labclient.Client }

// New returns the lab behind a client.
func New(c *labclient.Client) *Lab { return &Lab{client: c} }

// CutNode cuts a node's power.
func (l *Lab) CutNode(ctx context.Context, node string) (time.Time, error) {
	a, err := l.client.CutNode(ctx, node)
	return at(a), err
}

// HasPower tells whether a node has power.
func (l *Lab) HasPower(ctx context.Context, node string) (bool, error) {
	st, err := l.client.Status(ctx)
	if err != nil {
		return false, err
	}
	for _, n := range st.Nodes {
		if n.Name == node {
			return n.Power != labclient.Off, nil
		}
	}
	return false, errs.New(errs.NotFound, "lab node %s: there is none", node)
}

// RestoreNode gives it back.
func (l *Lab) RestoreNode(ctx context.Context, node string) error {
	return l.client.RestoreNode(ctx, node)
}

// PullDisk takes out the disk that the node knows by path.
func (l *Lab) PullDisk(ctx context.Context, node, diskPath string) (time.Time, error) {
	now := time.Now()
	return now, l.client.DiskPull(ctx, node, path.Base(diskPath))
}

// InsertDisk puts it back.
func (l *Lab) InsertDisk(ctx context.Context, node, diskPath string) error {
	return l.client.DiskInsert(ctx, node, path.Base(diskPath))
}

// KillService kills a service's process.
func (l *Lab) KillService(ctx context.Context, node, service string) (time.Time, error) {
	a, err := l.client.ServiceKill(ctx, node, service)
	return at(a), err
}

// StopService stops a service until StartService.
func (l *Lab) StopService(ctx context.Context, node, service string) error {
	return l.client.ServiceStop(ctx, node, service)
}

// StartService starts it again.
func (l *Lab) StartService(ctx context.Context, node, service string) error {
	return l.client.ServiceStart(ctx, node, service)
}

// CutLink cuts a node's cable to a network.
func (l *Lab) CutLink(ctx context.Context, node, network string) (time.Time, error) {
	now := time.Now()
	return now, l.client.LinkCut(ctx, node, network)
}

// RestoreLink plugs it in.
func (l *Lab) RestoreLink(ctx context.Context, node, network string) error {
	return l.client.LinkRestore(ctx, node, network)
}

func at(a labclient.Answer) time.Time {
	if a.At.IsZero() {
		return time.Now()
	}
	return a.At
}

// Dial connects from the outside host.
func (l *Lab) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return l.client.DialOutside(ctx, network, address)
}

// ListenICMP returns an ICMP socket of the outside host.
func (l *Lab) ListenICMP(ctx context.Context) (net.PacketConn, error) {
	f, err := l.client.Socket(ctx, labclient.SocketRequest{Namespace: "outside", Domain: unix.AF_INET, Type: unix.SOCK_RAW, Protocol: unix.IPPROTO_ICMP})
	if err != nil {
		return nil, err
	}
	conn, err := net.FilePacketConn(f) // duplicates
	return conn, errors.Join(err, f.Close())
}

// Address draws an address that nobody answers to.
func (l *Lab) Address(ctx context.Context) (netip.Prefix, netip.Addr, error) {
	base := firstProbe.As4()
	for range 10 {
		a := base
		a[3] += byte(rand.IntN(probesCount))
		addr := netip.AddrFrom4(a)
		try, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		conn, err := l.Dial(try, "tcp", netip.AddrPortFrom(addr, 80).String())
		cancel()
		if err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return netip.PrefixFrom(addr, prefixBits), gateway, nil
		}
		if conn != nil {
			conn.Close()
		}
	}
	return netip.Prefix{}, netip.Addr{}, errs.New(errs.Exhausted, "find an address for the probe: all that were tried from %s on are in use", firstProbe)
}
