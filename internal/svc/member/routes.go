package member

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/model"
	"roseau/internal/pki"
	"roseau/internal/store"
	"roseau/internal/svc/event"
)

const maxJoinBytes = 64 << 10

// JoinHandler serves the one request that needs no certificate; the token in it
// is the proof.
func (m *Server) JoinHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != JoinPath {
			api.WriteProblem(w, errs.New(errs.Denied, "%s %s: without a certificate only a join is possible", r.Method, r.URL.Path))
			return
		}
		req, err := decodeJoin(http.MaxBytesReader(w, r.Body, maxJoinBytes))
		if err != nil {
			api.WriteProblem(w, err)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), 20*time.Second)
		defer cancel()
		ans, err := m.Join(ctx, req)
		if err != nil {
			m.Log.Warn("join refused", "from", r.RemoteAddr, "name", req.Name, "err", err)
			api.WriteProblem(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(ans) // a joiner that is gone asks again
	})
}

// Tokens on the API never show the hash.
type tokenBody struct {
	Name    string    `json:"name"`
	Expires time.Time `json:"expires"`
	Used    time.Time `json:"used,omitzero"`
	Text    string    `json:"token,omitempty" doc:"the token itself; only in the answer that makes it"`
}

type tokenInput struct {
	Body struct {
		Life    string `json:"life,omitempty" doc:"how long it can be used, for example 1h; default 1h, at most 168h"`
		Witness bool   `json:"witness,omitempty" doc:"for a witness, not for a node"`
	}
}

// Routes adds the cluster's operations.
func (m *Server) Routes(heard func(ids.ID) Heard) api.Routes {
	return func(r *api.Router) {
		huma.Register(r, api.Op("cluster-status", http.MethodGet, "/v1/cluster/status", "Members, sessions and quorum"),
			func(ctx context.Context, _ *struct{}) (*api.Body[*Status], error) {
				return api.OK(m.Status(ctx, heard))
			})
		m.tokenRoutes(r)
		m.nodeRoutes(r)
		m.voterRoutes(r)
		m.witnessRoutes(r)
		huma.Register(r, api.Op("sign-user", http.MethodPost, "/v1/users/{name}/certificate", "Sign a certificate for a user of the API"),
			func(_ context.Context, in *signInput) (*api.Body[*UserCertificate], error) {
				return api.OK(m.signUser(in))
			})
		for _, p := range []string{"/v1/cluster", "/v1/cluster/join"} {
			r.Mux.Post(p, func(w http.ResponseWriter, _ *http.Request) {
				api.WriteProblem(w, errs.New(errs.Conflict, "this machine is node %s of cluster %s already", m.Config.Name, m.Config.ClusterName).WithHint("`roseau cluster status` shows it"))
			})
		}
	}
}

func (m *Server) tokenRoutes(r *api.Router) {
	huma.Register(r, api.Op("create-token", http.MethodPost, "/v1/tokens", "Make a token with which one machine can join"),
		func(ctx context.Context, in *tokenInput) (*api.Body[tokenBody], error) {
			var life time.Duration
			if in.Body.Life != "" {
				var err error
				if life, err = time.ParseDuration(in.Body.Life); err != nil {
					return nil, errs.New(errs.Invalid, "create token: life %q: want for example 30m or 1h", in.Body.Life)
				}
			}
			text, t, err := m.CreateToken(ctx, life, in.Body.Witness)
			if err != nil {
				return nil, err
			}
			return api.OK(tokenBody{Name: t.Name, Expires: t.Expires, Text: text}, nil)
		})
	huma.Register(r, api.Op("list-tokens", http.MethodGet, "/v1/tokens", "List join tokens"),
		func(ctx context.Context, _ *struct{}) (*api.Body[[]tokenBody], error) {
			ts, err := store.List[model.Token](ctx, m.Store.Relaxed())
			out := make([]tokenBody, 0, len(ts))
			for _, t := range ts {
				out = append(out, tokenBody{Name: t.Name, Expires: t.Expires, Used: t.Used})
			}
			return api.OK(out, err)
		})
	huma.Register(r, api.Op("delete-token", http.MethodDelete, "/v1/tokens/{ref}", "Withdraw a join token"),
		func(ctx context.Context, in *api.Ref) (*struct{}, error) {
			t, err := store.Get[model.Token](ctx, m.Store, in.Ref)
			if err != nil {
				return nil, err
			}
			return nil, store.Delete(ctx, m.Store, t)
		})
}

