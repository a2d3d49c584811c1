package bmc

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	driver "roseau/internal/driver/bmc"
	"roseau/internal/driver/etcd/etcdtest"
	"roseau/internal/lab/redfish"
	"roseau/internal/model"
	"roseau/internal/pki"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/event"
	"roseau/internal/svc/secret"
)

type supply struct {
	mu sync.Mutex
	on bool
}

func (m *supply) Powered() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.on }
func (m *supply) SetPower(_ context.Context, on bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.on = on
	return nil
}
func (m *supply) Shutdown(ctx context.Context) error { return m.SetPower(ctx, false) }

const uuid = "4c4c4544-0042-4810-8056-b4c04f395931"

// serve starts a controller; its certificate is new each time.
func serve(t *testing.T, addr string, m redfish.Machine) (*httptest.Server, string) {
	t.Helper()
	cert, err := redfish.NewCertificate("b", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(redfish.New(redfish.Config{User: "roseau", Password: "right", UUID: uuid}, m))
	if addr != "" {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		srv.Listener.Close()
		srv.Listener = l
	}
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv, redfish.Fingerprint(cert)
}

func service(t *testing.T) (*Service, *model.Node, *store.Store) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts etcd")
	}
	m, ctx, cluster := etcdtest.New(t, 8), t.Context(), ids.New()
	st, log := store.New(m.Client, clock.System{}), slog.New(slog.DiscardHandler)
	n, err := store.Create(ctx, st, &model.Node{Meta: model.Meta{Name: "n1"}})
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := pki.NewRequest("t")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignNode(csr, n.ID, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.FromFiles(pki.Files{CA: ca.CertPEM(), Cert: cert, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	env := &svc.Env{Store: st, Events: event.NewLog(st, "n1", clock.System{}, log), Cluster: cluster, Node: n.ID, NodeName: "n1", Clock: clock.System{}, Log: log}
	yes := func() bool { return true }
	secrets, err := secret.New(env, id, yes, func() <-chan struct{} { return nil })
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "uuid")
	if err := os.WriteFile(file, []byte(strings.ToUpper(uuid)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := New(env, secrets, store.NewSessions(st), func() []*model.Node { return []*model.Node{n} }, yes, file)
	if err := s.publish(ctx); err != nil {
		t.Fatal(err)
	}
	return s, n, st
}

func refusedWith(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) || errs.Hint(err) == "" && kind != errs.Invalid {
		t.Errorf("want %v and a hint: %v (hint %q)", kind, err, errs.Hint(err))
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error()+errs.Hint(err), w) {
			t.Errorf("%v (hint %q) does not say %q", err, errs.Hint(err), w)
		}
	}
}

func TestSetRefusesWhatIsWrong(t *testing.T) {
	s, _, st := service(t)
	ctx, m := t.Context(), &supply{on: true}
	srv, fingerprint := serve(t, "", m)
	addr := srv.Listener.Addr().String()
	req := SetRequest{Address: "https://" + addr, User: "roseau", Password: "right"}
	with := func(change func(*SetRequest)) error {
		r := req
		change(&r)
		_, err := s.Set(ctx, "n1", r)
		return err
	}
	_, err := s.test(ctx, "n1")
	refusedWith(t, err, errs.NotFound, "none is set", "bmc set n1")
	refusedWith(t, with(func(r *SetRequest) { r.Password = "wrong" }), errs.Denied, "password")
	refusedWith(t, with(func(r *SetRequest) { r.Fingerprint = strings.Repeat("0", 64) }), errs.Denied, fingerprint)
	refusedWith(t, with(func(r *SetRequest) { r.Fingerprint = "abc" }), errs.Invalid, "64")
	refusedWith(t, with(func(r *SetRequest) { r.Address = "ftp://x" }), errs.Invalid, "ftp")
	refusedWith(t, with(func(r *SetRequest) { r.NoTest = true }), errs.Invalid, "fingerprint")
	if _, _, err := s.settings(ctx, "n1"); !errors.Is(err, errs.NotFound) {
		t.Errorf("a refused setting left something: %v", err)
	}
	shown, err := s.Set(ctx, "n1", req)
	if err != nil || shown.Fingerprint != fingerprint || !driver.SameUUID(shown.UUID, shown.NodeUUID) {
		t.Fatalf("set: %+v, %v", shown, err)
	}
	if got, err := s.test(ctx, "n1"); err != nil || got.Power != driver.IsOn || got.Match != "its system is this node" {
		t.Errorf("test: %+v, %v", got, err)
	}
	// The node's firmware says another UUID: this controller is another machine's.
	key := machinePrefix + shownNode(ctx, t, st)
	if _, err := st.Commit(ctx, store.NewTx().Put(key, Machine{UUID: "11111111-2222-3333-4444-555555555555"})); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, with(func(*SetRequest) {}), errs.Denied, "another machine", uuid)
	_, err = s.power(ctx, "n1", driver.PowerOff)
	refusedWith(t, err, errs.Denied, "another machine")
	if !m.Powered() {
		t.Error("a machine was switched off that is not the node")
	}
	if _, err := st.Commit(ctx, store.NewTx().Put(key, Machine{UUID: uuid})); err != nil {
		t.Fatal(err)
	}
	// Another certificate at the same address: a replaced controller, or an impostor.
	srv.Close()
	_, renewed := serve(t, addr, m)
	_, err = s.test(ctx, "n1")
	refusedWith(t, err, errs.Denied, fingerprint, renewed)
	refusedWith(t, with(func(*SetRequest) {}), errs.Denied, fingerprint, renewed)
	if err := with(func(r *SetRequest) { r.Fingerprint = renewed }); err != nil {
		t.Errorf("the new certificate by name: %v", err)
	}
	if err := s.Remove(ctx, "n1"); err != nil {
		t.Error(err)
	}
	if _, err := s.secrets.Get(ctx, secretOf(s.env.Node)); !errors.Is(err, errs.NotFound) {
		t.Errorf("removed, and the password is still there: %v", err)
	}
}

