package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"crypto/tls"

	"github.com/danielgtaylor/huma/v2"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/core/quorum"
	"roseau/internal/driver/etcd"
	"roseau/internal/model"
	"roseau/internal/nodeconf"
	"roseau/internal/pki"
	"roseau/internal/store"
	"roseau/internal/svc/beat"
	"roseau/internal/svc/event"
	"roseau/internal/svc/member"
	"roseau/internal/svc/seat"
	"roseau/internal/svc/task"
	"roseau/internal/svc/voters"
)

const (
	settlePause     = 500 * time.Millisecond
	listenPause     = 500 * time.Millisecond
	refreshEvery    = time.Second
	seatTimeout     = 20 * time.Second // for the answer to a join; the node goes on trying
	etcdLogFileName = "/etcd.log"
)

// life is the daemon while it is a node of a cluster.
type life struct {
	d       *daemon
	mu      sync.Mutex // protects the fields of conf that update changes; who the node is stays
	conf    *nodeconf.Config
	deps    Deps
	seat    *seat.Seat
	member  *member.Server
	voters  *voters.Manager
	probe   *etcd.Probe
	cli     *clientv3.Client
	anew    chan struct{} // capacity 1: the config was changed, begin another life
	settled chan struct{} // closed when the node is a full part of the cluster
}

// configured is the life as a node. It returns when ctx ends, or with
// errRemoved.
func (d *daemon) configured(ctx context.Context, conf *nodeconf.Config, ready chan<- error) error {
	n, err := d.newLife(ctx, conf)
	if err != nil {
		if ready != nil {
			ready <- err
		}
		return err
	}
	defer n.deps.Proxy.Close()
	// The client goes before the member: open streams would hold up its stop.
	vctx, stopVoter := context.WithCancel(context.WithoutCancel(ctx))
	voterDone := make(chan struct{})
	go func() {
		defer close(voterDone)
		n.seat.Run(vctx)
	}()
	err = n.run(ctx, ready)
	n.deps.Tasks.Close()
	n.cli.Close()
	n.probe.Close()
	stopVoter()
	<-voterDone
	return err
}

func (d *daemon) newLife(ctx context.Context, conf *nodeconf.Config) (*life, error) {
	log := d.o.Log.With("node", conf.Name)
	id, err := pki.Load(paths.PKI)
	if err != nil {
		return nil, fmt.Errorf("start node %s: %w", conf.Name, err)
	}
	if id.Node() != conf.Node {
		return nil, errs.New(errs.Corrupt, "start node %s: the certificate is node %s's, the config says %s", conf.Name, id.Node(), conf.Node)
	}
	if conf.Recovering != 0 { // the others are given up: they must not be asked
		own := etcd.Member{}
		for _, a := range conf.ControlAddresses() {
			own.ClientURLs = append(own.ClientURLs, etcd.ClientURL(a))
		}
		conf.Endpoints = []string{own.Endpoint()}
	}
	cli, err := etcd.Dial(id, conf.Endpoints)
	if err != nil {
		return nil, fmt.Errorf("start node %s: %w", conf.Name, err)
	}
	n := &life{d: d, conf: conf, cli: cli, probe: etcd.NewProbe(id), anew: make(chan struct{}, 1), settled: make(chan struct{})}
	s := store.New(cli, d.o.Clock)
	n.deps = Deps{
		Node: conf.Node, Name: conf.Name, Config: *conf, Identity: id,
		Store: s, Etcd: cli,
		Nodes: store.NewCache[model.Node](s), Sessions: store.NewSessions(s),
		Beats:     beat.New(conf.Node, id, d.o.Clock, log),
		Tasks:     task.NewRunner(ctx, s, conf.Name, d.o.Clock, log),
		Events:    event.NewLog(s, conf.Name, d.o.Clock, log),
		Endpoints: cli.Endpoints,
		Clock:     d.o.Clock, Log: log,
	}
	ec := etcd.Config{Name: conf.Node.String(), Identity: id, Dir: paths.Etcd, Addresses: conf.ControlAddresses(),
		Cluster: conf.Cluster, LogFile: paths.State + etcdLogFileName, New: conf.Settling != nil && conf.Settling.Init}
	n.seat = seat.New(seat.Config{Etcd: ec, Peer: etcd.PeerURL(conf.ClusterAddresses()[0]), Save: n.saveSeat,
		Enter: func(ctx context.Context) error { return n.member.FetchKey(ctx) }, Leave: member.DropKey, Clock: d.o.Clock, Log: log}, conf.Seat)
	if conf.Recovering != 0 {
		n.seat.Alone()
	}
	n.deps.Leading, n.deps.LeaderSince = n.seat.Leading, n.seat.LeaderSince
	n.deps.Proxy = api.NewProxy(conf.Node, id, n.addressesOf, log)
	reader := voters.Reader{Store: s, Sessions: n.deps.Sessions, Beat: n.deps.Beats.Seen, Clock: d.o.Clock}
	n.member = &member.Server{Config: *conf, Identity: id, Store: s, Sessions: n.deps.Sessions, Tasks: n.deps.Tasks,
		Events: n.deps.Events, Clock: d.o.Clock, Log: log, Leading: n.deps.Leading, Reader: reader, Probe: n.probe, Proxy: n.deps.Proxy}
	n.deps.Votes = n.member.View
	n.voters = &voters.Manager{Reader: reader, Probe: n.probe, Leading: n.deps.Leading, Events: n.deps.Events, Log: log, Timers: d.o.Timers}
	return n, nil
}

