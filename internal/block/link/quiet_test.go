package link

import (
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/block/link/linktest"
)

// A unix socket is watched for room only while somebody waits for it; another one,
// and what closes, as ever.
func TestUnixSocketIsQuiet(t *testing.T) {
	a, _ := linktest.Pair(t)
	r := NewRaw(a)
	watchedForRoom := func(r *Raw) (yes bool) {
		t.Helper()
		var err error
		if cerr := r.rc.Control(func(fd uintptr) {
			var q *quiet
			if q, err = watched(int(fd)); err == nil {
				yes = q.event.Events&unix.EPOLLOUT != 0
			}
		}); cerr != nil {
			t.Fatal(cerr)
		}
		if err != nil {
			t.Skipf("the kernel does not tell who watches a socket: %v", err)
		}
		return yes
	}
	if watchedForRoom(r) {
		t.Error("watched for room from the start")
	}
	r.waiting(true)
	if !watchedForRoom(r) {
		t.Error("not watched for room while somebody waits for it")
	}
	r.waiting(false)
	if watchedForRoom(r) {
		t.Error("watched for room although nobody waits any more")
	}
	r.Close()
	r.waiting(true) // does no harm

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tcp, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	if r := NewRaw(tcp); !watchedForRoom(r) {
		t.Error("a TCP connection is quiet")
	}
}

// Each way to write waits for a peer that reads late, and goes on when it does.
func TestQuietWritesWait(t *testing.T) {
	const size = 8 << 20 // more than the kernel takes
	for name, write := range map[string]func(*Raw, []byte) error{
		"Write":        func(r *Raw, b []byte) error { _, err := r.Write(b); return err },
		"Flush":        func(r *Raw, b []byte) error { r.Gather(); r.Write(b); return r.Flush() },
		"WriteBuffers": func(r *Raw, b []byte) error { return r.WriteBuffers(&net.Buffers{b[:size/2], b[size/2:]}) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := linktest.Pair(t)
			r := NewRaw(a)
			a.SetWriteDeadline(time.Now().Add(30 * time.Second))
			written := make(chan error, 1)
			go func() { written <- write(r, []byte(strings.Repeat("x", size))) }()
			b.SetReadDeadline(time.Now().Add(30 * time.Second))
			buf := make([]byte, 64<<10)
			for left := size; left > 0; {
				n, err := b.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				left -= n
			}
			if err := <-written; err != nil {
				t.Error(err)
			}
		})
	}
}
