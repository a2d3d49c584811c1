// Package beat tells quickly that a node has gone: nodes send each other a byte
// every 200 ms on every network between them, over mutual TLS. No beat on any
// network for 1.5 s is a hint that the node is lost, before etcd's session says
// so. It is a hint only: leases fence, beats do not.
package beat

import (
	"context"
	"crypto/tls"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/dial"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/pki"
)

// Timing.
const (
	Interval = 200 * time.Millisecond
	// LostAfter is the silence on all networks that counts as a hint.
	LostAfter    = 1500 * time.Millisecond
	ioTimeout    = 1 * time.Second // an unanswered write; the path is dialled anew
	dialTimeout  = 1 * time.Second
	redialPause  = 300 * time.Millisecond
	frameOfABeat = 1 // bytes
)

// Peer is a node to exchange beats with, and all of its addresses.
type Peer struct {
	Node      ids.ID
	Addresses []string
}

// Beats sends beats to and takes beats from the other nodes.
type Beats struct {
	self  ids.ID
	id    *pki.Identity
	clock clock.Clock
	log   *slog.Logger

	mu    sync.Mutex // protects the fields below
	seen  map[ids.ID]clock.Instant
	on    map[way]clock.Instant // seen, by the address of this node at which it came
	peers map[string]*path      // by node and address
	wg    sync.WaitGroup
}

// way is how beats of a node come in.
type way struct {
	node ids.ID
	addr string // of this node
}

// path is the sending side to one address of one node.
type path struct {
	node ids.ID
	addr string
	stop context.CancelFunc
}

// New returns the beats of node self; Serve and Run make them go.
func New(self ids.ID, id *pki.Identity, clk clock.Clock, log *slog.Logger) *Beats {
	return &Beats{self: self, id: id, clock: clk, log: log, seen: map[ids.ID]clock.Instant{}, on: map[way]clock.Instant{}, peers: map[string]*path{}}
}

// Seen returns when the last beat of a node came, on whatever network; zero:
// none since this process started.
func (b *Beats) Seen(node ids.ID) clock.Instant {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen[node]
}

// Last returns Seen of all nodes that were ever seen.
func (b *Beats) Last() map[ids.ID]clock.Instant {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.seen)
}

// SeenAt returns when the last beat of a node came to one address of this node;
// zero: none since this process started.
func (b *Beats) SeenAt(node ids.ID, addr string) clock.Instant {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.on[way{node, addr}]
}

func (b *Beats) note(node ids.ID, addr string) {
	now := b.clock.Now()
	b.mu.Lock()
	b.seen[node], b.on[way{node, addr}] = now, now
	b.mu.Unlock()
}

// Serve takes beats on l until ctx ends and all its connections have ended.
func (b *Beats) Serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	tl := tls.NewListener(l, b.id.ServerTLS())
	for {
		c, err := tl.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			b.take(ctx, c.(*tls.Conn))
		}()
	}
}

// take reads the beats of one connection. Only what was read counts: an open
// connection to a dead machine is silent.
func (b *Beats) take(ctx context.Context, c *tls.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	c.SetDeadline(time.Now().Add(dialTimeout))
	if err := c.HandshakeContext(ctx); err != nil {
		b.log.Debug("beat handshake", "from", c.RemoteAddr(), "err", err)
		return
	}
	peer, err := pki.PeerOf(c.ConnectionState())
	if err != nil {
		return
	}
	addr, _, err := net.SplitHostPort(c.LocalAddr().String())
	if err != nil {
		return
	}
	buf := make([]byte, 64)
	for {
		// Long: the sender redials when it sees trouble; this only ends leftovers.
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Read(buf); err != nil {
			return
		}
		b.note(peer.Node, addr)
	}
}

// SetPeers says to whom to send; paths that stay are not touched. ctx bounds the
// senders, not the call; Wait waits for them.
func (b *Beats) SetPeers(ctx context.Context, peers []Peer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	want := map[string]bool{}
	for _, p := range peers {
		if p.Node == b.self {
			continue
		}
		for _, a := range p.Addresses {
			key := p.Node.String() + " " + a
			want[key] = true
			if b.peers[key] != nil {
				continue
			}
			pctx, stop := context.WithCancel(ctx)
			pt := &path{node: p.Node, addr: a, stop: stop}
			b.peers[key] = pt
			b.wg.Add(1)
			go func() { defer b.wg.Done(); b.send(pctx, pt) }()
		}
	}
	for _, key := range slices.Sorted(maps.Keys(b.peers)) {
		if !want[key] {
			b.peers[key].stop()
			delete(b.peers, key)
		}
	}
}

// Wait returns when all senders have ended.
func (b *Beats) Wait() { b.wg.Wait() }

// send keeps one path: dial, a byte every Interval, dial anew on trouble.
func (b *Beats) send(ctx context.Context, p *path) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: b.id.ClientTLS(p.node)}
	for ctx.Err() == nil {
		dctx, cancel := context.WithTimeout(ctx, dialTimeout)
		c, err := d.DialContext(dctx, "tcp", net.JoinHostPort(p.addr, strconv.Itoa(paths.PortBeat)))
		cancel()
		if err == nil {
			b.sendOn(ctx, c)
		}
		select {
		case <-ctx.Done():
		case <-time.After(redialPause):
		}
	}
}

func (b *Beats) sendOn(ctx context.Context, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	// A peer whose machine died acknowledges nothing: without this, beats would
	// pile up in the socket for minutes after it came back.
	if err := (dial.Keep{Unacked: ioTimeout}).Apply(c.(*tls.Conn).NetConn()); err != nil {
		return
	}
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	beat := make([]byte, frameOfABeat)
	for {
		c.SetWriteDeadline(time.Now().Add(ioTimeout))
		if _, err := c.Write(beat); err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
