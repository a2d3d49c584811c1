// Package svc has what the services of a node share: who this node is, and the
// ways to the store, to tasks, events, units and other nodes. It decides
// nothing.
package svc

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"roseau/internal/api"
	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/event"
	"roseau/internal/svc/task"
	"roseau/internal/unit"
)

// Env is handed to every service of a node.
type Env struct {
	Store    *store.Store
	Tasks    *task.Runner
	Events   *event.Log
	Units    unit.Controller
	Proxy    *api.Proxy // nil in tests without other nodes
	Cluster  ids.ID
	Node     ids.ID
	NodeName string
	// Endpoints returns the client URLs of all etcd members.
	Endpoints func() []string
	Clock     clock.Clock
	Log       *slog.Logger
}

// AskTimeout bounds a question to another node.
const AskTimeout = 10 * time.Second

// Ask sends a request to the API of a node (this one included) and decodes the
// answer into out (nil: dropped).
func (e *Env) Ask(ctx context.Context, node ids.ID, method, path string, in, out any) error {
	if e.Proxy == nil {
		return errs.New(errs.Unavailable, "ask node %s: no way to other nodes", node)
	}
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("ask node %s: %w", node, err)
		}
		body = bytes.NewReader(data)
	}
	ctx, cancel := context.WithTimeout(ctx, AskTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "https://"+node.String()+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Transport: e.Proxy.Transport(node)}).Do(req)
	if err != nil {
		return errs.New(errs.Unavailable, "ask node %s: %w", node, err).WithHint("the node is down or cannot be reached: `roseau node list`")
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		return problemOf(resp)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("ask node %s: decode answer: %w", node, err)
	}
	return nil
}

func problemOf(resp *http.Response) error {
	p := api.Problem{}
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if json.Unmarshal(data, &p) != nil || p.Detail == "" {
		return fmt.Errorf("%s: %s", resp.Request.URL.Path, resp.Status)
	}
	kind := errs.ByName(p.Kind)
	if kind == nil {
		return fmt.Errorf("%s", p.Detail)
	}
	return errs.New(kind, "%s", p.Detail).WithHint("%s", p.Hint)
}

// NodeByRef resolves a node by name or id, for api.OnNode: the zero ID for this
// node.
func (e *Env) NodeByRef(ctx context.Context, ref string) (ids.ID, error) {
	n, err := store.Get[model.Node](ctx, e.Store, ref)
	if err != nil {
		return ids.ID{}, err
	}
	return n.ID, nil
}

// OnNode makes an operation be carried out by the node that the path parameter
// param names.
func (e *Env) OnNode(param string) api.Resolve {
	return func(ctx context.Context, path, _ func(string) string) (ids.ID, error) {
		return e.NodeByRef(ctx, path(param))
	}
}

// EachNode calls fn for all nodes with a session at once, and waits. The others
// are returned by name.
func (e *Env) EachNode(ctx context.Context, fn func(ctx context.Context, n *model.Node)) (down []string, err error) {
	nodes, err := store.List[model.Node](ctx, e.Store.Relaxed())
	if err != nil {
		return nil, err
	}
	alive, err := store.AliveNodes(ctx, e.Store.Relaxed())
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	for _, n := range nodes {
		if _, ok := alive[n.ID]; !ok {
			down = append(down, n.Name)
			continue
		}
		wg.Go(func() { fn(ctx, n) })
	}
	wg.Wait()
	return down, nil
}

// Loop calls fn now, then each time changed is closed or interval passed, until
// ctx ends. changed is asked before each call, so that no change is missed. A
// failed round is logged once a text and tried again at the next.
func (e *Env) Loop(ctx context.Context, name string, interval time.Duration, changed func() []<-chan struct{}, fn func(context.Context) error) error {
	last := ""
	for {
		wake := make(chan struct{})
		wctx, stop := context.WithCancel(ctx)
		var once sync.Once
		var wg sync.WaitGroup
		if changed != nil {
			for _, ch := range changed() {
				wg.Go(func() {
					select {
					case <-ch:
						once.Do(func() { close(wake) })
					case <-wctx.Done():
					}
				})
			}
		}
		err := fn(ctx)
		switch {
		case err == nil:
			last = ""
		case ctx.Err() == nil && err.Error() != last:
			last = err.Error()
			e.Log.Warn("reconcile", "loop", name, "err", err)
		}
		t := time.NewTimer(interval)
		select {
		case <-ctx.Done():
		case <-wake:
		case <-t.C:
		}
		t.Stop()
		stop()
		wg.Wait()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// WaitFor polls check every interval until it reports done, fails, or ctx ends.
func WaitFor(ctx context.Context, interval time.Duration, check func(context.Context) (done bool, err error)) error {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		done, err := check(ctx)
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}
