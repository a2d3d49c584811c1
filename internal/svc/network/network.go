// Package network keeps the networks that VMs are plugged into. A bridged
// network is a name; each node says in its own configuration which interface is
// its uplink. Bridges and ports are made by the guards (driver/net).
package network

import (
	"context"
	"errors"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
)

// Service has the operations on networks.
type Service struct{ env *svc.Env }

// New returns the service.
func New(env *svc.Env) *Service { return &Service{env: env} }

// Info is a network with the nodes that carry it.
type Info struct {
	model.Network
	// Nodes lists "node: interface" of every node with an uplink for it.
	Nodes []string `json:"nodes"`
	// VMs lists the machines plugged into it.
	VMs []string `json:"vms,omitempty"`
}

// CreateRequest is the body of POST /v1/networks.
type CreateRequest struct {
	Name string            `json:"name"`
	Kind model.NetworkKind `json:"kind,omitempty" doc:"bridged (the default)"`
}

// Routes adds the operations.
func (s *Service) Routes(r *api.Router) {
	huma.Register(r, api.Op("list-networks", "GET", "/v1/networks", "List networks"), func(ctx context.Context, _ *struct{}) (*api.Body[[]Info], error) {
		return api.OK(s.List(ctx))
	})
	huma.Register(r, api.Op("get-network", "GET", "/v1/networks/{ref}", "Show a network"), func(ctx context.Context, in *api.Ref) (*api.Body[Info], error) {
		return api.OK(s.Get(ctx, in.Ref))
	})
	huma.Register(r, api.Op("create-network", "POST", "/v1/networks", "Create a network"), func(ctx context.Context, in *struct{ Body CreateRequest }) (*api.Body[*model.Network], error) {
		return api.OK(s.Create(ctx, in.Body))
	})
	huma.Register(r, api.Op("delete-network", "DELETE", "/v1/networks/{ref}", "Delete a network"), func(ctx context.Context, in *api.Ref) (*struct{}, error) {
		return nil, s.Delete(ctx, in.Ref)
	})
}

// List returns all networks, by name.
func (s *Service) List(ctx context.Context) ([]Info, error) {
	nets, err := store.List[model.Network](ctx, s.env.Store.Relaxed())
	if err != nil {
		return nil, err
	}
	nodes, err := store.List[model.Node](ctx, s.env.Store.Relaxed())
	if err != nil {
		return nil, err
	}
	vms, err := store.List[model.VM](ctx, s.env.Store.Relaxed())
	if err != nil {
		return nil, err
	}
	out := make([]Info, 0, len(nets))
	for _, n := range nets {
		out = append(out, info(n, nodes, vms))
	}
	return out, nil
}

func info(n *model.Network, nodes []*model.Node, vms []*model.VM) Info {
	i := Info{Network: *n, Nodes: []string{}}
	for _, node := range nodes {
		if dev := node.Spec.Uplinks[n.Name]; dev != "" {
			i.Nodes = append(i.Nodes, node.Name+": "+dev)
		}
	}
	for _, vm := range vms {
		for _, nic := range vm.Spec.NICs {
			if nic.Network == n.Name {
				i.VMs = append(i.VMs, vm.Name)
				break
			}
		}
	}
	return i
}

// Get returns one network.
func (s *Service) Get(ctx context.Context, ref string) (Info, error) {
	n, err := store.Get[model.Network](ctx, s.env.Store, ref)
	if err != nil {
		return Info{}, err
	}
	all, err := s.List(ctx)
	if err != nil {
		return Info{}, err
	}
	for _, i := range all {
		if i.ID == n.ID {
			return i, nil
		}
	}
	return Info{}, errs.New(errs.NotFound, "read network %s: not found", ref)
}

// Create stores a network.
func (s *Service) Create(ctx context.Context, req CreateRequest) (*model.Network, error) {
	if req.Kind == "" {
		req.Kind = model.NetworkBridged
	}
	n := &model.Network{Meta: model.Meta{Name: req.Name}, Spec: model.NetworkSpec{Kind: req.Kind}}
	if err := n.Validate(); err != nil {
		return nil, err
	}
	return store.Create(ctx, s.env.Store, n)
}

// Delete removes a network that no VM is plugged into.
func (s *Service) Delete(ctx context.Context, ref string) error {
	i, err := s.Get(ctx, ref)
	if err != nil {
		return err
	}
	if len(i.VMs) > 0 {
		return errs.New(errs.Conflict, "delete network %s: vm %s is plugged into it", i.Name, i.VMs[0]).
			WithHint("delete the VMs of this network first: %d of them", len(i.VMs))
	}
	return store.Delete(ctx, s.env.Store, &i.Network)
}

// ensureInterval is how often the node looks whether the networks of its uplinks
// exist.
const ensureInterval = 30 * time.Second

// Run creates the networks that this node has an uplink for and that nobody
// has made yet: after `cluster init` the default network is there without a
// command. A network that was deleted comes back only while a node's
// configuration names it.
func (s *Service) Run(ctx context.Context) error {
	return s.env.Loop(ctx, "network", ensureInterval, nil, s.ensure)
}

func (s *Service) ensure(ctx context.Context) error {
	node, err := store.GetID[model.Node](ctx, s.env.Store, s.env.Node)
	if err != nil {
		return err
	}
	for name := range node.Spec.Uplinks {
		if _, err := store.Get[model.Network](ctx, s.env.Store, name); !errors.Is(err, errs.NotFound) {
			continue
		}
		n := &model.Network{Meta: model.Meta{Name: name}, Spec: model.NetworkSpec{Kind: model.NetworkBridged}}
		if _, err := store.Create(ctx, s.env.Store, n); err != nil && !errors.Is(err, errs.Conflict) {
			return err
		}
	}
	return nil
}
