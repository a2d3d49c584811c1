package storage

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/replica"
	"roseau/internal/block/wire"
	"roseau/internal/pki"
)

// handshakeTime bounds TLS and HELLO of a new connection.
const handshakeTime = 5 * time.Second

// conn is a guard's connection. Its reader and its sender end when nc is
// closed.
type conn struct {
	id   replica.Conn
	nc   net.Conn // TLS, or the unix socket
	raw  *gathering
	log  *slog.Logger
	pool *pool
	// dirty: queued and not flushed; the loop's.
	dirty bool

	mu     sync.Mutex
	urgent *outgoing // heartbeats: they stand at the head
	normal *outgoing
	closed bool
	wake   chan struct{} // capacity 1
}

// outgoing is what gathers while the sender is busy. Two of a kind are swapped,
// so that sending makes no garbage.
type outgoing struct {
	batch wire.Batch
	data  [][]byte // buffers to free when it is sent
}

func (o *outgoing) release(p *pool) {
	for i, b := range o.data {
		p.Free(b)
		o.data[i] = nil
	}
	o.data = o.data[:0]
	o.batch.Reset()
}

func newConn(id replica.Conn, nc net.Conn, raw *gathering, p *pool, log *slog.Logger) *conn {
	return &conn{id: id, nc: nc, raw: raw, pool: p, log: log, urgent: new(outgoing), normal: new(outgoing), wake: make(chan struct{}, 1)}
}

// put queues a message; the sender is woken by flush.
func (c *conn) put(m wire.Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.normal
	if _, ok := m.(*wire.HeartbeatAck); ok {
		o = c.urgent
	}
	err := errors.New("connection is closed")
	if !c.closed {
		err = o.batch.Add(m)
	}
	r, isRead := m.(*wire.ReadReply)
	if isRead && r.Data != nil {
		if err != nil {
			c.pool.Free(r.Data)
		} else {
			o.data = append(o.data, r.Data)
		}
	}
	wire.Recycle(m)
	return err
}

func (c *conn) flush() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// close ends both goroutines. It may be called more than once.
func (c *conn) close() {
	c.mu.Lock()
	was := c.closed
	c.closed = true
	c.mu.Unlock()
	if !was {
		c.raw.Close() // not the TLS close, which waits for a peer that may hang
		c.flush()
	}
}

// send writes what gathers until the connection is closed.
func (c *conn) send() {
	urgent, normal := new(outgoing), new(outgoing)
	var flat []byte
	for range c.wake {
		c.mu.Lock()
		closed := c.closed
		c.urgent, urgent = urgent, c.urgent
		c.normal, normal = normal, c.normal
		c.mu.Unlock()
		var err error
		if !closed {
			flat, err = c.write(flat, &urgent.batch, &normal.batch)
		}
		urgent.release(c.pool)
		normal.release(c.pool)
		if err != nil {
			c.close()
		}
		if closed || err != nil {
			c.mu.Lock() // nothing is added any more
			c.urgent.release(c.pool)
			c.normal.release(c.pool)
			c.mu.Unlock()
			return
		}
	}
}

// write sends two batches: one writev on a plain socket, one run of records and
// one system call through TLS, which copies anyway.
func (c *conn) write(flat []byte, batches ...*wire.Batch) ([]byte, error) {
	if c.nc == net.Conn(c.raw) {
		for _, b := range batches {
			if b.Len() == 0 {
				continue
			}
			if _, err := b.Buffers().WriteTo(c.raw.Conn); err != nil {
				return flat, err
			}
		}
		return flat, nil
	}
	flat = flat[:0]
	for _, b := range batches {
		flat = b.AppendTo(flat)
	}
	if len(flat) == 0 {
		return flat, nil
	}
	if _, err := c.nc.Write(flat); err != nil {
		return flat, err
	}
	return flat, c.raw.flush()
}

// readBatch is how many messages go to the loop with one push.
const readBatch = 64

// read decodes messages into the queue until the stream ends.
func (c *conn) read(dec *wire.Decoder, q *queue) error {
	events := make([]event, 0, readBatch)
	for {
		m, err := dec.Next()
		if err != nil {
			return err
		}
		if h, ok := m.(*wire.Hello); ok {
			if v, ok := wire.Negotiate(h.ProtoMin, h.ProtoMax); ok {
				dec.SetVersion(v)
				c.raw.SetReadDeadline(time.Time{})
			}
		}
		if events = append(events, event{conn: c.id, msg: m}); dec.Complete() && len(events) < readBatch {
			continue
		}
		q.push(events...)
		clear(events)
		events = events[:0]
		if used := c.pool.used.Load(); used > poolLimit {
			return errs.New(errs.Exhausted, "read from guard: %d bytes of block data wait for disks", used)
		}
	}
}

// poolLimit bounds the memory of block data: a guard that pours into a disk
// which hangs loses its connection, long after its own limits.
const poolLimit = 1 << 30

// gathering is a connection whose writes are gathered until flush, once the
// TLS handshake is done: crypto/tls writes each record of 16 KiB by itself.
type gathering struct {
	net.Conn
	mu  sync.Mutex
	on  bool
	buf []byte
}

// Write implements net.Conn.
func (g *gathering) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.on {
		return g.Conn.Write(p)
	}
	g.buf = append(g.buf, p...)
	return len(p), nil
}

func (g *gathering) gather() {
	g.mu.Lock()
	g.on = true
	g.mu.Unlock()
}

func (g *gathering) flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err := g.Conn.Write(g.buf)
	g.buf = g.buf[:0]
	return err
}

// handshake proves who the peer is: by certificate on TCP, by being root on
// this node's unix socket.
func handshake(ctx context.Context, raw *gathering, identity *pki.Identity, self ids.ID) (net.Conn, ids.ID, error) {
	raw.SetDeadline(time.Now().Add(handshakeTime))
	if u, ok := raw.Conn.(*net.UnixConn); ok {
		if err := checkRoot(u); err != nil {
			return nil, ids.ID{}, err
		}
		raw.SetWriteDeadline(time.Time{})
		return raw, self, nil
	}
	cfg := identity.ServerTLS()
	cfg.DynamicRecordSizingDisabled = true
	t := tls.Server(raw, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, ids.ID{}, fmt.Errorf("greet guard at %s: %w", raw.RemoteAddr(), err)
	}
	peer, err := pki.PeerOf(t.ConnectionState())
	if err != nil {
		return nil, ids.ID{}, err
	}
	raw.SetWriteDeadline(time.Time{})
	raw.gather()
	return t, peer.Node, nil
}

func checkRoot(u *net.UnixConn) error {
	rc, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := rc.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	if cred.Uid != 0 && int(cred.Uid) != unix.Geteuid() {
		return errs.New(errs.Denied, "greet guard: user %d may not use the storage socket", cred.Uid)
	}
	return nil
}

// quiet reports whether a connection's end is ordinary.
func quiet(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET)
}
