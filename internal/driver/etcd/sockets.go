package etcd

import (
	"context"
	"maps"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/dial"
)

// Etcd's streams between members have no read timeout on the side that dialled
// (net/http prefers the DialContext that etcd sets as well), and a writer does
// not notice either: a cut network shows after minutes. Nothing of etcd's can be
// given another dialer; but its sockets are this process's, and the kernel can
// watch each of them.
const (
	peerUnacked = 1 * time.Second
	peerIdle    = 1 * time.Second
	lookEvery   = 500 * time.Millisecond
)

// keeper sets the options of the sockets between members.
type keeper struct {
	keep  dial.Keep
	ports map[int]bool    // of members, here or there
	known map[string]bool // sockets that need no second look, by the kernel's name
}

func newKeeper() *keeper {
	return &keeper{keep: dial.Keep{Unacked: peerUnacked, Idle: peerIdle}}
}

// run looks again and again, until ctx ends: new sockets come with each dial,
// new members with new ports.
func (k *keeper) run(ctx context.Context, ports func() map[int]bool) {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		k.look(ports())
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// look goes through this process's sockets once and returns how many it set.
func (k *keeper) look(ports map[int]bool) (set int) {
	const dir = "/proc/self/fd"
	if !maps.Equal(ports, k.ports) {
		k.ports, k.known = ports, nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return 0
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return 0
	}
	known := map[string]bool{}
	for _, n := range names {
		link, err := os.Readlink(dir + "/" + n)
		if err != nil || !strings.HasPrefix(link, "socket:") {
			continue
		}
		if k.known[link] {
			known[link] = true
			continue
		}
		fd, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		did, final := k.one(fd)
		if final {
			known[link] = true
		}
		if did {
			set++
		}
	}
	k.known = known
	return set
}

// one looks at one descriptor. It may have been closed meanwhile, or stand for
// another socket by now: what is set is the duplicate's, which is what was
// looked at. final: it need not be looked at again.
func (k *keeper) one(fd int) (set, final bool) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return false, false
	}
	defer unix.Close(dup)
	if proto, err := unix.GetsockoptInt(dup, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || proto != unix.IPPROTO_TCP {
		return false, true
	}
	if l, err := unix.GetsockoptInt(dup, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && l != 0 {
		return false, true
	}
	there, err := unix.Getpeername(dup)
	if err != nil {
		return false, false // being dialled
	}
	here, err := unix.Getsockname(dup)
	if err != nil {
		return false, false
	}
	if !k.ports[portOf(there)] && !k.ports[portOf(here)] {
		return false, true
	}
	return k.keep.Set(dup) == nil, true
}

func portOf(a unix.Sockaddr) int {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return a.Port
	case *unix.SockaddrInet6:
		return a.Port
	}
	return 0
}
