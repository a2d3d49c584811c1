package lab

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"roseau/internal/lab/cable"
)

// forward hands connections on a port of 127.0.0.1 to one address inside a
// node's namespace. A node without power refuses by closing.
type forward struct {
	listener net.Listener
	dial     func(context.Context) (net.Conn, error)
	log      *slog.Logger
	ctx      context.Context // ends at close; the connections have no other owner
	cancel   context.CancelFunc
	tasks    sync.WaitGroup
}

// dialTimeout bounds the connection inside the node.
const dialTimeout = 5 * time.Second

// newForward listens on a free port.
func newForward(dial func(context.Context) (net.Conn, error), log *slog.Logger) (*forward, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &forward{listener: l, dial: dial, log: log}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.tasks.Add(1)
	go f.accept()
	return f, nil
}

func (f *forward) address() string { return f.listener.Addr().String() }

func (f *forward) accept() {
	defer f.tasks.Done()
	for {
		c, err := f.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			f.log.Warn("accept a forwarded connection", "err", err)
			time.Sleep(100 * time.Millisecond) // out of files, usually
			continue
		}
		f.tasks.Add(1)
		go func() {
			defer f.tasks.Done()
			f.carry(c)
		}()
	}
}

// carry copies both ways until both ends are done or the forward is closed.
func (f *forward) carry(near net.Conn) {
	defer near.Close()
	ctx, cancel := context.WithTimeout(f.ctx, dialTimeout)
	far, err := f.dial(ctx)
	cancel()
	if err != nil {
		f.log.Debug("forward a connection", "err", err)
		return
	}
	defer far.Close()
	stop := context.AfterFunc(f.ctx, func() {
		near.Close()
		far.Close()
	})
	defer stop()
	var both sync.WaitGroup
	oneWay := func(dst, src net.Conn) {
		defer both.Done()
		if _, err := io.Copy(dst, src); err != nil {
			dst.Close()
			return
		}
		if c, ok := dst.(interface{ CloseWrite() error }); ok {
			_ = c.CloseWrite()
		}
	}
	both.Add(2)
	go oneWay(near, far)
	go oneWay(far, near)
	both.Wait()
}

func (f *forward) close() error {
	err := f.listener.Close()
	f.cancel()
	f.tasks.Wait()
	return err
}

// dialNode connects to an address inside the node's namespace.
func (n *node) dialNode(ctx context.Context, address string) (net.Conn, error) {
	var ns *os.File
	err := n.running("connect to node "+n.name, func(l *life) error {
		var err error
		ns, err = os.Open(netNamespace(l.cmd.Process.Pid))
		return err
	})
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return cable.Dial(ctx, ns, "tcp", address)
}
