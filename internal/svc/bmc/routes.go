package bmc

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	driver "roseau/internal/driver/bmc"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/task"
)

// PowerRequest is the body of POST /v1/nodes/{ref}/power.
type PowerRequest struct {
	Action driver.PowerAction `json:"action" enum:"on,off,shutdown,cycle"`
}

// PowerAnswer is what the controller reads.
type PowerAnswer struct {
	Node  string            `json:"node"`
	Power driver.PowerState `json:"power"`
}

// BootRequest is the body of POST /v1/nodes/{ref}/bmc/boot.
type BootRequest struct {
	Device driver.BootDevice `json:"device" enum:"none,disk,pxe,cd,setup"`
	Always bool              `json:"always,omitempty" doc:"each time, not only the next"`
}

// MediaRequest is the body of POST /v1/nodes/{ref}/bmc/media.
type MediaRequest struct {
	Image string `json:"image" doc:"URL that the BMC can read; empty: take it out"`
}

// IdentifyRequest is the body of POST /v1/nodes/{ref}/locate.
type IdentifyRequest struct {
	Off bool `json:"off,omitempty"`
}

// on makes another node than the one concerned carry an operation out: somebody
// must be left to answer.
func (s *Service) on(r *api.Router, op huma.Operation) huma.Operation {
	op.Middlewares = huma.Middlewares{r.OnNode(func(ctx context.Context, path, _ func(string) string) (ids.ID, error) {
		return s.other(ctx, path("ref"))
	})}
	return op
}

func (s *Service) other(ctx context.Context, ref string) (ids.ID, error) {
	n, err := store.Get[model.Node](ctx, s.env.Store.Relaxed(), ref)
	if err != nil || n.ID != s.env.Node {
		return ids.ID{}, err
	}
	for _, o := range s.nodes() {
		if o.ID != n.ID && s.sessions.Alive(o.ID) {
			return o.ID, nil
		}
	}
	return ids.ID{}, nil // the only one: it does what it can
}

// Routes adds the operations.
func (s *Service) Routes(r *api.Router) {
	huma.Register(r, api.Op("show-bmc", "GET", "/v1/nodes/{ref}/bmc", "Show the settings of a node's BMC, never its password"),
		func(ctx context.Context, in *api.Ref) (*api.Body[*Shown], error) {
			n, v, err := s.settings(ctx, in.Ref)
			if err != nil {
				return nil, err
			}
			return api.OK(s.shown(ctx, n, v.Value))
		})
	huma.Register(r, s.on(r, api.Op("set-bmc", "PUT", "/v1/nodes/{ref}/bmc", "Set a node's BMC, after a test")), func(ctx context.Context, in *struct {
		api.Ref
		Body SetRequest
	}) (*api.Body[*Shown], error) {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		return api.OK(s.Set(ctx, in.Ref.Ref, in.Body))
	})
	huma.Register(r, api.Op("remove-bmc", "DELETE", "/v1/nodes/{ref}/bmc", "Forget a node's BMC and its password"),
		func(ctx context.Context, in *api.Ref) (*struct{}, error) { return nil, s.Remove(ctx, in.Ref) })
	huma.Register(r, s.on(r, api.Op("test-bmc", "POST", "/v1/nodes/{ref}/bmc/test", "Ask a node's BMC who and how it is")),
		func(ctx context.Context, in *api.Ref) (*api.Body[*Test], error) {
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			return api.OK(s.test(ctx, in.Ref))
		})
	s.powerRoutes(r)
	s.orderRoutes(r)
	r.Mux.Get("/v1/nodes/{ref}/bmc/console", s.console(r))
}

func (s *Service) powerRoutes(r *api.Router) {
	huma.Register(r, s.on(r, api.Op("get-power", "GET", "/v1/nodes/{ref}/power", "Whether a node has power, as its BMC reads")),
		func(ctx context.Context, in *api.Ref) (*api.Body[*PowerAnswer], error) {
			var a *PowerAnswer
			err := s.with(ctx, in.Ref, func(ctx context.Context, n *model.Node, c driver.Controller) error {
				i, err := c.Info(ctx)
				if err == nil {
					a = &PowerAnswer{n.Name, i.Power}
				}
				return err
			})
			return api.OK(a, err)
		})
	op := s.on(r, api.Op("set-power", "POST", "/v1/nodes/{ref}/power", "Switch a node's power by its BMC"))
	op.DefaultStatus = http.StatusAccepted
	huma.Register(r, op, func(ctx context.Context, in *struct {
		api.Ref
		Body PowerRequest
	}) (*api.AcceptTask, error) {
		n, _, err := s.settings(ctx, in.Ref.Ref)
		if err != nil {
			return nil, err
		}
		t, err := s.env.Tasks.Start(ctx, "node power "+string(in.Body.Action)+" "+n.Name, func(ctx context.Context, _ *task.Handle) (string, error) {
			return s.power(ctx, n.ID.String(), in.Body.Action)
		})
		return api.Accepted(t, err)
	})
}

