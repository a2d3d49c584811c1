package guard

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/paths"
	"roseau/internal/core/vmguard"
	"roseau/internal/driver/qemu"
	"roseau/internal/pki"
)

// receiver is the destination's ear. It listens as long as the guard lives, so
// that the source learns the outcome whenever it asks.
type receiver struct {
	port    int
	control *link // the source's; nil: not connected

	up chan struct{} // closed when the taps take frames
}

// linkUp lets frames collect in the taps, behind one that QEMU may spoil.
func (g *guard) linkUp() error {
	err := g.net.SetUp(true)
	if g.dst == nil || g.core.Migration() == "" {
		return err
	}
	select {
	case <-g.dst.up:
		return err
	default:
		close(g.dst.up)
		return errors.Join(err, g.net.Blank())
	}
}

// helloTimeout bounds the first line of a connection.
const helloTimeout = 5 * time.Second

// listenMigration listens on the configured port, or the first free one.
func (g *guard) listenMigration(ctx context.Context) error {
	first, last := paths.PortMigrationFirst, paths.PortMigrationLast
	if p := g.cfg.MigrationPort; p != 0 {
		first, last = p, p
	}
	var all error
	for port := first; port <= last; port++ {
		l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			all = err
			continue
		}
		g.dst = &receiver{port: port, up: make(chan struct{})}
		tl := tls.NewListener(l, g.identity.ServerTLS())
		g.async(func() { g.acceptPeers(ctx, tl) })
		return nil
	}
	return errs.New(errs.Exhausted, "listen for a migration of vm %s: no free port of %d to %d: %w", g.cfg.Name, first, last, all)
}

func (g *guard) acceptPeers(ctx context.Context, l net.Listener) {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				g.log.Warn("accept a migration", "cause", err)
				if clock.Sleep(ctx, 100*time.Millisecond) == nil {
					continue
				}
			}
			return
		}
		g.async(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			if err := g.servePeer(ctx, c.(*tls.Conn)); err != nil && ctx.Err() == nil {
				g.log.Warn("migration connection", "peer", c.RemoteAddr(), "cause", err)
			}
		})
	}
}

// servePeer lets in the source of the migration alone.
func (g *guard) servePeer(ctx context.Context, c *tls.Conn) error {
	hctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	if err := c.HandshakeContext(hctx); err != nil {
		return err
	}
	peer, err := pki.PeerOf(c.ConnectionState())
	if err != nil {
		return err
	}
	if peer.Node != g.cfg.Source {
		return errs.New(errs.Denied, "accept %s: the VM comes from node %s", peer, g.cfg.Source)
	}
	l := newLink(c)
	m, err := l.receiveWithin(helloTimeout)
	if err != nil {
		return err
	}
	if m.VM != g.cfg.VM {
		return errs.New(errs.Invalid, "accept %s: it speaks of vm %s", peer, m.VM)
	}
	switch m.Op {
	case opControl:
		return g.serveControlLink(l, m)
	case opStream:
		return g.receiveStream(ctx, l)
	case opFrames:
		return g.receiveFrames(ctx, l)
	case opAsk:
		return g.answerAsk(ctx, l)
	}
	return errs.New(errs.Invalid, "accept %s: %q begins no conversation", peer, m.Op)
}

func (g *guard) serveControlLink(l *link, hello message) error {
	g.inLoop(func() {
		if old := g.dst.control; old != nil {
			old.conn.Close()
		}
		g.dst.control = l
		g.step(vmguard.SourceHello{Epoch: hello.Epoch, Run: hello.Run})
	})
	for {
		m, err := l.receive()
		if err != nil {
			g.inLoop(func() {
				if g.dst.control == l {
					g.dst.control = nil
					g.step(vmguard.SourceLost{})
				}
			})
			return nil
		}
		var e vmguard.Event
		switch m.Op {
		case opSwitch:
			e = vmguard.SourceSwitch{Paused: m.Paused}
		case opCancel:
			e = vmguard.SourceCancel{}
		case opReleased:
			e = vmguard.SourceReleased{}
		default:
			continue
		}
		g.inLoop(func() {
			if g.dst.control == l {
				g.step(e)
			}
		})
	}
}

// receiveStream carries the source's stream into QEMU.
func (g *guard) receiveStream(ctx context.Context, l *link) error {
	var d net.Dialer
	dctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		c, err := d.DialContext(dctx, "unix", g.files.migrateIn())
		if err == nil {
			defer context.AfterFunc(ctx, func() { c.Close() })()
			if n := l.r.Buffered(); n > 0 { // what came along with the first line
				head, err := l.r.Peek(n)
				if err != nil {
					return err
				}
				if _, err := c.Write(head); err != nil {
					return errors.Join(err, c.Close())
				}
			}
			return pipe(l.conn, c)
		}
		select {
		case <-dctx.Done():
			return fmt.Errorf("connect the stream to qemu: %w", err)
		case <-time.After(qemu.Poll):
		}
	}
}

// answerAsk tells a source that lost its connection what became of the
// migration. Asking means that it will not go on: what is not decided ends.
func (g *guard) answerAsk(ctx context.Context, l *link) error {
	ch := make(chan op, 1)
	g.inLoop(func() {
		g.step(vmguard.SourceCancel{})
		phase, _ := g.core.Phase()
		switch stage := g.core.Migration(); {
		case stage == vmguard.Never:
			ch <- opNever
		case stage == vmguard.Committed, stage == "" && phase != vmguard.Lost && phase != vmguard.Failed:
			ch <- opCommitted
		default: // own will say
			ch <- opUndecided
		}
	})
	select {
	case o := <-ch:
		return l.send(message{Op: o})
	case <-ctx.Done():
		return nil
	}
}

// carryOutReceiver does the destination's actions.
func (g *guard) carryOutReceiver(a vmguard.Action) {
	switch a := a.(type) {
	case vmguard.MigrateIncoming:
		g.files.remove(g.files.migrateIn())
		g.fire("migrate-set-capabilities", capabilities())
		g.fire("migrate-set-parameters", parameters(50*time.Millisecond, migrationSpeed))
		g.fire("migrate-incoming", map[string]any{"uri": "unix:" + g.files.migrateIn()})
	case vmguard.TellAccept:
		g.tellSource(message{Op: opAccept})
	case vmguard.TellRefuse:
		g.tellSource(message{Op: opRefuse, Text: a.Text})
	case vmguard.TellNever:
		g.tellSource(message{Op: opNever})
	case vmguard.TellCommitted:
		g.tellSource(message{Op: opCommitted})
	default:
		g.log.Error("unknown action", "action", fmt.Sprintf("%T", a))
	}
}

func (g *guard) tellSource(m message) {
	if g.dst == nil || g.dst.control == nil {
		return
	}
	if err := g.dst.control.send(m); err != nil {
		g.log.Warn("tell the source", "op", m.Op, "cause", err)
	}
}
