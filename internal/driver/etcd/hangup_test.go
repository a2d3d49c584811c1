package etcd_test

import (
	"context"
	"errors"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"roseau/internal/driver/etcd"
	"roseau/internal/driver/etcd/etcdtest"
)

// relay forwards connections to a member. Frozen, it takes bytes and connections
// and passes nothing on, as the kernel of a machine whose processes are stopped.
type relay struct {
	l      net.Listener
	target string

	mu     sync.Mutex
	thawed chan struct{} // closed: not frozen
}

func newRelay(t *testing.T, listen, target string) *relay {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{l: l, target: target, thawed: make(chan struct{})}
	close(r.thawed)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.serve(c)
		}
	}()
	return r
}

func (r *relay) freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.thawed = make(chan struct{})
}

func (r *relay) thaw() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.thawed)
}

func (r *relay) gate() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.thawed
}

func (r *relay) serve(c net.Conn) {
	defer c.Close()
	<-r.gate()
	up, err := net.Dial("tcp", r.target)
	if err != nil {
		return
	}
	defer up.Close()
	pass := func(to, from net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			<-r.gate()
			if n > 0 {
				if _, werr := to.Write(buf[:n]); werr != nil {
					err = errors.Join(err, werr)
				}
			}
			if err != nil {
				to.Close()
				return
			}
		}
	}
	go pass(up, c)
	pass(c, up)
}

func (r *relay) url() string { return "https://" + r.l.Addr().String() }

func TestARequestLeavesAFrozenMember(t *testing.T) {
	m := etcdtest.New(t, 1)
	target, err := url.Parse(m.Client.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	ours := net.JoinHostPort(target.Hostname(), "0")
	a, b := newRelay(t, ours, target.Host), newRelay(t, ours, target.Host)
	cli, err := etcd.Dial(m.Config.Identity, []string{a.url(), b.url()})
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	get := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		_, err := cli.Get(ctx, "x")
		return err
	}
	lease, err := cli.Grant(t.Context(), 6)
	if err != nil {
		t.Fatal(err)
	}
	alive, err := cli.KeepAlive(t.Context(), lease.ID)
	if err != nil {
		t.Fatal(err)
	}
	next := func(what string) {
		t.Helper()
		select {
		case _, ok := <-alive:
			if !ok {
				t.Fatalf("%s: the lease is not kept any more", what)
			}
		case <-time.After(40 * time.Second):
			t.Fatalf("%s: the lease was not renewed", what)
		}
	}
	next("both answer")
	for range 10 { // both are connected
		if err := get(30 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	a.freeze()
	for i := range 10 { // gRPC's own keep-alive would need 10 s
		if err := get(8 * time.Second); err != nil {
			t.Errorf("request %d beside a frozen member: %v", i, err)
		}
	}
	next("one is frozen")
	a.thaw()
	b.freeze()
	for i := range 10 { // the thawed one is used again
		if err := get(20 * time.Second); err != nil {
			t.Errorf("request %d after the thaw: %v", i, err)
		}
	}
	b.thaw()
}