// with calls f with the controller of a node, within the time of a question.
func (s *Service) with(ctx context.Context, ref string, f func(context.Context, *model.Node, driver.Controller) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	n, _, c, err := s.controller(ctx, ref)
	if err != nil {
		return err
	}
	return f(ctx, n, c)
}

func (s *Service) orderRoutes(r *api.Router) {
	huma.Register(r, s.on(r, api.Op("get-bmc-sensors", "GET", "/v1/nodes/{ref}/bmc/sensors", "Read a node's sensors")),
		func(ctx context.Context, in *api.Ref) (*api.Body[[]driver.Sensor], error) {
			list := []driver.Sensor{}
			err := s.with(ctx, in.Ref, func(ctx context.Context, _ *model.Node, c driver.Controller) (err error) {
				list, err = c.Sensors(ctx)
				return err
			})
			return api.OK(list, err)
		})
	huma.Register(r, s.on(r, api.Op("set-bmc-boot", "POST", "/v1/nodes/{ref}/bmc/boot", "Say where a node starts from")), func(ctx context.Context, in *struct {
		api.Ref
		Body BootRequest
	}) (*struct{}, error) {
		return nil, s.with(ctx, in.Ref.Ref, func(ctx context.Context, _ *model.Node, c driver.Controller) error {
			return c.Boot(ctx, in.Body.Device, in.Body.Always)
		})
	})
	huma.Register(r, s.on(r, api.Op("set-bmc-media", "POST", "/v1/nodes/{ref}/bmc/media", "Put an image into a node's virtual drive")), func(ctx context.Context, in *struct {
		api.Ref
		Body MediaRequest
	}) (*struct{}, error) {
		if u, err := url.Parse(in.Body.Image); in.Body.Image != "" && (err != nil || u.Host == "") {
			return nil, errs.New(errs.Invalid, "change virtual media of node %s: image is %q, want a URL", in.Ref.Ref, in.Body.Image)
		}
		return nil, s.with(ctx, in.Ref.Ref, func(ctx context.Context, _ *model.Node, c driver.Controller) error {
			return c.Media(ctx, in.Body.Image)
		})
	})
	huma.Register(r, s.on(r, api.Op("locate-node", "POST", "/v1/nodes/{ref}/locate", "Switch the LED by which a person finds a node")), func(ctx context.Context, in *struct {
		api.Ref
		Body IdentifyRequest
	}) (*struct{}, error) {
		return nil, s.with(ctx, in.Ref.Ref, func(ctx context.Context, _ *model.Node, c driver.Controller) error {
			return c.Identify(ctx, !in.Body.Off)
		})
	})
	huma.Register(r, s.on(r, api.Op("get-bmc-address", "GET", "/v1/nodes/{ref}/bmc/address", "Read a BMC's own address")),
		func(ctx context.Context, in *api.Ref) (*api.Body[driver.Network], error) {
			var n driver.Network
			err := s.with(ctx, in.Ref, func(ctx context.Context, _ *model.Node, c driver.Controller) (err error) {
				n, err = c.Network(ctx)
				return err
			})
			return api.OK(n, err)
		})
	huma.Register(r, s.on(r, api.Op("set-bmc-address", "PUT", "/v1/nodes/{ref}/bmc/address", "Change a BMC's own address")), func(ctx context.Context, in *struct {
		api.Ref
		Body driver.Network
	}) (*struct{}, error) {
		return nil, s.with(ctx, in.Ref.Ref, func(ctx context.Context, _ *model.Node, c driver.Controller) error {
			return c.SetNetwork(ctx, in.Body)
		})
	})
}

// console answers GET /v1/nodes/{ref}/bmc/console: a websocket of binary frames,
// the raw bytes of the node's serial port both ways.
func (s *Service) console(r *api.Router) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		ref := chi.URLParam(req, "ref")
		node, err := s.other(req.Context(), ref)
		if err != nil {
			api.WriteProblem(w, err)
			return
		}
		if r.Nodes != nil && !r.Nodes.Local(node) {
			r.Nodes.Forward(w, req, node)
			return
		}
		if !strings.EqualFold(req.Header.Get("Upgrade"), "websocket") {
			api.WriteProblem(w, errs.New(errs.Invalid, "console of node %s: ask for a websocket", ref).WithHint("`roseau node bmc console %s`", ref))
			return
		}
		_, _, c, err := s.controller(req.Context(), ref)
		if err != nil {
			api.WriteProblem(w, err)
			return
		}
		serial, err := c.Console(req.Context())
		if err != nil {
			api.WriteProblem(w, err)
			return
		}
		defer serial.Close()
		ws, err := websocket.Accept(w, req, nil)
		if err != nil {
			return // Accept has answered
		}
		ctx, cancel := context.WithCancel(req.Context())
		defer cancel()
		far := websocket.NetConn(ctx, ws, websocket.MessageBinary)
		var wg sync.WaitGroup
		wg.Go(func() { defer serial.Close(); io.Copy(serial, far) })
		wg.Go(func() { defer far.Close(); io.Copy(far, serial) })
		wg.Wait()
	}
}