// run starts everything and waits for all of it.
func (n *life) run(ctx context.Context, ready chan<- error) error {
	g, ctx := errgroup.WithContext(ctx)
	d := n.deps
	svcs, err := services(ctx, d)
	if err != nil {
		return err
	}
	routes := []api.Routes{n.member.Routes(n.heard), d.Tasks.Routes, d.Events.Routes, n.localRoutes, n.recoverRoutes}
	for _, s := range svcs {
		if s.Routes != nil {
			routes = append(routes, s.Routes)
		}
	}
	srv := api.New(api.Config{Version: n.d.o.Version, Clock: d.Clock, Log: d.Log, Proxy: d.Proxy}, routes...)
	n.d.handler.Store(&handlerBox{srv.Handler()})

	g.Go(func() error { return n.settle(ctx, ready) })
	g.Go(func() error { return n.watchRemoval(ctx) })
	g.Go(func() error { return n.watchGeneration(ctx) })
	g.Go(func() error { return n.awaitAnew(ctx) })
	if n.config().Recovering != 0 {
		g.Go(func() error { return n.finishRecovery(ctx) })
	}
	for _, a := range n.conf.ControlAddresses() {
		g.Go(func() error { return n.serveAPI(ctx, a, srv.Handler()) })
	}
	for _, a := range n.conf.AllAddresses() {
		g.Go(func() error {
			return n.listen(ctx, a, paths.PortBeat, func(l net.Listener) error { return d.Beats.Serve(ctx, l) })
		})
	}
	core := []Service{
		{Name: "nodes", Run: d.Nodes.Run},
		{Name: "sessions", Run: d.Sessions.Run},
		{Name: "events", Run: d.Events.Run},
		{Name: "beats", Run: n.followPeers},
		{Name: "members", Run: n.followMembers},
	}
	for _, s := range core {
		g.Go(func() error { return supervise(ctx, s, d.Log) })
	}
	late := append([]Service{
		{Name: "session", Run: func(ctx context.Context) error {
			return d.Store.KeepSession(ctx, store.Session{Node: d.Node, Boot: bootID(), Started: d.Clock.Wall().UTC(), First: n.d.booted})
		}},
		{Name: "status", Run: func(ctx context.Context) error { return reportStatus(ctx, d, n.d.o.Version) }},
		{Name: "sweep", Run: n.member.Sweep},
		{Name: "voters", Run: n.voters.Run},
		{Name: "old tasks", Run: n.recoverTasks},
	}, svcs...)
	for _, s := range late {
		if s.Run == nil {
			continue
		}
		g.Go(func() error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-n.settled:
			}
			return supervise(ctx, s, d.Log)
		})
	}
	return g.Wait()
}

