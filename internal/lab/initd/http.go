package initd

import (
	"net/http"

	"roseau/internal/base/errs"
	"roseau/internal/driver/ctlsock"
	"roseau/internal/unit"
)

// Handler answers the requests of unit.LabClient with c.
func Handler(c unit.Controller) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /units", func(w http.ResponseWriter, r *http.Request) {
		list, err := c.List(r.Context())
		ctlsock.Reply(w, list, err)
	})
	mux.HandleFunc("GET /units/{name}", func(w http.ResponseWriter, r *http.Request) {
		st, err := c.Status(r.Context(), unit.Name(r.PathValue("name")))
		ctlsock.Reply(w, st, err)
	})
	mux.HandleFunc("POST /units/{name}/{verb}", func(w http.ResponseWriter, r *http.Request) {
		var req unit.LabRequest
		if err := ctlsock.Decode(w, r, "read request", &req); err != nil {
			ctlsock.Refuse(w, err)
			return
		}
		name := unit.Name(r.PathValue("name"))
		var err error
		switch verb := r.PathValue("verb"); verb {
		case "start":
			err = c.Start(r.Context(), name)
		case "stop":
			err = c.Stop(r.Context(), name)
		case "kill":
			err = c.Kill(r.Context(), name, req.Signal)
		default:
			err = errs.New(errs.Invalid, "order %q for unit %s: want start, stop or kill", verb, name)
		}
		ctlsock.Reply(w, struct{}{}, err)
	})
	mux.HandleFunc("POST /power/{verb}", func(w http.ResponseWriter, r *http.Request) {
		m, ok := c.(unit.Machine)
		verb := r.PathValue("verb")
		var err error
		switch {
		case !ok:
			err = errs.New(errs.Unavailable, "power %s: this supervisor has no power over the machine", verb)
		case verb != "off" && verb != "reboot":
			err = errs.New(errs.Invalid, "power %q: want off or reboot", verb)
		default:
			err = m.Power(r.Context(), verb == "reboot")
		}
		ctlsock.Reply(w, struct{}{}, err)
	})
	return mux
}
