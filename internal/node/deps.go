package node

import (
	"context"
	"log/slog"

	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/api"
	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/core/quorum"
	"roseau/internal/model"
	"roseau/internal/nodeconf"
	"roseau/internal/pki"
	"roseau/internal/store"
	"roseau/internal/svc/beat"
	"roseau/internal/svc/event"
	"roseau/internal/svc/task"
)

// Deps is what a daemon of a configured node has to offer to its services. All
// fields are set; services take from it what they need and never import this
// package.
type Deps struct {
	Node     ids.ID
	Name     string
	Config   nodeconf.Config // as it was at the start
	Identity *pki.Identity

	Store    *store.Store
	Etcd     *clientv3.Client
	Nodes    *store.Cache[model.Node, *model.Node]
	Sessions *store.Sessions
	Beats    *beat.Beats
	Tasks    *task.Runner
	Events   *event.Log
	Proxy    *api.Proxy

	// Endpoints returns the client URLs of all etcd members, for the configs of
	// guards.
	Endpoints func() []string
	// Leading reports whether the etcd member of this very node leads: the HA
	// manager works where it does.
	Leading func() bool
	// LeaderSince returns since when etcd has had the same leader, as seen from
	// here; zero: it has none now, or nobody knows.
	LeaderSince func() clock.Instant

	// Votes returns what this node sees of etcd's votes now.
	Votes func(ctx context.Context) (quorum.View, error)

	Clock clock.Clock
	Log   *slog.Logger
}

// Service is one part of the daemon's work.
type Service struct {
	Name string // for logs
	// Run works until ctx ends; nil: the service has routes only. If it returns
	// or panics earlier, it is logged and started again after a pause.
	Run func(ctx context.Context) error
	// Routes adds its operations to the API; nil: none.
	Routes api.Routes
}
