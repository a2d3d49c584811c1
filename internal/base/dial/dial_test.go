package dial

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// at is a loopback address of this process alone.
func at(n int) string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 192+pid>>8&0x1f, pid&0xff, n)
}

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
		}
	}()
	return l
}

// silent is an address that takes no connection: its queue is full, and the
// kernel drops what comes then.
func silent(t *testing.T, addr string) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	sa := &unix.SockaddrInet4{}
	copy(sa.Addr[:], net.ParseIP(addr).To4())
	if err := unix.Bind(fd, sa); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	full := net.JoinHostPort(addr, strconv.Itoa(name.(*unix.SockaddrInet4).Port))
	for range 64 {
		c, err := net.DialTimeout("tcp", full, 200*time.Millisecond)
		if err != nil {
			return full
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue of connections has no end")
	return ""
}

func TestFirst(t *testing.T) {
	good, other := listen(t, at(1)+":0").Addr().String(), listen(t, at(2)+":0").Addr().String()
	gone := listen(t, at(3)+":0")
	gone.Close()
	refused := gone.Addr().String()
	hung := silent(t, at(4))
	for _, c := range []struct {
		says  string
		addrs []string
		want  string // "": none answers
	}{
		{"the best one", []string{good, other}, good},
		{"the second, after a refusal", []string{refused, other}, other},
		{"the second, beside one that hangs", []string{hung, other}, other},
		{"the last, beside two that hang", []string{hung, hung, good}, good},
		{"none", []string{refused, refused}, ""},
	} {
		conn, err := First(t.Context(), c.addrs, 30*time.Second, Keep{Unacked: time.Second, Idle: time.Second})
		switch {
		case c.want == "" && err == nil, c.want != "" && err != nil:
			t.Errorf("%s: %v", c.says, err)
		case err == nil && conn.RemoteAddr().String() != c.want:
			t.Errorf("%s: %s, want %s", c.says, conn.RemoteAddr(), c.want)
		}
		if err == nil {
			conn.Close()
		}
	}
	if _, err := First(t.Context(), []string{hung}, 100*time.Millisecond, Keep{}); err == nil {
		t.Error("an address that hangs answered")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := First(ctx, []string{good}, 0, Keep{}); err == nil {
		t.Error("a connection after the end of the context")
	}
	if _, err := First(t.Context(), nil, 0, Keep{}); err == nil {
		t.Error("a connection to no address")
	}
}

func TestKeep(t *testing.T) {
	c, err := First(t.Context(), []string{listen(t, at(5)+":0").Addr().String()}, 0, Keep{Unacked: 1500 * time.Millisecond, Idle: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []struct {
		says                string
		level, option, want int
	}{
		{"user timeout", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1500},
		{"keep-alive", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"idle", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 2},
		{"interval", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 2},
	} {
		var got int
		raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), o.level, o.option) })
		if err != nil || got != o.want {
			t.Errorf("%s: %d, %v; want %d", o.says, got, err, o.want)
		}
	}
}
