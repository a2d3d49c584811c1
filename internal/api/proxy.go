package api

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"roseau/internal/base/dial"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/pki"
)

// forwardedHeader names the node that passed a request on; a second hop would
// be a loop.
const forwardedHeader = "Roseau-Forwarded-By"

const (
	dialTimeout = 2 * time.Second
	// unacked ends a connection whose network was cut: the next request looks for
	// another.
	unacked = 3 * time.Second
)

// Proxy passes requests on to the node that must carry them out.
type Proxy struct {
	self ids.ID
	id   *pki.Identity
	addr func(ctx context.Context, node ids.ID) ([]string, error)
	log  *slog.Logger

	mu         sync.Mutex // protects transports
	transports map[ids.ID]*http.Transport
}

// NewProxy returns a proxy of the node self; addr tells the addresses at which a
// node's API is, best first.
func NewProxy(self ids.ID, id *pki.Identity, addr func(context.Context, ids.ID) ([]string, error), log *slog.Logger) *Proxy {
	return &Proxy{self: self, id: id, addr: addr, log: log, transports: map[ids.ID]*http.Transport{}}
}

// Resolve tells which node must carry a request out, from its path parameters
// and query. The zero ID means: this one.
type Resolve func(ctx context.Context, path, query func(name string) string) (ids.ID, error)

// OnNode is a middleware for operations that one node must carry out: on any
// other node the request is passed on, body, answer and streams included.
//
//	op := api.Op(...)
//	op.Middlewares = huma.Middlewares{r.OnNode(resolve)}
func (r *Router) OnNode(resolve Resolve) func(huma.Context, func(huma.Context)) {
	return func(hc huma.Context, next func(huma.Context)) {
		node, err := resolve(hc.Context(), hc.Param, hc.Query)
		if err != nil {
			_, w := humachi.Unwrap(hc)
			WriteProblem(w, err)
			return
		}
		if r.Nodes == nil || r.Nodes.Local(node) {
			next(hc)
			return
		}
		req, w := humachi.Unwrap(hc)
		r.Nodes.Forward(w, req, node)
	}
}

// Local reports whether node is this one (or the zero ID).
func (p *Proxy) Local(node ids.ID) bool { return node.IsZero() || node == p.self }

// Forward passes a request on to node, upgrades to websocket included.
func (p *Proxy) Forward(w http.ResponseWriter, req *http.Request, node ids.ID) {
	if by := req.Header.Get(forwardedHeader); by != "" {
		WriteProblem(w, errs.New(errs.Unavailable, "forward request to node %s: already forwarded by %s; the nodes disagree about who must do it", node, by).WithHint("try again"))
		return
	}
	rp := &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(&url.URL{Scheme: "https", Host: node.String() + "." + pki.AnyNodeName})
			pr.Out.Header.Set(forwardedHeader, p.self.String())
		},
		Transport:     p.Transport(node),
		FlushInterval: -1, // streams and progress are passed on as they come
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			WriteProblem(w, errs.New(errs.Unavailable, "forward request to node %s: %w", node, err).
				WithHint("the node is down or cannot be reached: `roseau node list`"))
		},
		ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	rp.ServeHTTP(w, req)
}

// Transport returns the HTTP transport to a node: requests to any host go to
// that node, and no other can answer.
func (p *Proxy) Transport(node ids.ID) *http.Transport {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.transports[node]; t != nil {
		return t
	}
	t := &http.Transport{
		TLSClientConfig: p.id.ClientTLS(node),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			addrs, err := p.addr(ctx, node)
			if err != nil {
				return nil, err
			}
			at := make([]string, len(addrs))
			for i, a := range addrs {
				at[i] = net.JoinHostPort(a, strconv.Itoa(paths.PortAPI))
			}
			return dial.First(ctx, at, dialTimeout, dial.Keep{Unacked: unacked, Idle: unacked})
		},
		IdleConnTimeout:     30 * time.Second,
		TLSHandshakeTimeout: 5 * time.Second,
	}
	p.transports[node] = t
	return t
}

// Close drops idle connections.
func (p *Proxy) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.transports {
		t.CloseIdleConnections()
	}
}
