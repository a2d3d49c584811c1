package node

import (
	"context"
	"errors"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/paths"
	"roseau/internal/driver/locate"
	"roseau/internal/driver/storagectl"
	dog "roseau/internal/driver/watchdog"
	"roseau/internal/model"
	"roseau/internal/storage"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/balance"
	"roseau/internal/svc/bmc"
	"roseau/internal/svc/care"
	"roseau/internal/svc/disk"
	"roseau/internal/svc/ha"
	"roseau/internal/svc/image"
	"roseau/internal/svc/maint"
	"roseau/internal/svc/network"
	"roseau/internal/svc/pool"
	"roseau/internal/svc/records"
	"roseau/internal/svc/rule"
	"roseau/internal/svc/secret"
	"roseau/internal/svc/vm"
	"roseau/internal/svc/volume"
	"roseau/internal/svc/watchdog"
	"roseau/internal/unit"
)

// services lists the reconcilers and routes of a configured node, in the order
// in which they are started. What a service needs it takes from d.
func services(ctx context.Context, d Deps) ([]Service, error) {
	units, err := unit.Detect(ctx)
	if err != nil {
		// Nothing here can be started, but the cluster can be looked at.
		d.Log.Error("no supervisor of units: VMs and volumes cannot be started on this node", "err", err)
		units = unit.Absent(err)
	}
	env := &svc.Env{Store: d.Store, Tasks: d.Tasks, Events: d.Events, Units: units, Proxy: d.Proxy, Cluster: d.Config.Cluster,
		Node: d.Node, NodeName: d.Name, Endpoints: d.Endpoints, Clock: d.Clock, Log: d.Log}
	control := storagectl.New(paths.StorageControlSocket)
	world := records.NewWorld(d.Store, d.Clock)
	viewer := &ha.Viewer{Self: d.Node, World: world, Sessions: d.Sessions, Beats: d.Beats, Listening: d.Clock.Now(),
		Holds: world.ShutsDown, Wall: d.Clock.Wall}
	guards := vm.NewGuards(units)

	labHealth, uuidFile, dogDevice := "", "/sys/class/dmi/id/product_uuid", dog.Device
	if storage.LabNode() {
		labHealth, uuidFile, dogDevice = paths.LabHealth, paths.LabMachine, paths.LabWatchdog
	}
	disks := disk.New(env, disk.NewStorage(control), locate.Light{Lab: labHealth})
	pools := pool.New(env)
	volumes := volume.New(env, volume.NewWriters(units), disk.NewFreer(control))
	disksCare := care.New(env, control, volumes, labHealth)
	images := image.New(env, volumes, paths.Uploads)
	networks := network.New(env)
	vms := vm.New(env, world, viewer, volumes, images, guards)
	reconciler := vm.NewReconciler(env, world, guards, volumes.Yield, volumes.Peers)
	maintenance := maint.New(env, maint.Needs{World: world, Viewer: viewer, Leading: func() bool { return d.Leading() && d.LeaderSince() != 0 },
		Votes: d.Votes, Boot: bootID, ClusterName: d.Config.ClusterName})
	rules := rule.New(env, viewer)
	balancer := balance.New(env, viewer, vms, d.Leading)
	secrets, err := secret.New(env, d.Identity, d.Leading, d.Nodes.Changed)
	if err != nil {
		return nil, err
	}
	bmcs := bmc.New(env, secrets, d.Sessions, d.Nodes.List, d.Leading, uuidFile)
	dogs := watchdog.New(env, func() *model.Node { return d.Nodes.Get(d.Node) }, holdsSession(d), vm.Leases{Guards: guards}, dogDevice)
	manager := ha.NewManager(env, viewer, d.Leading, d.LeaderSince)

	return []Service{
		{Name: "world", Run: world.Run},
		{Name: "disks", Run: disks.Run, Routes: disks.Routes},
		{Name: "pools", Routes: pools.Routes},
		{Name: "care", Run: disksCare.Run, Routes: disksCare.Routes},
		{Name: "volumes", Run: volumes.Run, Routes: volumes.Routes},
		{Name: "images", Run: images.Run, Routes: images.Routes},
		{Name: "networks", Run: networks.Run, Routes: networks.Routes},
		{Name: "vms", Run: reconciler.Run, Routes: vms.Routes},
		{Name: "ha", Run: manager.Run},
		{Name: "maintenance", Run: maintenance.Run, Routes: maintenance.Routes},
		{Name: "rules", Routes: rules.Routes},
		{Name: "balance", Run: balancer.Run, Routes: balancer.Routes},
		{Name: "bmc", Run: bmcs.Run, Routes: bmcs.Routes},
		{Name: "secrets", Run: secrets.Run, Routes: secrets.Routes},
		{Name: "watchdog", Run: dogs.Run},
		{Name: "self", Routes: selfRoutes(d)},
		{Name: "units", Run: func(ctx context.Context) error {
			<-ctx.Done()
			return errors.Join(ctx.Err(), units.Close())
		}},
	}, nil
}

// holdsSession reports whether etcd, asked with a quorum, has this node's session:
// what is cached here does not end while etcd is away.
func holdsSession(d Deps) func(context.Context) bool {
	return func(ctx context.Context) bool {
		r, err := store.GetRecord[store.Session](ctx, d.Store, store.SessionKey(d.Node))
		return err == nil && r.Revision > 0
	}
}

// Self is which node answers.
type Self struct {
	Node string `json:"node"`
	ID   string `json:"id"`
}

func selfRoutes(d Deps) api.Routes {
	return func(r *api.Router) {
		huma.Register(r, api.Op("get-self", "GET", "/v1/self", "Which node answers"), func(context.Context, *struct{}) (*api.Body[Self], error) {
			return api.OK(Self{Node: d.Name, ID: d.Node.String()}, nil)
		})
	}
}
