package lab

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/driver/blockdev/faultdisk"
	"roseau/internal/driver/ctlsock"
	"roseau/internal/lab/cable"
	"roseau/internal/lab/labclient"
	"roseau/internal/unit"
)

type order func(context.Context, labclient.Request) (labclient.Answer, error)

// handler answers labclient.Client.
func (l *Lab) handler() http.Handler {
	orders := map[string]order{
		"node-cut": l.nodeCut, "node-restore": l.nodeDo((*node).powerOn),
		"node-freeze":   l.nodeDo(func(n *node, _ context.Context) error { return n.freeze() }),
		"node-thaw":     l.nodeDo(func(n *node, _ context.Context) error { return n.thaw() }),
		"node-binary":   l.nodeBinary,
		"link-cut":      l.link(false),
		"link-restore":  l.link(true),
		"link-lossy":    l.linkLossy,
		"partition":     l.partition,
		"heal":          l.heal,
		"disk-pull":     l.diskDo(func(s *diskState) { s.pulled = true }),
		"disk-insert":   l.diskDo(func(s *diskState) { *s = diskState{name: s.name} }),
		"disk-slow":     l.diskSlow,
		"disk-hang":     l.diskDo(func(s *diskState) { s.hang = true }),
		"disk-corrupt":  l.diskCorrupt,
		"disk-health":   l.diskHealth,
		"power-cut":     l.powerCut,
		"power-restore": l.powerRestore,
		"service-stop":  l.service("stop"),
		"service-start": l.service("start"),
		"service-kill":  l.service("kill"),
		"service-reset": l.serviceReset,
		"bmc-cut":       l.bmcDo(func(c *controller) error { return c.setLink(false) }),
		"bmc-restore":   l.bmcDo(func(c *controller) error { return c.setLink(true) }),
		"bmc-renew":     l.bmcDo((*controller).renew),
		"down":          l.goDown,
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		ctlsock.Reply(w, l.status(r.Context()), nil)
	})
	mux.HandleFunc("POST /do/{verb}", func(w http.ResponseWriter, r *http.Request) {
		do := orders[r.PathValue("verb")]
		if do == nil {
			ctlsock.Reply(w, nil, errs.New(errs.NotFound, "order %q: no such order", r.PathValue("verb")))
			return
		}
		var req labclient.Request
		if err := ctlsock.Decode(w, r, "read order", &req); err != nil {
			ctlsock.Refuse(w, err)
			return
		}
		l.log.Info("order", "verb", r.PathValue("verb"), "node", req.Node, "network", req.Network,
			"disk", req.Disk, "service", req.Service, "groups", req.Groups)
		a, err := do(r.Context(), req)
		ctlsock.Reply(w, a, err)
	})
	return mux
}

func (l *Lab) nodeDo(f func(*node, context.Context) error) order {
	return func(ctx context.Context, req labclient.Request) (labclient.Answer, error) {
		n, err := l.node(req.Node)
		if err != nil {
			return labclient.Answer{}, err
		}
		at := clock.System{}.Wall()
		return labclient.Answer{At: at}, f(n, ctx)
	}
}

func (l *Lab) nodeCut(_ context.Context, req labclient.Request) (labclient.Answer, error) {
	n, err := l.node(req.Node)
	if err != nil {
		return labclient.Answer{}, err
	}
	at, losses, err := n.cut()
	return labclient.Answer{At: at, Losses: losses}, err
}

