package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"roseau/internal/api"
	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/core/quorum"
	"roseau/internal/nodeconf"
	"roseau/internal/svc/member"
)

// Options are what the command line gives the daemon.
type Options struct {
	Version string
	Clock   clock.Clock
	Log     *slog.Logger
	Timers  quorum.Timers // of the voters; zero: those that ship
}

// readyTimeout is how long the answer to an init or a join waits for the new
// node to be a full part of the cluster.
const readyTimeout = 90 * time.Second

// Run is the daemon: it returns when ctx ends, or with what made it impossible
// to go on.
func Run(ctx context.Context, o Options) error {
	unlock, err := lockState()
	if err != nil {
		return err
	}
	defer unlock()
	booted, err := makeBootID()
	if err != nil {
		return err
	}
	l, err := listenSocket(paths.APISocket)
	if err != nil {
		return err
	}
	d := &daemon{o: o, booted: booted}
	d.handler.Store(&handlerBox{http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		api.WriteProblem(w, errs.New(errs.Unavailable, "%s %s: the node is starting", r.Method, r.URL.Path).WithHint("try again in a second"))
	})})
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return api.Serve(gctx, l, http.HandlerFunc(d.serve), o.Log) })
	g.Go(func() error { return d.loop(gctx) })
	err = g.Wait()
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		o.Log.Info("node daemon stopped")
		return nil
	}
	return err
}

// daemon changes between two lives: in no cluster, and node of one.
type daemon struct {
	o       Options
	handler atomic.Pointer[handlerBox] // of the unix socket
	booted  bool                       // this is the first daemon of this boot
	foreign uint32                     // generation of the cluster that was recovered without this node
}

type handlerBox struct{ http.Handler }

func (d *daemon) serve(w http.ResponseWriter, r *http.Request) { d.handler.Load().ServeHTTP(w, r) }

// errRemoved ends the life as a node: the cluster took this node out.
var errRemoved = errors.New("this node was removed from its cluster")

func (d *daemon) loop(ctx context.Context) error {
	for {
		var ready chan<- error
		conf, err := nodeconf.Load(paths.NodeConfig)
		if errors.Is(err, errs.NotFound) {
			conf, ready, err = d.waitForCluster(ctx)
		}
		if err != nil {
			return err
		}
		err = d.configured(ctx, conf, ready)
		switch {
		case errors.Is(err, errAgain):
			continue
		case errors.Is(err, errGeneration):
			if err := d.waitForImport(ctx, conf); err != nil {
				return err
			}
			continue
		case !errors.Is(err, errRemoved):
			return err
		}
		d.o.Log.Warn("removed from the cluster", "cluster", conf.ClusterName, "node", conf.Name)
		aside := paths.NodeConfig + ".removed"
		if err := os.Rename(paths.NodeConfig, aside); err != nil {
			return fmt.Errorf("leave cluster: %w", err)
		}
	}
}

