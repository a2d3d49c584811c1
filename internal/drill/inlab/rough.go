package inlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/lab/cable"
	"roseau/internal/lab/labclient"
)

// FreezeNode stops every process of a node; they know nothing of it.
func (l *Lab) FreezeNode(ctx context.Context, node string) error {
	return l.client.FreezeNode(ctx, node)
}

// ThawNode lets them go on.
func (l *Lab) ThawNode(ctx context.Context, node string) error { return l.client.ThawNode(ctx, node) }

// LoseFrames lets a node's cable to a network lose percent of its frames in either
// direction; 0 ends it.
func (l *Lab) LoseFrames(ctx context.Context, node, network string, percent int) error {
	return l.client.LinkLossy(ctx, node, network, percent)
}

// SlowDisk delays the actions of a disk; 0 ends it.
func (l *Lab) SlowDisk(ctx context.Context, node, diskPath string, latency time.Duration) error {
	return l.client.DiskSlow(ctx, node, path.Base(diskPath), latency)
}

// CorruptDisk flips bits where the disk is allocated, and returns how many.
func (l *Lab) CorruptDisk(ctx context.Context, node, diskPath string, from size.Bytes, bits int) (int, error) {
	a, err := l.client.DiskCorrupt(ctx, labclient.Request{Node: node, Disk: path.Base(diskPath), From: int64(from), Count: bits})
	return len(a.Flips), err
}

// CutPower cuts the power of all nodes.
func (l *Lab) CutPower(ctx context.Context) error {
	_, err := l.client.PowerCut(ctx)
	return err
}

// RestorePower gives it back.
func (l *Lab) RestorePower(ctx context.Context) error { return l.client.PowerRestore(ctx) }

// Frames hears the IPv4 frames from an Ethernet address on the VM network, each
// where it enters the switch. Announcements of an address are made by the nodes,
// not by the guest, and are left out.
func (l *Lab) Frames(ctx context.Context, from net.HardwareAddr, heard func(node string, at time.Time)) error {
	st, err := l.client.Status(ctx)
	if err != nil {
		return err
	}
	nodes := map[int]string{}
	for _, p := range st.Ports["vm"] {
		if p.Node != "" {
			nodes[p.Index] = p.Node
		}
	}
	f, err := l.client.Socket(ctx, labclient.SocketRequest{Namespace: "vm", Domain: unix.AF_PACKET, Type: unix.SOCK_RAW, Protocol: int(bigEndian(unix.ETH_P_ALL))})
	if err != nil {
		return err
	}
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 64) // the head is enough
	for ctx.Err() == nil {
		var n int
		var sa unix.Sockaddr
		var recvErr error
		err := conn.Read(func(fd uintptr) bool {
			n, sa, recvErr = unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
			return !errors.Is(recvErr, unix.EAGAIN)
		})
		if err != nil || recvErr != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(recvErr, unix.ENOBUFS) || errors.Is(recvErr, unix.ENETDOWN) {
				continue // a port went down, or frames were lost: the next ones tell as much
			}
			return fmt.Errorf("record frames of %s: %w", from, errors.Join(err, recvErr))
		}
		if node := nodes[enteredBy(sa)]; node != "" && isIPv4From(buf[:min(n, len(buf))], from) {
			heard(node, time.Now())
		}
	}
	return nil
}

// Forge sends an IPv4 frame with the given source address, to nobody, by the
// node's cable to the VM network.
func (l *Lab) Forge(ctx context.Context, node string, from net.HardwareAddr) error {
	st, err := l.client.Status(ctx)
	if err != nil {
		return err
	}
	for _, n := range st.Nodes {
		if n.Name != node || n.InitPID == 0 {
			continue
		}
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.InitPID))
		if err != nil {
			return fmt.Errorf("forge a frame on %s: %w", node, err)
		}
		defer ns.Close()
		return cable.Within(ns, func() error { return sendFrame("vm0", from) })
	}
	return errs.New(errs.NotFound, "forge a frame on %s: no such node has power", node)
}

// sendFrame sends an empty IPv4 frame to an address that no one has.
func sendFrame(link string, from net.HardwareAddr) error {
	dev, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	frame := make([]byte, 60)
	copy(frame, []byte{0x02, 0, 0, 0, 0, 1})
	copy(frame[6:], from)
	frame[12], frame[14] = 0x08, 0x45
	return os.NewSyscallError("sendto", unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: dev.Index, Protocol: bigEndian(unix.ETH_P_IP)}))
}

// enteredBy returns the index of the port that a frame came in by; 0: it went out.
func enteredBy(sa unix.Sockaddr) int {
	ll, ok := sa.(*unix.SockaddrLinklayer)
	if !ok || ll.Pkttype == unix.PACKET_OUTGOING {
		return 0
	}
	return ll.Ifindex
}

func isIPv4From(frame []byte, from net.HardwareAddr) bool {
	return len(frame) >= 14 && string(frame[6:12]) == string(from) && frame[12] == 0x08 && frame[13] == 0x00
}

func bigEndian(v uint16) uint16 { return v<<8 | v>>8 }

// Ready reports an error if the lab does not answer.
func (l *Lab) Ready(ctx context.Context) error {
	if _, err := l.client.Status(ctx); err != nil {
		return errs.New(errs.Unavailable, "run a drill: this version cuts power and pulls disks in a lab only: %w", err).WithHint("roseau lab up")
	}
	return nil
}

// ResetConnections resets the TCP connections of a service.
func (l *Lab) ResetConnections(ctx context.Context, node, service string) error {
	return l.client.ServiceReset(ctx, node, service)
}
