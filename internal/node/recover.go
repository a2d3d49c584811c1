package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/paths"
	"roseau/internal/core/quorum"
	"roseau/internal/driver/etcd"
	"roseau/internal/driver/guardctl"
	"roseau/internal/nodeconf"
	"roseau/internal/svc/event"
	"roseau/internal/svc/member"
	"roseau/internal/unit"
)

const (
	quorumTry       = 3 * time.Second
	generationEvery = 2 * time.Second
	unitTimeout     = 30 * time.Second
)

var (
	// errAgain ends a life that another one follows at once: the config changed.
	errAgain = errors.New("this node begins anew")
	// errGeneration ends the life of a node whose cluster was recovered without
	// it.
	errGeneration = errors.New("the cluster has another generation than this node")
)

// RecoverRequest asks for a recovery from this node.
type RecoverRequest struct {
	Cluster string `json:"cluster" doc:"name of the cluster"`
	Confirm string `json:"confirm,omitempty" doc:"the same again: a recovery gives up what only others had"`
	DryRun  bool   `json:"dry_run,omitempty" doc:"say what would be given up, change nothing"`
}

// RecoverAnswer says what a recovery gives up, and whether it has begun.
type RecoverAnswer struct {
	GivenUp    []string `json:"given_up"`
	Begun      bool     `json:"begun"`
	Generation uint32   `json:"generation" doc:"that the cluster will have"`
}

func (n *life) recoverRoutes(r *api.Router) {
	op := api.Op("recover-cluster", http.MethodPost, "/v1/local/recover", "Make a cluster of this node alone after the majority was lost for good (root on the node only)")
	huma.Register(r, op, func(ctx context.Context, in *api.Body[RecoverRequest]) (*api.Body[*RecoverAnswer], error) {
		if !api.CallerOf(ctx).Local {
			return nil, errs.New(errs.Denied, "recover cluster from node %s: only root on the node may do that", n.conf.Name)
		}
		return api.OK(n.beginRecovery(ctx, in.Body))
	})
}

// beginRecovery checks, notes the recovery in this node's file, and begins a new
// life with it: from there on it is finished however often the daemon dies.
func (n *life) beginRecovery(ctx context.Context, req RecoverRequest) (*RecoverAnswer, error) {
	fail := func(err *errs.Error) (*RecoverAnswer, error) {
		return nil, fmt.Errorf("recover cluster %s from node %s: %w", n.conf.ClusterName, n.conf.Name, err)
	}
	if req.Cluster != n.conf.ClusterName {
		return fail(errs.New(errs.Invalid, "this node is of cluster %q, not %q", n.conf.ClusterName, req.Cluster))
	}
	if !n.seat.Seated() {
		return fail(errs.New(errs.Conflict, "it does not vote: it has no copy of the records").WithHint("do it on a node that votes: `roseau cluster status` names them"))
	}
	qctx, cancel := context.WithTimeout(ctx, quorumTry)
	_, err := etcd.Members(qctx, n.cli)
	cancel()
	if err == nil {
		return fail(errs.New(errs.Conflict, "the cluster has a majority: there is nothing to recover").WithHint("a dead node is taken out by `roseau node remove NODE --force --yes`"))
	}
	v, err := n.member.View(ctx)
	if err != nil {
		n.deps.Log.Warn("look before the recovery", "err", err)
	}
	generation := max(n.config().Generation, 1)
	ans := &RecoverAnswer{GivenUp: quorum.GivenUp(v, n.conf.Node, generation), Generation: generation + 1}
	if req.DryRun {
		return ans, nil
	}
	if req.Confirm != req.Cluster {
		return fail(errs.New(errs.Invalid, "it gives up what only others had, and was named once: %s", strings.Join(ans.GivenUp, "; ")).WithHint("name the cluster again: --confirm %s", req.Cluster))
	}
	if err := n.update(func(c *nodeconf.Config) { c.Recovering = generation + 1 }); err != nil {
		return nil, err
	}
	ans.Begun = true
	time.AfterFunc(100*time.Millisecond, n.again) // the answer goes out first
	return ans, nil
}

// again makes this life end for another one.
func (n *life) again() {
	select {
	case n.anew <- struct{}{}:
	default:
	}
}

// awaitAnew ends the life when the config was changed under it.
func (n *life) awaitAnew(ctx context.Context) error {
	select {
	case <-n.anew:
		return errAgain
	case <-ctx.Done():
		return ctx.Err()
	}
}

// finishRecovery goes on once this node's member runs alone: it raises the
// generation in the records, then in this node's file, and brings storage and
// guards of this node along. Each step may be repeated.
func (n *life) finishRecovery(ctx context.Context) error {
	for {
		err := n.recoverOnce(ctx)
		if err == nil {
			n.deps.Log.Warn("the cluster was recovered from this node", "generation", n.config().Generation)
			n.deps.Events.Emit(event.Warn, "cluster "+n.conf.ClusterName, fmt.Sprintf("recovered from node %s alone: generation %d", n.conf.Name, n.config().Generation))
			return nil
		}
		n.deps.Log.Info("recover", "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settlePause):
		}
	}
}

func (n *life) recoverOnce(ctx context.Context) error {
	if err := n.member.RaiseGeneration(ctx, n.config().Recovering); err != nil {
		return err
	}
	if err := n.update(func(c *nodeconf.Config) { c.Generation = c.Recovering }); err != nil {
		return err
	}
	conf := n.config()
	if err := followGeneration(ctx, &conf); err != nil {
		return err
	}
	return n.update(func(c *nodeconf.Config) { c.Recovering = 0 })
}

