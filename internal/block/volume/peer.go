package volume

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/link"
	"roseau/internal/block/nbd"
	"roseau/internal/block/wire"
	"roseau/internal/block/writer"
)

// Timing of connections.
const (
	dialTimeout = 700 * time.Millisecond // an address: connect, TLS and HELLO
	// The core notices within a second when heartbeats are not answered; this is
	// for connections without heartbeats, before anything is opened.
	silenceLimit = 3 * time.Second
	firstRedial  = 20 * time.Millisecond
	lastRedial   = 500 * time.Millisecond
)

// peer keeps one connection to a storage node, for as long as the set wants the
// node. Its run goroutine dials and receives; each connection has a sender.
type peer struct {
	s    *Set
	node ids.ID
	stop context.CancelFunc
	cur  *connection // the connection of the last ConnUp; owned by the turn
}

// connection is one connection of a peer.
type connection struct {
	nc  net.Conn
	out *link.Sender

	// asked is when something was first sent of which nothing came back since;
	// 0 = none. Boot time in nanoseconds.
	asked atomic.Int64
}

// run connects, receives, and connects again, until ctx ends.
func (p *peer) run(ctx context.Context) {
	delay := time.Duration(0)
	refusedBefore, told := false, ""
	for {
		if delay > 0 && clock.Sleep(ctx, delay) != nil {
			return
		}
		l, dec, ack, err := p.connect(ctx)
		if ctx.Err() != nil {
			if l != nil {
				l.nc.Close()
			}
			return
		}
		if err != nil {
			refused := errors.Is(err, errRefused)
			if refused && !refusedBefore {
				p.s.log.Debug("storage refuses connections", "node", p.node, "cause", err)
				p.s.post(writer.ConnDown{Node: p.node, Refused: true})
			}
			refusedBefore = refused
			if errors.Is(err, syscall.EMFILE) {
				p.s.call(func() { p.s.outOfDescriptors(err) })
			}
			if errors.Is(err, errHello) && err.Error() != told {
				told = err.Error()
				p.s.call(func() { p.s.emit(Event{Kind: EventWaiting, Text: told + "; " + errs.Hint(err)}) })
			}
			delay = min(max(2*delay, firstRedial), lastRedial)
			continue
		}
		delay, refusedBefore, told = 0, false, ""
		err = p.use(ctx, l, dec, ack)
		if ctx.Err() != nil {
			return
		}
		p.s.log.Info("storage connection lost", "peer", p.node, "cause", err)
		p.s.call(func() { p.down(l) })
	}
}

// outOfDescriptors runs in the turn.
func (s *Set) outOfDescriptors(err error) {
	if !s.exhausted {
		s.exhausted = true
		s.emit(Event{Kind: EventExhausted, Text: fmt.Sprintf("no storage node can be reached: %v", err)})
	}
}

// down runs in the turn.
func (p *peer) down(l *connection) {
	if p.cur != l {
		return
	}
	p.cur = nil
	p.s.step(writer.ConnDown{Node: p.node})
}

// use runs an established connection until it breaks.
func (p *peer) use(ctx context.Context, l *connection, dec *wire.Decoder, ack *wire.HelloAck) error {
	stop := context.AfterFunc(ctx, func() { l.nc.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.out.Run(); err != nil {
			p.s.log.Debug("send to storage", "peer", p.node, "cause", err)
		}
		l.nc.Close()
	})
	p.s.call(func() {
		p.cur = l
		p.s.step(writer.ConnUp{Node: ack.Node, Session: ack.Session, Disks: ack.Disks})
	})
	err := p.receive(l, dec)
	l.nc.Close()
	l.out.Close()
	wg.Wait()
	return err
}

// receive posts messages in the order of the connection, as many at a time as
// one read brought.
func (p *peer) receive(l *connection, dec *wire.Decoder) error {
	var evs []writer.Event
	for {
		m, err := dec.Next()
		if err != nil {
			return err
		}
		evs = append(evs, newReceived(p.node, m))
		if dec.Buffered() == 0 || len(evs) >= 256 {
			l.asked.Store(0)
			p.s.postAll(evs)
			clear(evs)
			evs = evs[:0]
		}
	}
}

var receiveds = sync.Pool{New: func() any { return new(writer.Received) }}

func newReceived(node ids.ID, m wire.Message) *writer.Received {
	r := receiveds.Get().(*writer.Received)
	r.Node, r.Msg = node, m
	return r
}

// received gives a message to the core, which does not keep it; in the turn.
func (s *Set) received(r *writer.Received) {
	s.step(r)
	if a, ok := r.Msg.(*wire.Ack); ok {
		wire.Recycle(a)
	}
	r.Msg = nil
	receiveds.Put(r)
}

