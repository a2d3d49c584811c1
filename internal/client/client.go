// Package client is the Go client of the API: over the unix socket of the node
// it runs on, or over mutual TLS with a context. Errors come back with the kind
// and the hint that the node gave them.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/model"
	"roseau/internal/pki"
)

// Client talks to the API of one cluster.
type Client struct {
	http  *http.Client
	reads *http.Client // of what may be asked of another node, too
	bases []string     // "http://node" or one "https://host:port" an address; the first that answers is kept
	at    atomic.Int32
	where string // for errors
}

// patience is how long a node may take to begin an answer to a reader before the
// next one is asked: its kernel takes connections while its processes hang.
const patience = 10 * time.Second

// Local returns a client of the node whose API socket is at path.
func Local(path string) *Client {
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
	c := &http.Client{Transport: t}
	return &Client{http: c, reads: c, bases: []string{"http://node"}, where: path}
}

// Remote returns a client that shows id's certificate to any node at addrs
// ("10.0.0.1:7443").
func Remote(id *pki.Identity, addrs []string) *Client {
	t := &http.Transport{
		TLSClientConfig:     id.ClientTLS(ids.ID{}),
		DialContext:         (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
		TLSHandshakeTimeout: 5 * time.Second,
	}
	c := newClient(t, patience)
	for _, a := range addrs {
		c.bases = append(c.bases, "https://"+a)
	}
	if len(addrs) > 0 {
		c.where = addrs[0]
	}
	return c
}

// newClient goes on with the next node when one begins no answer to a reader for limit.
func newClient(t *http.Transport, limit time.Duration) *Client {
	reads := t.Clone()
	reads.ResponseHeaderTimeout = limit
	return &Client{http: &http.Client{Transport: t}, reads: &http.Client{Transport: reads}}
}

// Open picks the cluster that commands without a flag talk to: the context
// named contextName, or ROSEAU_CONTEXT; else the local socket if it exists; else
// the current context.
func Open(contextName string) (*Client, error) {
	if contextName == "" {
		contextName = os.Getenv("ROSEAU_CONTEXT")
	}
	if contextName == "" {
		if _, err := os.Stat(paths.APISocket); err == nil {
			return Local(paths.APISocket), nil
		}
	}
	cs, err := LoadContexts()
	if err != nil {
		return nil, err
	}
	if contextName == "" {
		contextName = cs.Current
	}
	if contextName == "" {
		return nil, errs.New(errs.Unavailable, "find a cluster: no socket %s and no context", paths.APISocket).
			WithHint("run this on a node (is roseau-node.service running?), or `roseau lab up` to try a cluster on this machine")
	}
	return cs.Client(contextName)
}

// Close drops idle connections.
func (c *Client) Close() {
	c.http.CloseIdleConnections()
	c.reads.CloseIdleConnections()
}

// Do sends a request with in as JSON body (nil: none) and decodes the answer
// into out (nil: dropped). path begins with /v1. It returns the HTTP status.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) (int, error) {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return 0, fmt.Errorf("encode request: %w", err)
		}
	}
	var rd func() io.Reader = func() io.Reader { return nil }
	if in != nil {
		rd = func() io.Reader { return bytes.NewReader(body) }
	}
	hc := c.http
	if method == http.MethodGet {
		hc = c.reads
	}
	resp, err := c.roundTrip(ctx, hc, method, path, rd, "application/json")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if out == nil || resp.StatusCode == http.StatusNoContent {
		io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return resp.StatusCode, fmt.Errorf("%s %s: decode answer: %w", method, path, err)
	}
	return resp.StatusCode, nil
}

// Get is Do with GET.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	_, err := c.Do(ctx, http.MethodGet, path, nil, out)
	return err
}

// Change sends a changing request. If the answer is a task it is returned and
// out stays as it was; else out has the object.
func (c *Client) Change(ctx context.Context, method, path string, in, out any) (*model.Task, error) {
	var raw json.RawMessage
	status, err := c.Do(ctx, method, path, in, &raw)
	if err != nil {
		return nil, err
	}
	if status == http.StatusAccepted {
		t := new(model.Task)
		if err := json.Unmarshal(raw, t); err != nil {
			return nil, fmt.Errorf("%s %s: decode task: %w", method, path, err)
		}
		return t, nil
	}
	if out != nil && len(raw) > 0 {
		if err := json.Unmarshal(raw, out); err != nil {
			return nil, fmt.Errorf("%s %s: decode answer: %w", method, path, err)
		}
	}
	return nil, nil
}

