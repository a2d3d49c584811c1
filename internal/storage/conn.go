package storage

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/link"
	"roseau/internal/block/replica"
	"roseau/internal/block/wire"
	"roseau/internal/pki"
)

// handshakeTime bounds TLS and HELLO of a new connection.
const handshakeTime = 5 * time.Second

// conn is a guard's connection. Its reader and its sender end when it is
// closed.
type conn struct {
	id  replica.Conn
	raw *link.Raw
	out *link.Sender
	dec *wire.Decoder
	log *slog.Logger
	// dirty: queued and not flushed; the turn's.
	dirty bool
	gone  chan struct{} // closed when nobody reads any more

	// alone is the disk action that a turn left to the reader that ran it.
	alone struct {
		dev *device
		io  disk.IO
	}
	// busy is the number of the action that the reader does now; 0 = none,
	// takenOver = another reader reads instead.
	busy   atomic.Int64
	looked int64 // busy as the last look saw it
}

func newConn(id replica.Conn, nc net.Conn, raw *link.Raw, p *pool, log *slog.Logger) *conn {
	return &conn{id: id, raw: raw, log: log, out: link.NewSender(nc, raw, p.Free), dec: wire.NewDecoder(nc, p), gone: make(chan struct{})}
}

// close ends both goroutines. It may be called more than once.
func (c *conn) close() {
	c.raw.Close() // not the TLS close, which waits for a peer that may hang
	c.out.Close()
}

// send writes what is not written at once, until the connection is closed.
func (c *conn) send() {
	if c.out.Run() != nil {
		c.close()
	}
}

// readBatch is how many messages go to the core with one push.
const readBatch = 64

// read decodes messages and gives them to the core, until the stream ends. ok
// is false if another reader has taken over.
func (p *process) read(c *conn) (ok bool, err error) {
	events := make([]event, 0, readBatch)
	for {
		m, err := c.dec.Next()
		if err != nil {
			return true, err
		}
		if h, ok := m.(*wire.Hello); ok {
			if v, ok := wire.Negotiate(h.ProtoMin, h.ProtoMax); ok {
				c.dec.SetVersion(v)
				c.raw.SetReadDeadline(time.Time{})
			}
		}
		if events = append(events, event{conn: c.id, msg: m}); c.dec.Complete() && len(events) < readBatch {
			continue
		}
		alone := len(events) == 1
		if alone {
			alone = p.push(c, events...)
		} else {
			p.push(nil, events...)
		}
		clear(events)
		events = events[:0]
		if alone && !p.perform(c) {
			return false, nil
		}
		if used := p.pool.used.Load(); used > poolLimit {
			return true, errs.New(errs.Exhausted, "read from guard: %d bytes of block data wait for disks", used)
		}
	}
}

// poolLimit bounds the memory of block data: a guard that pours into a disk
// which hangs loses its connection, long after its own limits.
const poolLimit = 1 << 30

// handshake proves who the peer is: by certificate on TCP, by being root on
// this node's unix socket.
func handshake(ctx context.Context, raw *link.Raw, identity *pki.Identity, self ids.ID) (net.Conn, ids.ID, error) {
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
