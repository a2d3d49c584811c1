package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"roseau/internal/base/clock"
)

// Export is a block device under a name.
type Export struct {
	Name        string
	Description string // for people; may be empty
	Backend     Backend
}

// negotiationTime bounds the handshake, so that a silent client does not hold a
// connection for ever.
const negotiationTime = 30 * time.Second

// Server serves exports to any number of connections. The first export is also
// the one of the empty name.
type Server struct {
	log     *slog.Logger
	exports []Export
}

// NewServer returns a server of at least one export. log may be nil.
func NewServer(log *slog.Logger, exports ...Export) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{log: log, exports: exports}
}

// Serve accepts connections until ctx ends or l is closed; then it closes l and
// every connection and waits for their goroutines. Requests that the backend
// still has are answered to nobody. The error is nil when ctx ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	var wg sync.WaitGroup
	defer func() {
		stop()
		cancel()
		l.Close()
		wg.Wait()
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept nbd client: %w", err)
		}
		wg.Go(func() { s.serveConn(ctx, c) })
	}
}

// serveConn runs one connection to its end.
func (s *Server) serveConn(ctx context.Context, nc net.Conn) {
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	defer nc.Close()
	c := newConn(nc)
	nc.SetDeadline(clock.System{}.Wall().Add(negotiationTime))
	n := negotiator{r: c, w: c.raw, exports: s.exports}
	sess, err := n.run()
	if err != nil {
		if !errors.Is(err, errAborted) && !errors.Is(err, io.EOF) && ctx.Err() == nil {
			s.log.Debug("nbd negotiation ended", "cause", err)
		}
		return
	}
	nc.SetDeadline(time.Time{})
	if err := c.transmit(sess); err != nil && ctx.Err() == nil {
		s.log.Debug("nbd connection ended", "export", sess.export.Name, "cause", err)
	}
}
