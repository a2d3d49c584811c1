// Package dial connects to a machine by whichever of its addresses answers
// first, and makes the kernel give up connections whose network is cut.
package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Stagger is how long an address may take before the next one is tried beside it.
const Stagger = 250 * time.Millisecond

// Keep is how the kernel watches a connection; a zero field leaves what is.
type Keep struct {
	// Unacked ends the connection when something sent is not acknowledged for so
	// long; in milliseconds for the kernel.
	Unacked time.Duration
	// Idle is when, and then how often, an idle connection is asked for a sign of
	// life; in whole seconds for the kernel. With Unacked it ends at the first
	// question without an answer after that time.
	Idle time.Duration
}

// Set sets a TCP socket's options.
func (k Keep) Set(fd int) error {
	var err error
	set := func(level, option, value int) {
		err = errors.Join(err, unix.SetsockoptInt(fd, level, option, value))
	}
	if k.Unacked > 0 {
		set(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(k.Unacked.Milliseconds()))
	}
	if k.Idle > 0 {
		secs := max(1, int(k.Idle/time.Second))
		set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		set(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, secs)
		set(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, secs)
	}
	return err
}

// Apply sets the options of a connection; one that is not TCP is left alone.
func (k Keep) Apply(c net.Conn) error {
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = k.Set(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// First connects to the first of addrs ("10.0.0.1:7379", best first) that
// answers. The next one is tried when one fails, or beside it after Stagger. Each
// has at most limit; 0: until ctx ends. If none answers, the error is that of
// all.
func First(ctx context.Context, addrs []string, limit time.Duration, keep Keep) (net.Conn, error) {
	if len(addrs) == 0 {
		return nil, errors.New("connect: no address")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		c   net.Conn
		err error
	}
	results := make(chan result, len(addrs))
	d := net.Dialer{Timeout: limit, KeepAlive: -1}
	began, open := 0, 0
	next := func() {
		a := addrs[began]
		began++
		open++
		go func() {
			c, err := d.DialContext(ctx, "tcp", a)
			results <- result{c, err}
		}()
	}
	next()
	timer := time.NewTimer(Stagger)
	defer timer.Stop()
	var all error
	for {
		select {
		case r := <-results:
			open--
			if r.err != nil {
				all = errors.Join(all, r.err)
				if began < len(addrs) {
					next()
					timer.Reset(Stagger)
				} else if open == 0 {
					return nil, all
				}
				continue
			}
			go func(rest int) { // the dials that lost the race
				for range rest {
					if l := <-results; l.c != nil {
						l.c.Close()
					}
				}
			}(open)
			if err := keep.Apply(r.c); err != nil {
				r.c.Close()
				return nil, fmt.Errorf("connect to %s: %w", r.c.RemoteAddr(), err)
			}
			return r.c, nil
		case <-timer.C:
			if began < len(addrs) {
				next()
				timer.Reset(Stagger)
			}
		}
	}
}
