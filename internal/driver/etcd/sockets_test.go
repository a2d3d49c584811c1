package etcd

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// userTimeout reads what the kernel has for a connection, in milliseconds.
func userTimeout(t *testing.T, c net.Conn) int {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got int
	if cerr := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return got
}

// connect makes a listener and a connection to it: here, there, and its port.
func connect(t *testing.T) (dialled, accepted net.Conn, port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	got := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			close(got)
			return
		}
		got <- c
	}()
	if dialled, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close() })
	accepted = <-got
	if accepted == nil {
		t.Fatal("no connection")
	}
	t.Cleanup(func() { accepted.Close() })
	return dialled, accepted, l.Addr().(*net.TCPAddr).Port
}

// TestKeeper: both ends of a connection between members are watched, nothing
// else is touched, and a port that becomes a member's later counts then.
func TestKeeper(t *testing.T) {
	a, b, port := connect(t)
	c, d, other := connect(t)
	k := newKeeper()
	if n := k.look(map[int]bool{port: true}); n != 2 {
		t.Errorf("%d sockets were set, want 2", n)
	}
	want := int(peerUnacked.Milliseconds())
	for _, e := range []struct {
		says string
		c    net.Conn
		want int
	}{{"dialled", a, want}, {"accepted", b, want}, {"another's, dialled", c, 0}, {"another's, accepted", d, 0}} {
		if got := userTimeout(t, e.c); got != e.want {
			t.Errorf("%s: user timeout %d ms, want %d", e.says, got, e.want)
		}
	}
	if n := k.look(map[int]bool{port: true}); n != 0 {
		t.Errorf("%d sockets were set again", n)
	}
	if n := k.look(map[int]bool{port: true, other: true}); n != 4 || userTimeout(t, c) != want {
		t.Errorf("with a new member's port: %d sockets were set, user timeout %d", n, userTimeout(t, c))
	}
	// Closed ones are forgotten: the kernel's names are used again one day.
	a.Close()
	b.Close()
	k.look(k.ports)
	if n := len(k.known); n == 0 {
		t.Error("it remembers nothing")
	}
	before := len(k.known)
	c.Close()
	d.Close()
	if k.look(k.ports); len(k.known) >= before {
		t.Errorf("it remembers %d sockets, %d before two were closed", len(k.known), before)
	}
}

func TestAbsent(t *testing.T) {
	// 192.0.2.0/24 is for documentation: no machine has it.
	if got := absent([]string{"127.0.0.1", "192.0.2.1", "::1"}); len(got) == 0 || got[0] != "192.0.2.1" {
		t.Errorf("absent addresses: %v", got)
	}
}