// nodeBinary lets a node run another build of roseau from its next boot on.
func (l *Lab) nodeBinary(_ context.Context, req labclient.Request) (labclient.Answer, error) {
	a := labclient.Answer{At: clock.System{}.Wall()}
	n, err := l.node(req.Node)
	if err != nil {
		return a, err
	}
	if req.Path != "" {
		fi, err := os.Stat(req.Path)
		if err == nil && (!filepath.IsAbs(req.Path) || !fi.Mode().IsRegular() || fi.Mode().Perm()&0o100 == 0) {
			err = errors.New("want the absolute path of a program")
		}
		if err != nil {
			return a, errs.New(errs.Invalid, "change binary of node %s to %q: %w", n.name, req.Path, err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.binary = req.Path
	return a, nil
}

// powerCut takes the power from all nodes: all cables first, so that no node
// sees another die. The witness stands elsewhere, on power of its own.
func (l *Lab) powerCut(context.Context, labclient.Request) (labclient.Answer, error) {
	at := clock.System{}.Wall()
	var err error
	for _, n := range l.nodes {
		err = errors.Join(err, l.board.Unpowered(n.name))
	}
	losses := make([][]labclient.DiskLoss, len(l.nodes))
	var g errgroup.Group
	for i, n := range l.nodes {
		g.Go(func() error {
			var err error
			_, losses[i], err = n.cut()
			if errors.Is(err, errs.Conflict) {
				return nil
			}
			return err
		})
	}
	err = errors.Join(err, g.Wait())
	a := labclient.Answer{At: at}
	for _, some := range losses {
		a.Losses = append(a.Losses, some...)
	}
	return a, err
}

func (l *Lab) powerRestore(ctx context.Context, _ labclient.Request) (labclient.Answer, error) {
	return labclient.Answer{}, l.powerAll(ctx)
}

// cablesOf are the node and the networks that an order about cables names.
func (l *Lab) cablesOf(req labclient.Request) (*node, []cable.Network, error) {
	n, err := l.node(req.Node)
	if err != nil {
		return nil, nil, err
	}
	networks, err := cable.ByName(req.Network)
	return n, networks, err
}

func (l *Lab) link(up bool) order {
	return func(_ context.Context, req labclient.Request) (labclient.Answer, error) {
		a := labclient.Answer{At: clock.System{}.Wall()}
		n, networks, err := l.cablesOf(req)
		if err != nil {
			return a, err
		}
		for _, w := range networks {
			err = errors.Join(err, l.board.SetLink(n.name, w.Name, up))
		}
		return a, err
	}
}

func (l *Lab) linkLossy(_ context.Context, req labclient.Request) (labclient.Answer, error) {
	a := labclient.Answer{At: clock.System{}.Wall()}
	n, networks, err := l.cablesOf(req)
	if err != nil {
		return a, err
	}
	return a, l.board.Lose(n.name, networks, req.Percent)
}

func (l *Lab) partition(_ context.Context, req labclient.Request) (labclient.Answer, error) {
	a := labclient.Answer{At: clock.System{}.Wall()}
	networks, err := cable.ByName(req.Network)
	if err != nil {
		return a, err
	}
	for _, g := range req.Groups {
		for _, name := range g {
			if _, err := l.node(name); err != nil {
				return a, err
			}
		}
	}
	if len(req.Groups) < 2 {
		return a, errs.New(errs.Invalid, "partition: want two groups or more, for example n1,n2/n3")
	}
	return a, l.board.Partition(req.Groups, networks)
}

func (l *Lab) heal(context.Context, labclient.Request) (labclient.Answer, error) {
	a := labclient.Answer{At: clock.System{}.Wall()}
	err := l.board.Partition(nil, cable.Networks)
	for _, n := range l.machines() {
		for _, network := range l.board.Cut(n.name) {
			err = errors.Join(err, l.board.SetLink(n.name, network, true))
		}
		err = errors.Join(err, l.board.Lose(n.name, cable.Networks, 0))
	}
	return a, err
}

// disk calls f with the named disk's state and its handle, nil without power.
func (l *Lab) disk(req labclient.Request, f func(*node, *diskState, *faultdisk.Handle) error) error {
	n, err := l.node(req.Node)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.disks {
		if n.disks[i].name != req.Disk {
			continue
		}
		var h *faultdisk.Handle
		if n.life != nil {
			h = n.life.handles[req.Disk]
		}
		return f(n, &n.disks[i], h)
	}
	return errs.New(errs.NotFound, "find disk %s/%s: the node has disks d1 to d%d", req.Node, req.Disk, len(n.disks))
}

// diskDo changes the state of a disk and applies it.
func (l *Lab) diskDo(change func(*diskState)) order {
	return func(_ context.Context, req labclient.Request) (labclient.Answer, error) {
		a := labclient.Answer{At: clock.System{}.Wall()}
		if l.spec.RawDisks {
			return a, errs.New(errs.Conflict, "change disk %s/%s: the lab was made with raw disks", req.Node, req.Disk).
				WithHint("make it without --raw-disks")
		}
		return a, l.disk(req, func(_ *node, s *diskState, h *faultdisk.Handle) error {
			before := *s
			change(s)
			if h == nil {
				return nil // it is like that when the node boots
			}
			c := h.Control()
			c.Slow(s.latency)
			c.Hang(s.hang)
			if s.pulled && !before.pulled {
				seed := l.seed()
				l.log.Info("disk is pulled", "node", req.Node, "disk", req.Disk, "seed", seed)
				c.Pull(seed)
			}
			if !s.pulled {
				c.Insert()
			}
			return nil
		})
	}
}

func (l *Lab) diskSlow(ctx context.Context, req labclient.Request) (labclient.Answer, error) {
	if req.Latency < 0 || req.Latency > time.Minute {
		return labclient.Answer{}, errs.New(errs.Invalid, "slow disk %s/%s: latency %v is not between 0 and 1m", req.Node, req.Disk, req.Latency)
	}
	return l.diskDo(func(s *diskState) { s.latency = req.Latency })(ctx, req)
}

func (l *Lab) diskCorrupt(_ context.Context, req labclient.Request) (labclient.Answer, error) {
	a := labclient.Answer{At: clock.System{}.Wall()}
	const maxFlips = 1 << 20
	if req.Count == 0 {
		req.Count = 8
	}
	if req.Count < 0 || req.Count > maxFlips {
		return a, errs.New(errs.Invalid, "corrupt disk %s/%s: %d bits are not between 1 and %d", req.Node, req.Disk, req.Count, maxFlips)
	}
	if req.Seed == 0 {
		req.Seed = l.seed()
	}
	err := l.disk(req, func(n *node, s *diskState, _ *faultdisk.Handle) (err error) {
		a.Flips, err = faultdisk.Corrupt(n.diskFile(s.name), req.From, req.To, req.Count, req.Seed)
		return err
	})
	l.log.Info("disk is corrupted", "node", req.Node, "disk", req.Disk, "seed", req.Seed, "flips", len(a.Flips))
	return a, err
}

// guardOf finds the VM called name by the configs of the guards on the node: it
// works without the node's daemon and without a quorum.
func guardOf(l *life, name string) (ids.ID, error) {
	for vm, n := range guardNames(l) {
		if n == name {
			return vm, nil
		}
	}
	return ids.ID{}, errors.New("no guard on this node has a VM of that name or ID")
}

// guardNames returns the names of the VMs that have a guard's configuration on a
// node; one that ended meanwhile is left out.
func guardNames(l *life) map[ids.ID]string {
	configs, _ := filepath.Glob(l.inside("/run/roseau/vm/*/config.json")) // the pattern is right
	names := map[ids.ID]string{}
	for _, path := range configs {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var c struct {
			VM   ids.ID `json:"vm"`
			Name string `json:"name"`
		}
		if json.Unmarshal(b, &c) == nil {
			names[c.VM] = c.Name
		}
	}
	return names
}

// unitName translates what people call a service of a node.
func unitName(l *life, service string) (unit.Name, error) {
	kind, id, _ := strings.Cut(service, ":")
	switch kind {
	case "node":
		return unit.Node, nil
	case "storage":
		return unit.Storage, nil
	case "witness":
		return unit.Witness, nil
	case "guard", "volume":
		parsed, err := ids.Parse(id)
		if err != nil && kind == "guard" {
			parsed, err = guardOf(l, id)
		}
		if err != nil {
			return "", errs.New(errs.NotFound, "find service %q: %w", service, err).
				WithHint("name a VM that runs on this node; guard:ID and volume:ID with an ID work always")
		}
		if kind == "guard" {
			return unit.VM(parsed), nil
		}
		return unit.Volume(parsed), nil
	}
	if strings.HasPrefix(service, "roseau-") || strings.HasPrefix(service, "unit:") {
		return unit.Name(strings.TrimPrefix(service, "unit:")), nil
	}
	return "", errs.New(errs.Invalid, "find service %q: want node, etcd, storage, witness, guard:VM or volume:ID", service)
}

// service stops, starts or kills one service of a node.
func (l *Lab) service(verb string) order {
	return func(ctx context.Context, req labclient.Request) (a labclient.Answer, err error) {
		n, err := l.node(req.Node)
		if err != nil {
			return a, err
		}
		if req.Service == "etcd" {
			return l.etcd(n, verb)
		}
		var name unit.Name
		var c *unit.LabClient
		err = n.running(verb+" service "+req.Service, func(life *life) (err error) {
			c = life.units()
			name, err = unitName(life, req.Service)
			return err
		})
		if err != nil {
			return a, err
		}
		defer c.Close()
		a.At = clock.System{}.Wall()
		switch verb {
		case "stop":
			err = c.Stop(ctx, name)
		case "start":
			err = c.Start(ctx, name)
		default:
			err = c.Kill(ctx, name, int(syscall.SIGKILL))
		}
		return a, err
	}
}

// serviceReset resets the connections of a service, those of clients on the node as
// well.
func (l *Lab) serviceReset(ctx context.Context, req labclient.Request) (a labclient.Answer, err error) {
	n, err := l.node(req.Node)
	if err != nil {
		return a, err
	}
	port, ok := map[string]uint16{"storage": paths.PortStorage, "node": paths.PortAPI}[req.Service]
	if !ok {
		return a, errs.New(errs.Invalid, "reset connections of service %q: want storage or node", req.Service)
	}
	a.At = clock.System{}.Wall()
	return a, n.running("reset connections of "+req.Service, func(life *life) error { return cable.ResetConnections(ctx, life.ns, port) })
}

// etcd runs inside `roseau node`; to stop it alone its ports are made to refuse
// in the node's namespace, for local clients, too, and the member cannot reach
// its peers: for everybody it is as if the etcd process had ended, and the
// daemon beside it lives.
func (l *Lab) etcd(n *node, verb string) (a labclient.Answer, err error) {
	var ports []uint16
	switch verb {
	case "stop":
		ports = []uint16{paths.PortEtcdClient, paths.PortEtcdPeer}
	case "start":
	default:
		return a, errs.New(errs.Invalid, "kill service etcd: it lives in the node daemon").WithHint("kill the service node, or stop etcd")
	}
	a = labclient.Answer{
		At:   clock.System{}.Wall(),
		Note: "etcd lives in the node daemon: its ports refuse connections in the node's namespace",
	}
	return a, n.running(verb+" service etcd", func(life *life) error {
		if err := cable.SilencePorts(life.ns, ports, paths.PortEtcdPeer); err != nil {
			return err
		}
		n.etcdDown = verb == "stop"
		return nil
	})
}

// goDown closes the lab and ends the daemon after the answer.
func (l *Lab) goDown(context.Context, labclient.Request) (labclient.Answer, error) {
	l.mu.Lock()
	l.down = true
	l.mu.Unlock()
	time.AfterFunc(50*time.Millisecond, l.stop) // the answer goes out first
	return labclient.Answer{}, nil
}