// Upload sends raw bytes and decodes the answer into out.
func (c *Client) Upload(ctx context.Context, method, path string, body io.Reader, out any) (int, error) {
	resp, err := c.roundTrip(ctx, c.http, method, path, func() io.Reader { return body }, "application/octet-stream")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if out == nil {
		return resp.StatusCode, nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return resp.StatusCode, fmt.Errorf("%s %s: decode answer: %w", method, path, err)
	}
	return resp.StatusCode, nil
}

// Stream reads an answer of newline-delimited JSON and calls line with each
// line until it ends, line fails or ctx ends.
func (c *Client) Stream(ctx context.Context, method, path string, in any, line func([]byte) error) error {
	rd := func() io.Reader { return nil }
	if in != nil {
		body, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		rd = func() io.Reader { return bytes.NewReader(body) }
	}
	resp, err := c.roundTrip(ctx, c.http, method, path, rd, "application/json")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(make([]byte, 0, 64<<10), 4<<20)
	for sc.Scan() {
		var end struct {
			Problem *problem `json:"problem"`
		}
		if json.Unmarshal(sc.Bytes(), &end) == nil && end.Problem != nil {
			return end.Problem.err()
		}
		if err := line(sc.Bytes()); err != nil {
			return err
		}
	}
	if err := sc.Err(); err != nil && ctx.Err() == nil {
		return errs.New(errs.Unavailable, "%s %s: stream broke: %w", method, path, err)
	}
	return ctx.Err()
}

// HTTP returns the HTTP client and the base URL below, for websockets.
func (c *Client) HTTP() (hc *http.Client, base string) { return c.http, c.bases[c.at.Load()] }

// roundTrip tries the addresses in turn until one can be connected to, handshake
// included. A change that reached a node is never repeated.
func (c *Client) roundTrip(ctx context.Context, hc *http.Client, method, path string, body func() io.Reader, contentType string) (*http.Response, error) {
	var last error
	at := int(c.at.Load())
	for try := range c.bases {
		i := (at + try) % len(c.bases)
		req, err := http.NewRequestWithContext(ctx, method, c.bases[i]+path, body())
		if err != nil {
			return nil, errs.New(errs.Invalid, "%s %s: %w", method, path, err)
		}
		if body() != nil {
			req.Header.Set("Content-Type", contentType)
		}
		// A connection counts as got when its handshake is over: who takes a
		// connection for a node without power and ends it has seen no request.
		var reached atomic.Bool
		req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { reached.Store(true) }}))
		resp, err := hc.Do(req)
		if err == nil {
			c.at.Store(int32(i))
			return resp, problemOf(resp)
		}
		last = err
		// Reading again does no harm, so a node that broke off or is silent costs
		// a reader nothing but time; a change may have been made.
		c.at.Store(int32((i + 1) % len(c.bases)))
		if ctx.Err() != nil || reached.Load() && method != http.MethodGet {
			break
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var ue *url.Error
	if errors.As(last, &ue) {
		last = ue.Err
	}
	return nil, errs.New(errs.Unavailable, "talk to the cluster at %s: %w", c.where, last).
		WithHint("is the node up? on the node: `systemctl status roseau-node`")
}

// problem is what the API sends with an error.
type problem struct {
	Detail string `json:"detail"`
	Kind   string `json:"kind"`
	Hint   string `json:"hint"`
	Status int    `json:"status"`
}

func (p *problem) err() error {
	kind := errs.ByName(p.Kind)
	if kind == nil {
		kind = errInternal
	}
	e := errs.New(kind, "%s", p.Detail)
	if p.Hint != "" {
		e = e.WithHint("%s", p.Hint)
	}
	return e
}

// errInternal stands for errors without a kind.
var errInternal = errors.New("internal")

// problemOf returns the error that an answer carries, or nil; with an error the
// body is closed.
func problemOf(resp *http.Response) error {
	if resp.StatusCode < 400 {
		return nil
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		data = nil // the status says enough
	}
	return ProblemIn(resp.StatusCode, data)
}

// ProblemIn returns the error that an answer of the API with this status and
// body is; nil for a status below 400.
func ProblemIn(status int, body []byte) error {
	if status < 400 {
		return nil
	}
	p := &problem{}
	if json.Unmarshal(body, p) != nil || p.Detail == "" {
		p.Detail = fmt.Sprintf("the node answered %d %s", status, http.StatusText(status))
	}
	return p.err()
}

// ErrorOf turns a task's error into the error that it was.
func ErrorOf(p *model.Problem) error {
	if p == nil {
		return nil
	}
	return (&problem{Detail: p.Text, Kind: p.Kind, Hint: p.Hint}).err()
}
