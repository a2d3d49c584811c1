package cable

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
}

// bench is a board with three bare namespaces for nodes, each echoing on port 7379.
type bench struct {
	*Board
	ns map[string]*os.File
}

func newBench(t *testing.T) *bench {
	needRoot(t)
	b, err := NewBoard()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &bench{Board: b, ns: map[string]*os.File{}}
	for i := 1; i <= 3; i++ {
		name := fmt.Sprintf("n%d", i)
		ns, err := newNamespace()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		if err := b.Plug(name, i, ns); err != nil {
			t.Fatal(err)
		}
		var l net.Listener
		if err := Within(ns, func() error { l, err = net.Listen("tcp", "0.0.0.0:7379"); return err }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintln(c, name)
				c.Close()
			}
		}()
		r.ns[name] = ns
	}
	return r
}

// reach reports whether from gets the greeting of the server at addr.
func (r *bench) reach(from, addr, want string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	c, err := Dial(ctx, r.ns[from], "tcp", addr+":7379")
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(300 * time.Millisecond))
	line, _ := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line) == want
}

func (r *bench) want(t *testing.T, from, addr, to string, ok bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for r.reach(from, addr, to) != ok {
		if time.Now().After(deadline) {
			t.Fatalf("%s -> %s (%s): reachable is not %v", from, addr, to, ok)
		}
	}
}

func TestCablesAndPartitions(t *testing.T) {
	r := newBench(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r.want(t, "n1", "10.203.0.12", "n2", true)
	r.want(t, "n1", "10.204.0.13", "n3", true)

	must(r.SetLink("n2", "cluster", false))
	r.want(t, "n1", "10.203.0.12", "n2", false)
	r.want(t, "n1", "10.204.0.12", "n2", true)
	if cut := r.Cut("n2"); len(cut) != 1 || cut[0] != "cluster" {
		t.Fatalf("cut = %v", cut)
	}
	must(r.SetLink("n2", "cluster", true))
	r.want(t, "n1", "10.203.0.12", "n2", true)

	must(r.Partition([][]string{{"n1", "n2"}, {"n3"}}, Networks))
	r.want(t, "n1", "10.203.0.12", "n2", true)
	r.want(t, "n1", "10.203.0.13", "n3", false)
	r.want(t, "n3", "10.204.0.12", "n2", false)
	must(r.Partition(nil, Networks))
	r.want(t, "n1", "10.203.0.13", "n3", true)

	if p := r.Ports("vm"); p["n1"] != 1001 || p["n3"] != 1003 || p["outside"] != 2000 {
		t.Fatalf("ports of the vm switch: %v", p)
	}
}

// A lossy cable loses about its share in both directions, and on its network alone.
func TestLoss(t *testing.T) {
	r := newBench(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const sent = 200 // what a socket holds, and more than chance needs
	heard := func(from, to, address string) (n int) {
		t.Helper()
		var far *net.UDPConn
		must(Within(r.ns[to], func() (err error) {
			far, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(address), Port: 7500})
			return err
		}))
		defer far.Close()
		near, err := Dial(t.Context(), r.ns[from], "udp", address+":7500")
		must(err)
		defer near.Close()
		for range sent {
			_, err := near.Write([]byte{1})
			must(err)
		}
		far.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		for {
			if _, err := far.Read(make([]byte, 8)); err != nil {
				return n
			}
			n++
		}
	}
	// The addresses are resolved while nothing is lost.
	r.want(t, "n1", "10.204.0.12", "n2", true)
	r.want(t, "n3", "10.204.0.12", "n2", true)
	must(r.Partition([][]string{{"n1", "n2"}, {"n3"}}, Networks[:1])) // stays as it is
	must(r.Lose("n2", Networks[1:2], 50))
	if got := r.Losses("n2"); len(got) != 1 || got["storage"] != 50 || r.Losses("n1") != nil {
		t.Fatalf("losses of n2 %v, of n1 %v", got, r.Losses("n1"))
	}
	// 7 deviations around the half.
	for _, way := range [][3]string{{"n1", "n2", "10.204.0.12"}, {"n2", "n3", "10.204.0.13"}} {
		if n := heard(way[0], way[1], way[2]); n < sent/4 || n > sent*3/4 {
			t.Errorf("%s -> %s: %d of %d datagrams came", way[0], way[1], n, sent)
		}
	}
	if n := heard("n1", "n3", "10.204.0.13"); n != sent {
		t.Errorf("between others %d of %d datagrams came", n, sent)
	}
	r.want(t, "n2", "10.203.0.11", "n1", true)
	r.want(t, "n2", "10.203.0.13", "n3", false) // the partition
	must(r.Lose("n2", Networks, 0))
	if n := heard("n1", "n2", "10.204.0.12"); n != sent {
		t.Errorf("afterwards %d of %d datagrams came", n, sent)
	}
	for _, percent := range []int{-1, 101} {
		if err := r.Lose("n2", Networks, percent); errs.Kind(err) != errs.Invalid {
			t.Errorf("%d percent: %v", percent, err)
		}
	}
}

func TestSilencePorts(t *testing.T) {
	r := newBench(t)
	if err := SilencePorts(r.ns["n1"], []uint16{7379, 7380}, 7380); err != nil {
		t.Fatal(err)
	}
	r.want(t, "n2", "10.203.0.11", "n1", false)
	r.want(t, "n1", "127.0.0.1", "n1", false)
	r.want(t, "n1", "10.203.0.12", "n2", true)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	begin := time.Now()
	if _, err := Dial(ctx, r.ns["n2"], "tcp", "10.203.0.11:7379"); err == nil || time.Since(begin) > time.Second {
		t.Fatalf("dial of a silenced port: %v after %v, want a reset at once", err, time.Since(begin))
	}
	if err := SilencePorts(r.ns["n1"], nil, 0); err != nil {
		t.Fatal(err)
	}
	r.want(t, "n2", "10.203.0.11", "n1", true)
}

// A connection that carries something is reset at both ends; the next one is not.
func TestResetConnections(t *testing.T) {
	r := newBench(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var l net.Listener
	if err := Within(r.ns["n1"], func() (err error) { l, err = net.Listen("tcp", "10.203.0.11:7444"); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 2)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	connect := func() (near, far net.Conn) {
		t.Helper()
		near, err := Dial(ctx, r.ns["n2"], "tcp", "10.203.0.11:7444")
		if err != nil {
			t.Fatal(err)
		}
		far = <-accepted
		t.Cleanup(func() { near.Close(); far.Close() })
		return near, far
	}
	near, far := connect()
	ended := make(chan error, 2)
	for _, c := range []net.Conn{near, far} {
		go func() {
			for b := make([]byte, 1); ; {
				if _, err := c.Read(b); err != nil {
					ended <- err
					return
				}
			}
		}()
		go func() {
			for pace := time.Tick(10 * time.Millisecond); ctx.Err() == nil; <-pace {
				if _, err := c.Write([]byte{1}); err != nil {
					return
				}
			}
		}()
	}
	if err := ResetConnections(ctx, r.ns["n1"], 7444); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		select {
		case err := <-ended:
			if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, io.EOF) {
				t.Errorf("an end reads %v", err)
			}
		case <-ctx.Done():
			t.Fatal("an end of the connection goes on")
		}
	}
	near, far = connect()
	if _, err := near.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := far.Read(make([]byte, 1)); err != nil {
		t.Errorf("a connection made afterwards: %v", err)
	}
}