func (m *Server) nodeRoutes(r *api.Router) {
	huma.Register(r, api.Op("list-nodes", http.MethodGet, "/v1/nodes", "List nodes"),
		func(ctx context.Context, _ *struct{}) (*api.Body[[]*model.Node], error) {
			ns, err := store.List[model.Node](ctx, m.Store.Relaxed())
			for _, n := range ns {
				n.Status.Ready = m.Sessions.Alive(n.ID)
			}
			return api.OK(ns, err)
		})
	huma.Register(r, api.Op("show-node", http.MethodGet, "/v1/nodes/{ref}", "Show a node"),
		func(ctx context.Context, in *api.Ref) (*api.Body[*model.Node], error) {
			n, err := store.Get[model.Node](ctx, m.Store.Relaxed(), in.Ref)
			if err == nil {
				n.Status.Ready = m.Sessions.Alive(n.ID)
			}
			return api.OK(n, err)
		})
	huma.Register(r, api.Op("set-node", http.MethodPatch, "/v1/nodes/{ref}", "Say where a node stands"), func(ctx context.Context, in *struct {
		api.Ref
		Body NodeChange
	}) (*api.Body[*model.Node], error) {
		return api.OK(m.SetNode(ctx, in.Ref.Ref, in.Body))
	})
	op := api.Op("remove-node", http.MethodDelete, "/v1/nodes/{ref}", "Remove a node from the cluster")
	op.DefaultStatus = http.StatusAccepted
	// A node does not saw off its own branch: another one removes it.
	op.Middlewares = huma.Middlewares{r.OnNode(m.otherThan)}
	huma.Register(r, op, func(ctx context.Context, in *struct {
		api.Ref
		Force  bool `query:"force" doc:"the machine is gone for good: do not look at what it holds"`
		DryRun bool `query:"dry_run" doc:"say what would be done, change nothing"`
	}) (*api.AcceptTask, error) {
		t, err := m.RemoveNode(ctx, in.Ref.Ref, in.Force, in.DryRun)
		return api.Accepted(t, err)
	})
}

// otherThan picks this node, unless it is the one to be removed: then another
// one that is alive.
func (m *Server) otherThan(ctx context.Context, path, _ func(string) string) (ids.ID, error) {
	n, err := store.Get[model.Node](ctx, m.Store, path("ref"))
	if err != nil || n.ID != m.Config.Node {
		return ids.ID{}, err
	}
	nodes, err := store.List[model.Node](ctx, m.Store)
	if err != nil {
		return ids.ID{}, err
	}
	for _, o := range nodes {
		if o.ID != n.ID && m.Sessions.Alive(o.ID) {
			return o.ID, nil
		}
	}
	return ids.ID{}, errs.New(errs.Conflict, "remove node %s: no other node is alive", n.Name)
}

type signInput struct {
	Name string `path:"name" maxLength:"63"`
	Body struct {
		CSR string `json:"csr" doc:"PEM"`
	}
}

// UserCertificate is what a person needs for a context.
type UserCertificate struct {
	Cluster   string   `json:"cluster"`
	CA        string   `json:"ca"`   // PEM
	Cert      string   `json:"cert"` // PEM
	Addresses []string `json:"addresses"`
}

func (m *Server) signUser(in *signInput) (*UserCertificate, error) {
	if err := model.CheckName("users", in.Name); err != nil {
		return nil, err
	}
	ca, err := pki.LoadCA(paths.PKI)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "sign certificate of user %s: this node does not hold the authority's key: %w", in.Name, err).WithHint("ask a voter")
	}
	cert, err := ca.SignUser([]byte(in.Body.CSR), in.Name, m.Clock.Wall())
	if err != nil {
		return nil, err
	}
	out := &UserCertificate{Cluster: m.Config.ClusterName, CA: string(ca.CertPEM()), Cert: string(cert)}
	for _, a := range m.Config.ClusterAddresses() {
		out.Addresses = append(out.Addresses, net.JoinHostPort(a, strconv.Itoa(paths.PortAPI)))
	}
	m.Events.Emit(event.Info, "user "+in.Name, "was given a certificate")
	return out, nil
}
