package vm

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/coder/websocket"
	"github.com/go-chi/chi/v5"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/driver/guardctl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/records"
)

// console answers GET /v1/vms/{ref}/console: a websocket of binary frames, the
// raw bytes of the serial port both ways. On another node than the VM's the
// request is passed on.
func (s *Service) console(r *api.Router) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		vm, err := store.Get[model.VM](req.Context(), s.env.Store.Relaxed(), chi.URLParam(req, "ref"))
		if err != nil {
			api.WriteProblem(w, err)
			return
		}
		p, err := records.Placement(req.Context(), s.env.Store.Relaxed(), vm.ID)
		if err == nil && p.Value.Node.IsZero() {
			err = errs.New(errs.Conflict, "console of vm %s: it does not run", vm.Name).WithHint("`roseau vm start %s`", vm.Name)
		}
		if err != nil {
			api.WriteProblem(w, err)
			return
		}
		if r.Nodes != nil && !r.Nodes.Local(p.Value.Node) {
			r.Nodes.Forward(w, req, p.Value.Node)
			return
		}
		if !strings.EqualFold(req.Header.Get("Upgrade"), "websocket") {
			api.WriteProblem(w, errs.New(errs.Invalid, "console of vm %s: ask for a websocket", vm.Name).WithHint("`roseau vm console %s`", vm.Name))
			return
		}
		guest, err := guardctl.Dial(vm.ID).Console(context.WithoutCancel(req.Context()))
		if err != nil {
			api.WriteProblem(w, err)
			return
		}
		defer guest.Close()
		ws, err := websocket.Accept(w, req, nil)
		if err != nil {
			return // Accept has answered
		}
		ctx, cancel := context.WithCancel(req.Context())
		defer cancel()
		pipe(websocket.NetConn(ctx, ws, websocket.MessageBinary), guest)
	}
}

// pipe copies both ways until either side ends, and closes both.
func pipe(a, b io.ReadWriteCloser) {
	var wg sync.WaitGroup
	var once sync.Once
	end := func() {
		once.Do(func() {
			a.Close()
			b.Close()
		})
	}
	for _, p := range [][2]io.ReadWriteCloser{{a, b}, {b, a}} {
		wg.Go(func() {
			defer end()
			io.Copy(p[0], p[1])
		})
	}
	wg.Wait()
}
