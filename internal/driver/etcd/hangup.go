package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"roseau/internal/base/dial"
)

// A member whose processes are frozen while its kernel runs goes on to
// acknowledge what is sent to it: neither TCP nor the keep-alive of gRPC, which
// asks every 10 s at most, notices it in time, and every third request waits. So
// a request that has no answer after suspectAfter makes the client ask the member
// for a TLS handshake, which takes no consensus. If that fails as well, the
// connection is closed: what waits on it goes to another member, and this one is
// used again when it shakes hands.
const (
	suspectAfter = 500 * time.Millisecond
	shakeTimeout = 1 * time.Second
)

// hangUp is the watch over the connections of one client. It is the client's
// dialer, and sees its requests as gRPC's statistics.
type hangUp struct {
	shake func(ctx context.Context, addr string) error // nil: the member answers

	mu      sync.Mutex
	conns   map[string]net.Conn // by address, the last that was dialled
	shaking map[string]bool
}

func newHangUp(conf *tls.Config) *hangUp {
	shake := func(ctx context.Context, addr string) error {
		conn, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	return &hangUp{shake: shake, conns: map[string]net.Conn{}, shaking: map[string]bool{}}
}

func (h *hangUp) options() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithContextDialer(h.dial), grpc.WithStatsHandler(h)}
}

// dial connects to a member, whose addresses stand in addr with commas in between.
func (h *hangUp) dial(ctx context.Context, addr string) (net.Conn, error) {
	// The user timeout is gRPC's, the same as keepAliveTimeout.
	conn, err := dial.First(ctx, strings.Split(addr, ","), 0, dial.Keep{Unacked: keepAliveTimeout, Idle: idleAsked})
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns[conn.RemoteAddr().String()] = conn
	return conn, nil
}

// suspect asks the member at addr for a handshake, unless that is being done, and
// closes the connection to it if there is none.
func (h *hangUp) suspect(addr string) {
	h.mu.Lock()
	conn := h.conns[addr]
	if conn == nil || h.shaking[addr] {
		h.mu.Unlock()
		return
	}
	h.shaking[addr] = true
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), shakeTimeout)
	defer cancel()
	err := h.shake(ctx, addr)
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.shaking, addr)
	if silent(err) && h.conns[addr] == conn {
		delete(h.conns, addr)
		_ = conn.Close() // it may have ended meanwhile
	}
}

// silent tells whether a handshake failed for want of an answer: a member that
// refuses one is not frozen.
func silent(err error) bool {
	var op net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &op)
}

// request is one attempt of a request, or a stream.
type request struct {
	mu    sync.Mutex
	addr  string
	timer *time.Timer // while an answer is awaited
	gen   int         // of the timer
}

type requestKey struct{}

// TagRPC is part of stats.Handler.
func (h *hangUp) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, requestKey{}, &request{})
}

// HandleRPC is part of stats.Handler.
func (h *hangUp) HandleRPC(ctx context.Context, s stats.RPCStats) {
	r, ok := ctx.Value(requestKey{}).(*request)
	if !ok {
		return
	}
	switch s := s.(type) {
	case *stats.OutHeader:
		if s.RemoteAddr != nil {
			r.mu.Lock()
			r.addr = s.RemoteAddr.String()
			r.mu.Unlock()
		}
	case *stats.OutPayload:
		r.wait(h)
	case *stats.InPayload, *stats.End:
		r.answered()
	}
}

func (r *request) wait(h *hangUp) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil || r.addr == "" {
		return
	}
	r.gen++
	gen := r.gen
	r.timer = time.AfterFunc(suspectAfter, func() {
		r.mu.Lock()
		addr, waits := r.addr, r.timer != nil && r.gen == gen
		r.mu.Unlock()
		if !waits {
			return
		}
		h.suspect(addr)
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.timer != nil && r.gen == gen { // the member lives, or the answer is slow
			r.timer.Reset(suspectAfter)
		}
	})
}

func (r *request) answered() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}

// TagConn is part of stats.Handler.
func (h *hangUp) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn is part of stats.Handler.
func (h *hangUp) HandleConn(context.Context, stats.ConnStats) {}
