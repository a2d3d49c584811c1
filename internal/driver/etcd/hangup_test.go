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
	conns  []net.Conn    // all that came in
}

// end closes the listener and all connections.
func (r *relay) end() {
	r.l.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
}

// count is how many connections came in.
func (r *relay) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.conns)
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
	r.mu.Lock()
	r.conns = append(r.conns, c)
	r.mu.Unlock()
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
	lost := etcd.KeepLease(t.Context(), cli, lease.ID, 6*time.Second)
	kept := func(what string) {
		t.Helper()
		select {
		case <-lost:
			t.Fatalf("%s: the lease is not kept any more", what)
		default:
		}
	}
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
	kept("one is frozen")
	a.thaw()
	b.freeze()
	for i := range 10 { // the thawed one is used again
		if err := get(20 * time.Second); err != nil {
			t.Errorf("request %d after the thaw: %v", i, err)
		}
	}
	kept("the other is frozen")
	b.thaw()
}

// TestAClientUsesEachAddress: one endpoint with two addresses. The first refuses,
// later the second goes away with the connection.
func TestAClientUsesEachAddress(t *testing.T) {
	m := etcdtest.New(t, 2)
	target, err := url.Parse(m.Client.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	ours := net.JoinHostPort(target.Hostname(), "0")
	a, b := newRelay(t, ours, target.Host), newRelay(t, ours, target.Host)
	a.l.Close()
	member := etcd.Member{ClientURLs: []string{a.url(), b.url()}}
	cli, err := etcd.Dial(m.Config.Identity, []string{member.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	get := func(what string) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_, err := cli.Get(ctx, "x")
			cancel()
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	get("by the second address")
	c := newRelay(t, a.l.Addr().String(), target.Host)
	b.end()
	get("by the first, which is back")
	if c.count() == 0 || b.count() == 0 {
		t.Errorf("connections: %d by the first address, %d by the second", c.count(), b.count())
	}
}

func TestEndpoint(t *testing.T) {
	for _, c := range []struct {
		urls []string
		want string
	}{
		{nil, ""},
		{[]string{"https://10.0.0.1:7379"}, "https://10.0.0.1:7379"},
		{[]string{"https://10.0.0.1:7379", "https://10.1.0.1:7379"}, "10.0.0.1:7379,10.1.0.1:7379"},
		{[]string{"https://[fd00::1]:7379", "https://10.1.0.1:7379"}, "[fd00::1]:7379,10.1.0.1:7379"},
	} {
		if got := (etcd.Member{ClientURLs: c.urls}).Endpoint(); got != c.want {
			t.Errorf("%v: %q, want %q", c.urls, got, c.want)
		}
	}
}