// followGeneration restarts what of this node has the generation in memory:
// storage first, then the guards, which adopt their QEMUs.
func followGeneration(ctx context.Context, conf *nodeconf.Config) error {
	ctx, cancel := context.WithTimeout(ctx, unitTimeout)
	defer cancel()
	units, err := unit.Detect(ctx)
	if err != nil {
		return nil // nothing here can run without a supervisor
	}
	defer units.Close()
	if err := errors.Join(units.Stop(ctx, unit.Storage), units.Start(ctx, unit.Storage)); err != nil {
		return fmt.Errorf("restart storage: %w", err)
	}
	all, err := units.List(ctx)
	if err != nil {
		return err
	}
	for _, u := range all {
		if vm, ok := u.Name.VMID(); ok && u.State == unit.Running {
			c, err := guardctl.ReadConfig(vm)
			if err != nil {
				return err
			}
			c.Generation, c.Etcd = conf.Generation, conf.Endpoints
			if err := errors.Join(guardctl.WriteConfig(c), units.Kill(ctx, u.Name, int(syscall.SIGKILL))); err != nil {
				return fmt.Errorf("bring the guard of VM %s along: %w", c.Name, err)
			}
		}
		if _, ok := u.Name.VolumeID(); ok && u.State == unit.Running {
			if err := units.Stop(ctx, u.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// watchGeneration ends this life when the cluster was recovered without this
// node: what it has must not be mixed with what was made of the records since.
func (n *life) watchGeneration(ctx context.Context) error {
	for {
		rctx, cancel := context.WithTimeout(ctx, quorumTry)
		c, err := member.ReadCluster(rctx, n.deps.Store)
		cancel()
		conf := n.config()
		if err == nil && conf.Recovering == 0 && conf.Settling == nil && c.Generation != max(conf.Generation, 1) {
			n.d.foreign = c.Generation
			return errGeneration
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(generationEvery):
		}
	}
}

// ImportRequest brings this node into the cluster's generation.
type ImportRequest struct {
	Node    string `json:"node" doc:"name of this node"`
	Confirm string `json:"confirm" doc:"the same again: the records that only this node had are given up"`
}

// waitForImport serves a node whose cluster was recovered without it, until a
// person imports it: its disks then answer to the recovered records.
func (d *daemon) waitForImport(ctx context.Context, conf *nodeconf.Config) error {
	text := fmt.Sprintf("cluster %s was recovered without this node: it has generation %d now, node %s and its disks have %d", conf.ClusterName, d.foreign, conf.Name, conf.Generation)
	hint := fmt.Sprintf("if the recovered cluster is to have its disks: `roseau cluster recover --import %s --confirm %s` here", conf.Name, conf.Name)
	d.o.Log.Error(text, "hint", hint)
	done := make(chan struct{}, 1)
	srv := api.New(api.Config{Version: d.o.Version, Clock: d.o.Clock, Log: d.o.Log}, func(r *api.Router) {
		huma.Register(r, api.Op("cluster-status", http.MethodGet, "/v1/cluster/status", "Members, sessions and quorum"),
			func(context.Context, *struct{}) (*api.Body[*member.Status], error) {
				return api.OK(&member.Status{Quorum: member.Quorum{Nodes: -1, Text: text + "; " + hint}}, nil)
			})
		huma.Register(r, api.Op("import-node", http.MethodPost, "/v1/local/import", "Bring this node and its disks into the recovered cluster (root on the node only)"),
			func(rctx context.Context, in *api.Body[ImportRequest]) (*struct{}, error) {
				if in.Body.Node != conf.Name || in.Body.Confirm != conf.Name {
					return nil, errs.New(errs.Invalid, "import node %q: it gives up the records that only node %s had, and is named twice", in.Body.Node, conf.Name).
						WithHint("`roseau cluster recover --import %s --confirm %s`", conf.Name, conf.Name)
				}
				err := d.importNode(rctx, conf)
				if err == nil {
					done <- struct{}{}
				}
				return nil, err
			})
		r.Mux.NotFound(func(w http.ResponseWriter, r *http.Request) {
			api.WriteProblem(w, errs.New(errs.Unavailable, "%s %s: %s", r.Method, r.URL.Path, text).WithHint("%s", hint))
		})
	})
	d.handler.Store(&handlerBox{srv.Handler()})
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-done:
		return nil
	}
}

// importNode takes this node over into the cluster's generation: its etcd data
// go, its disks stay and answer to the recovered records.
func (d *daemon) importNode(ctx context.Context, conf *nodeconf.Config) error {
	c := *conf
	c.Generation, c.Seat = d.foreign, nodeconf.Seat{}
	if err := os.RemoveAll(paths.Etcd); err != nil {
		return fmt.Errorf("import node %s: %w", conf.Name, err)
	}
	if err := errors.Join(member.DropKey(), c.Save(paths.NodeConfig)); err != nil {
		return fmt.Errorf("import node %s: %w", conf.Name, err)
	}
	if err := followGeneration(ctx, &c); err != nil {
		return fmt.Errorf("import node %s: %w", conf.Name, err)
	}
	d.o.Log.Warn("node was imported", "generation", c.Generation, "etcd", filepath.Base(paths.Etcd)+" cleared")
	return nil
}