// settle finishes an init or a join, as often as it takes, and says when the
// node is ready. A node that was settled before is ready at once: it must adopt
// what runs on it even while there is no quorum.
func (n *life) settle(ctx context.Context, ready chan<- error) error {
	joining := n.config().Settling != nil
	for todo := n.config().Settling; todo != nil; todo = n.config().Settling {
		err := n.member.Settle(ctx, *todo)
		if err == nil {
			if err = n.update(func(c *nodeconf.Config) { c.Settling = nil }); err == nil {
				break
			}
		}
		n.deps.Log.Info("not a full part of the cluster yet", "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settlePause):
		}
	}
	close(n.settled)
	n.deps.Log.Info("node runs", "id", n.conf.Node, "cluster", n.conf.ClusterName, "voter", n.seat.Seated(), "addresses", n.conf.Addresses)
	if ready != nil && joining {
		n.awaitSeat(ctx)
	}
	if ready != nil {
		ready <- nil
	}
	return nil
}

// awaitSeat waits a while until this node votes, or is seen not to be needed:
// who joined three machines sees three voters.
func (n *life) awaitSeat(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, seatTimeout)
	defer cancel()
	for {
		members, err := etcd.Members(ctx, n.cli)
		nodes, nerr := store.List[model.Node](ctx, n.deps.Store)
		if err == nil && nerr == nil {
			votes, mine := 0, false
			for _, m := range members {
				if !m.Learner && !m.Node.IsZero() {
					votes++
					mine = mine || m.Node == n.conf.Node
				}
			}
			if mine || votes >= quorum.Voters(len(nodes)) {
				return
			}
		}
		select {
		case <-ctx.Done():
			n.deps.Log.Warn("this node does not vote yet", "err", errors.Join(err, nerr))
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// config returns this node's file as it is now.
func (n *life) config() nodeconf.Config {
	n.mu.Lock()
	defer n.mu.Unlock()
	return *n.conf
}

// update changes this node's file: its seat, endpoints, generation, recovery and
// settling.
func (n *life) update(change func(*nodeconf.Config)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := *n.conf
	change(&c)
	if err := c.Save(paths.NodeConfig); err != nil {
		return err
	}
	n.conf.Seat, n.conf.Endpoints, n.conf.Settling = c.Seat, c.Endpoints, c.Settling
	n.conf.Generation, n.conf.Recovering = c.Generation, c.Recovering
	return nil
}

func (n *life) saveSeat(s nodeconf.Seat) error {
	return n.update(func(c *nodeconf.Config) { c.Seat = s })
}

// watchRemoval ends this life when the cluster says that it removed this node.
// Only that record counts: absence of anything proves nothing.
func (n *life) watchRemoval(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	key := member.RemovedKey(n.conf.Node)
	n.deps.Store.Follow(ctx, key, func(kvs []store.KV) {
		if len(kvs) > 0 {
			cancel(errRemoved)
		}
	}, func(kv store.KV) {
		if kv.Value != nil {
			cancel(errRemoved)
		}
	})
	return context.Cause(ctx)
}

// listen keeps a listener on one address of this node; an address that is not
// there yet, or went and came back, is tried again.
func (n *life) listen(ctx context.Context, addr string, port int, serve func(net.Listener) error) error {
	var lc net.ListenConfig
	warned := false
	for {
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(addr, strconv.Itoa(port)))
		if err == nil {
			warned = false
			err = serve(l)
			l.Close()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !warned {
			n.deps.Log.Warn("listener failed, trying again", "address", addr, "port", port, "err", err)
			warned = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(listenPause):
		}
	}
}

// serveAPI serves nodes and users over mutual TLS, and joins to those that have
// no certificate yet.
func (n *life) serveAPI(ctx context.Context, addr string, h http.Handler) error {
	join := n.member.JoinHandler()
	both := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil && len(r.TLS.PeerCertificates) == 0 {
			join.ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(w, r)
	})
	return n.listen(ctx, addr, paths.PortAPI, func(l net.Listener) error {
		return api.Serve(ctx, tls.NewListener(l, n.deps.Identity.APIServerTLS()), both, n.deps.Log)
	})
}

// addressesOf tells where another node's API is: from the cache, or read.
func (n *life) addressesOf(ctx context.Context, node ids.ID) ([]string, error) {
	o := n.deps.Nodes.Get(node)
	if o == nil {
		var err error
		if o, err = store.GetID[model.Node](ctx, n.deps.Store.Relaxed(), node); err != nil {
			return nil, err
		}
	}
	return nodeconf.ControlAddresses(o.Spec.Addresses), nil
}

// followPeers sends beats to every node on every address that it has.
func (n *life) followPeers(ctx context.Context) error {
	defer n.deps.Beats.Wait()
	for {
		changed := n.deps.Nodes.Changed()
		var peers []beat.Peer
		for _, o := range n.deps.Nodes.List() {
			peers = append(peers, beat.Peer{Node: o.ID, Addresses: nodeconf.AllAddresses(o.Spec.Addresses)})
		}
		n.deps.Beats.SetPeers(ctx, peers)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// heard is for `cluster status`.
func (n *life) heard(node ids.ID) member.Heard {
	now, last := n.deps.Clock.Now(), n.deps.Beats.Seen(node)
	if last == 0 {
		return member.Heard{Age: -1}
	}
	h := member.Heard{Age: now.Sub(last)}
	for _, role := range []model.NetworkRole{model.RoleCluster, model.RoleStorage, model.RoleVM} {
		addrs := n.conf.Addresses[role]
		silent := func(a string) bool {
			at := n.deps.Beats.SeenAt(node, a)
			return at == 0 || now.Sub(at) >= beat.LostAfter
		}
		if len(addrs) > 0 && !slices.ContainsFunc(addrs, func(a string) bool { return !silent(a) }) {
			h.Silent = append(h.Silent, role)
		}
	}
	return h
}

// followMembers keeps the list of etcd members up to date: in the client, in the
// node's file for the next start, and for this node's own seat.
func (n *life) followMembers(ctx context.Context) error {
	last := ""
	for {
		if err := n.followOnce(ctx); err != nil && ctx.Err() == nil && err.Error() != last {
			last = err.Error()
			n.deps.Log.Info("follow etcd members", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(refreshEvery):
		}
	}
}

func (n *life) followOnce(ctx context.Context) error {
	rctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	members, err := etcd.Members(rctx, n.cli)
	if err != nil {
		return err
	}
	now := etcd.Endpoints(members)
	have := slices.Clone(n.cli.Endpoints())
	slices.Sort(have)
	if len(now) > 0 && !slices.Equal(now, have) {
		n.cli.SetEndpoints(now...)
		if err := n.update(func(c *nodeconf.Config) { c.Endpoints = now }); err != nil {
			return err
		}
	}
	select {
	case <-n.settled: // before, a node without an object would take a seat
		return n.seat.Follow(ctx, members)
	default:
		return nil
	}
}

// recoverTasks ends the tasks that died with an earlier daemon of this node.
func (n *life) recoverTasks(ctx context.Context) error {
	for {
		err := n.deps.Tasks.Recover(ctx)
		if err != nil {
			n.deps.Log.Debug("end old tasks", "err", err)
		}
		pause := time.Hour
		if err != nil {
			pause = time.Second
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// localRoutes are for root on this machine only.
func (n *life) localRoutes(r *api.Router) {
	op := api.Op("set-etcd", http.MethodPost, "/v1/local/etcd", "Stop or start this node's etcd member (root on the node only; for tests and repair)")
	huma.Register(r, op, func(ctx context.Context, in *struct {
		Body struct {
			Running bool `json:"running"`
		}
	}) (*struct{}, error) {
		if !api.CallerOf(ctx).Local {
			return nil, errs.New(errs.Denied, "set etcd of node %s: only root on the node may do that", n.conf.Name)
		}
		if !n.seat.Seated() {
			return nil, errs.New(errs.Conflict, "set etcd of node %s: it does not vote", n.conf.Name)
		}
		n.seat.Want(in.Body.Running)
		return nil, nil
	})
}