// waitForCluster serves init and join on the unix socket until one of them made
// this machine a node. ready takes the outcome of the node's start, for the
// request that waits for it.
func (d *daemon) waitForCluster(ctx context.Context) (*nodeconf.Config, chan<- error, error) {
	d.o.Log.Info("in no cluster: waiting for `roseau cluster init` or `roseau cluster join`")
	made := make(chan *nodeconf.Config)
	ready := make(chan error, 1)
	var busy atomic.Bool
	// begin runs the first half of an init or join, then waits for the second.
	begin := func(rctx context.Context, first func() (*nodeconf.Config, error)) (*api.Body[*member.Status], error) {
		if !busy.CompareAndSwap(false, true) {
			return nil, errs.New(errs.Conflict, "an init or a join is under way on this machine")
		}
		conf, err := first()
		if err != nil {
			busy.Store(false)
			return nil, err
		}
		select {
		case made <- conf:
		case <-ctx.Done():
			return nil, errs.New(errs.Unavailable, "the daemon is stopping; it goes on when it starts again")
		}
		t := time.NewTimer(readyTimeout)
		defer t.Stop()
		select {
		case err := <-ready:
			if err != nil {
				return nil, err
			}
		case <-t.C:
			return nil, errs.New(errs.Unavailable, "node %s: not ready within %s; it goes on trying", conf.Name, readyTimeout).WithHint("see `roseau cluster status` and the log of roseau-node")
		case <-rctx.Done():
			return nil, rctx.Err()
		}
		return &api.Body[*member.Status]{Body: &member.Status{Configured: true, Node: conf.Name}}, nil
	}
	srv := api.New(api.Config{Version: d.o.Version, Clock: d.o.Clock, Log: d.o.Log}, func(r *api.Router) {
		huma.Register(r, api.Op("init-cluster", http.MethodPost, "/v1/cluster", "Make a new cluster of this machine"),
			func(rctx context.Context, in *api.Body[member.InitRequest]) (*api.Body[*member.Status], error) {
				return begin(rctx, func() (*nodeconf.Config, error) { return member.Init(in.Body, d.o.Clock) })
			})
		huma.Register(r, api.Op("join-cluster", http.MethodPost, "/v1/cluster/join", "Join the cluster of a token"),
			func(rctx context.Context, in *api.Body[member.LocalJoinRequest]) (*api.Body[*member.Status], error) {
				return begin(rctx, func() (*nodeconf.Config, error) { return member.Join(rctx, in.Body) })
			})
		huma.Register(r, api.Op("cluster-status", http.MethodGet, "/v1/cluster/status", "Members, sessions and quorum"),
			func(context.Context, *struct{}) (*api.Body[*member.Status], error) {
				return api.OK(&member.Status{Quorum: member.Quorum{Text: "this machine is in no cluster: `roseau cluster init`, or `roseau cluster join TOKEN`"}}, nil)
			})
		r.Mux.NotFound(func(w http.ResponseWriter, r *http.Request) {
			api.WriteProblem(w, errs.New(errs.Unavailable, "%s %s: this machine is in no cluster", r.Method, r.URL.Path).
				WithHint("`roseau cluster init` makes a cluster, `roseau cluster join TOKEN` joins one"))
		})
	})
	d.handler.Store(&handlerBox{srv.Handler()})
	select {
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	case conf := <-made:
		return conf, ready, nil
	}
}

// lockState keeps a second daemon away from this node's state.
func lockState() (unlock func(), err error) {
	for _, dir := range []string{paths.State, paths.Run} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("start node: %w", err)
		}
	}
	f, err := os.OpenFile(filepath.Join(paths.State, "node.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start node: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, errs.New(errs.Conflict, "start node: another `roseau node` runs here: %w", err)
	}
	return func() { f.Close() }, nil
}

// listenSocket opens the API's unix socket, for root alone.
func listenSocket(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// The mode must be right from the first moment: bind below a directory that
	// only root enters is not given, so the socket is moved into place.
	tmp := path + ".new"
	os.Remove(tmp)
	l, err := net.Listen("unix", tmp)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// makeBootID writes the boot identity at the first start after a boot: the file
// is on a tmpfs. The kernel's own id is mixed in, for a /run that is not. It
// reports whether this daemon is the first one of its boot.
func makeBootID() (first bool, err error) {
	mark := paths.BootID + ".node" // the identity itself may be another process's
	if f, err := os.OpenFile(mark, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err == nil {
		first = true
		f.Close()
	}
	if _, err := os.Stat(paths.BootID); err == nil {
		return first, nil
	}
	f, err := os.OpenFile(paths.BootID, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return first, nil // another process of this node was faster
	}
	if err != nil {
		return first, fmt.Errorf("make boot identity: %w", err)
	}
	_, err = f.WriteString(ids.New().String() + "\n")
	return first, errors.Join(err, f.Close())
}

func bootID() string {
	data, err := os.ReadFile(paths.BootID)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