func shownNode(ctx context.Context, t *testing.T, st *store.Store) string {
	t.Helper()
	n, err := store.Get[model.Node](ctx, st, "n1")
	if err != nil {
		t.Fatal(err)
	}
	return n.ID.String()
}

// Known off is written after an own power-off that was read back, taken back
// before power returns, and kept while the node is looked at and off.
func TestKnownOff(t *testing.T) {
	s, n, _ := service(t)
	ctx, m := t.Context(), &supply{on: true}
	srv, _ := serve(t, "", m)
	if _, err := s.Set(ctx, "n1", SetRequest{Address: "https://" + srv.Listener.Addr().String(), User: "roseau", Password: "right"}); err != nil {
		t.Fatal(err)
	}
	report := func() *Report {
		t.Helper()
		_, v, err := s.settings(ctx, "n1")
		if err != nil {
			t.Fatal(err)
		}
		shown, err := s.shown(ctx, n, v.Value)
		if err != nil {
			t.Fatal(err)
		}
		return shown.Report
	}
	s.look(ctx, n)
	if r := report(); r == nil || r.Power != driver.IsOn || r.Off != nil {
		t.Errorf("a lost node whose BMC reads on: %+v", r)
	}
	if text, err := s.power(ctx, "n1", driver.PowerOff); err != nil || m.Powered() || !strings.Contains(text, "off") {
		t.Fatalf("off: %q, %v", text, err)
	}
	s.look(ctx, n)
	if r := report(); r == nil || r.Off == nil || !driver.SameUUID(r.Off.UUID, uuid) || r.Power != driver.IsOff {
		t.Errorf("switched off by us: %+v", r)
	}
	if _, err := s.power(ctx, "n1", driver.PowerOn); err != nil || !m.Powered() {
		t.Fatalf("on: %v", err)
	}
	if r := report(); r != nil {
		t.Errorf("power is back, and still: %+v", r)
	}
	if err := m.SetPower(ctx, false); err != nil { // somebody pulls the plug
		t.Fatal(err)
	}
	s.look(ctx, n)
	if r := report(); r == nil || r.Off != nil || r.Power != driver.IsOff {
		t.Errorf("off, but not by us: %+v", r)
	}
	srv.Close()
	s.look(ctx, n)
	if r := report(); r == nil || r.Error == "" {
		t.Errorf("nobody answers: %+v", r)
	}
}

func TestFinding(t *testing.T) {
	none := errs.New(errs.NotFound, "no BMC")
	broken := errs.New(errs.Unavailable, "no answer")
	away, draining := &model.NodeOrder{Phase: model.OrderAway}, &model.NodeOrder{Phase: model.OrderDraining}
	for _, c := range []struct {
		name  string
		order *model.NodeOrder
		power driver.PowerState
		err   error
		says  string // "": nothing
		level string
	}{
		{"no BMC", nil, "", none, "", ""},
		{"lost and off", nil, driver.IsOff, nil, "the machine is off", event.Warn},
		{"lost while it drains", draining, driver.IsOff, nil, "the machine is off", event.Warn},
		{"lost and on", nil, driver.IsOn, nil, "it hangs", event.Error},
		{"lost, unknown", nil, "", nil, "does not know", event.Warn},
		{"lost, no answer", nil, "", broken, "does not help: no answer", event.Warn},
		{"off as asked", away, driver.IsOff, nil, "", ""},
		{"off as asked, no answer", away, "", broken, "", ""},
		{"left as asked, but on", away, driver.IsOn, nil, "left as asked", event.Warn},
	} {
		text, level := finding(c.order, c.power, c.err)
		if level != c.level || !strings.Contains(text, c.says) || (c.says == "") != (text == "") {
			t.Errorf("%s: %s %q, want %s %q", c.name, level, text, c.level, c.says)
		}
	}
}