// checkSilence closes a connection on which nothing was answered for too long. It runs in the turn.
func (p *peer) checkSilence(now int64) {
	l := p.cur
	if l == nil {
		return
	}
	if asked := l.asked.Load(); asked != 0 && now-asked > int64(silenceLimit) {
		p.s.log.Info("storage is silent, reconnect", "peer", p.node, "silent", time.Duration(now-asked))
		l.nc.Close()
	}
}

// errRefused: the process is provably not there, on any address.
var errRefused = errors.New("refused")

// connect tries every address of the node in turn.
func (p *peer) connect(ctx context.Context) (*connection, *wire.Decoder, *wire.HelloAck, error) {
	type address struct{ network, addr string }
	var addrs []address
	if p.node == p.s.cfg.Node && p.s.cfg.StorageSocket != "-" {
		addrs = append(addrs, address{"unix", p.s.cfg.StorageSocket})
	} else {
		for _, a := range p.s.cfg.Nodes.StorageAddrs(p.node) {
			addrs = append(addrs, address{"tcp", a})
		}
	}
	if len(addrs) == 0 {
		return nil, nil, nil, errs.New(errs.NotFound, "connect to storage of node %s: no address", p.node)
	}
	refused := 0
	var err error
	for _, a := range addrs {
		var l *connection
		var dec *wire.Decoder
		var ack *wire.HelloAck
		if l, dec, ack, err = p.dial(ctx, a.network, a.addr); err == nil {
			return l, dec, ack, nil
		}
		if errors.Is(err, syscall.EMFILE) {
			return nil, nil, nil, err // the other addresses fare no better
		}
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
			refused++
		}
	}
	if refused == len(addrs) {
		err = fmt.Errorf("%w: %w", errRefused, err)
	}
	return nil, nil, nil, err
}

func (p *peer) dial(ctx context.Context, network, addr string) (*connection, *wire.Decoder, *wire.HelloAck, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	raw := link.NewRaw(nc)
	nc = raw
	if network != "unix" {
		conf := p.s.cfg.Identity.ClientTLS(p.node)
		conf.DynamicRecordSizingDisabled = true // batches, not web pages: records of 16 KiB
		t := tls.Client(raw, conf)
		if err := t.HandshakeContext(ctx); err != nil {
			nc.Close()
			return nil, nil, nil, fmt.Errorf("greet storage at %s: %w", addr, err)
		}
		nc = t
	}
	dec, ack, err := p.hello(nc)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		nc.Close()
		return nil, nil, nil, fmt.Errorf("greet storage at %s: %w", addr, err)
	}
	return &connection{nc: nc, out: link.NewSender(nc, raw, nil)}, dec, ack, nil
}

// errHello marks refusals that stay until a person does something.
var errHello = errors.New("greeting refused")

// helloRefused says why a storage process does not want to talk, and what to do.
func helloRefused(node ids.ID, st wire.Status) error {
	switch st {
	case wire.VersionMismatch:
		return fmt.Errorf("%w: %w", errHello, errs.New(errs.Invalid, "storage of node %s speaks none of the protocol versions %d to %d of this one", node.Short(), wire.MinVersion, wire.ProtocolVersion).
			WithHint("upgrade the node that has the older version of Roseau; one version between them is bridged, two are not"))
	case wire.OtherGeneration:
		return fmt.Errorf("%w: %w", errHello, errs.New(errs.Denied, "storage of node %s belongs to another cluster, or to another generation of this one", node.Short()).
			WithHint("a node that was left behind by `cluster recover` joins again after `node remove`; its disks are imported or released"))
	}
	return fmt.Errorf("%w: %w", errHello, errs.New(errs.Denied, "storage of node %s refuses this process with status %d", node.Short(), st))
}

// hello exchanges HELLO.
func (p *peer) hello(nc net.Conn) (*wire.Decoder, *wire.HelloAck, error) {
	c := &p.s.cfg
	b, _, err := wire.Append(nil, &wire.Hello{Cluster: c.Cluster, Generation: c.Generation, Node: c.Node, Guard: c.Guard,
		ProtoMin: wire.MinVersion, ProtoMax: wire.ProtocolVersion})
	if err != nil {
		return nil, nil, err
	}
	if _, err := nc.Write(b); err != nil {
		return nil, nil, err
	}
	dec := wire.NewDecoder(nc, nbd.Pool{})
	m, err := dec.Next()
	if err != nil {
		return nil, nil, err
	}
	ack, ok := m.(*wire.HelloAck)
	if !ok {
		return nil, nil, errs.New(errs.Corrupt, "expect HELLO_ACK, got %T", m)
	}
	if ack.Status != wire.OK {
		return nil, nil, helloRefused(p.node, ack.Status)
	}
	if ack.Node != p.node {
		return nil, nil, errs.New(errs.Denied, "node %s answers instead", ack.Node)
	}
	dec.SetVersion(ack.Proto)
	return dec, ack, nil
}
