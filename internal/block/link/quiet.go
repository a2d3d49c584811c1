package link

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// quiet is how a connection is watched that wakes nobody up for nothing.
//
// Go's poller watches each socket for room to write as well as for input. The
// kernel reports room in a unix socket whenever the peer has read something, so
// each message woke its sender up once more: half of all wake-ups of a storage
// process at depth 1. A quiet connection is watched for input only, and for room
// while somebody waits for it.
//
// The runtime has no call for this. But the kernel tells, under /proc, which epoll
// watches a descriptor, for what and under which mark; the same with fewer events
// is set in its place. Where that is not possible all stays as it was, which costs
// CPU time only.
type quiet struct {
	poller int // descriptor of the runtime's epoll
	event  unix.EpollEvent
}

// hush makes the connection quiet if it can.
func (r *Raw) hush(fd uintptr) {
	q, err := watched(int(fd))
	if err != nil || q.set(int(fd), false) != nil {
		return
	}
	r.wait = func(fd uintptr) { q.set(int(fd), true) }
	r.waited = func(fd uintptr) { q.set(int(fd), false) }
}

// waiting is called by who writes: before he may have to wait for room, and
// afterwards. An error says that the connection is closed: then nobody waits.
func (r *Raw) waiting(yes bool) {
	switch {
	case r.wait == nil:
	case yes:
		r.rc.Control(r.wait)
	default:
		r.rc.Control(r.waited)
	}
}

func (q *quiet) set(fd int, room bool) error {
	ev := q.event
	ev.Events &^= unix.EPOLLOUT
	if room {
		ev.Events |= unix.EPOLLOUT
	}
	return unix.EpollCtl(q.poller, unix.EPOLL_CTL_MOD, fd, &ev)
}

// watched finds out which poller watches fd, and how.
func watched(fd int) (*quiet, error) {
	pollers, err := epolls()
	if err != nil {
		return nil, err
	}
	for _, p := range pollers {
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", p))
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(b)) {
			var tfd int
			var events uint32
			var data uint64
			if n, _ := fmt.Sscanf(line, "tfd: %d events: %x data: %x", &tfd, &events, &data); n == 3 && tfd == fd {
				return &quiet{poller: p, event: unix.EpollEvent{Events: events, Fd: int32(data), Pad: int32(data >> 32)}}, nil
			}
		}
	}
	return nil, errors.New("no poller watches it")
}

// epolls are the descriptors of this process that are epolls.
var epolls = sync.OnceValues(func() (list []int, err error) {
	dir, err := os.ReadDir("/proc/self/fd")
	for _, e := range dir {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // the directory's own
		}
		if err != nil {
			return nil, err
		}
		if target == "anon_inode:[eventpoll]" {
			var n int
			fmt.Sscan(e.Name(), &n)
			list = append(list, n)
		}
	}
	return list, err
})
