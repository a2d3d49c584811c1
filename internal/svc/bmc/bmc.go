// Package bmc keeps the settings of the nodes' management controllers, carries
// out orders to them, and looks through them at nodes that were lost. No other
// service waits for it, and nothing that it finds reaches a lease: see
// docs/design/bmc.md.
package bmc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	driver "roseau/internal/driver/bmc"
	"roseau/internal/model"
	"roseau/internal/secret"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/event"
)

// Keys of the records.
const (
	settingsPrefix = "/s/bmc/"
	reportPrefix   = "/r/bmc/"     // what was found of a controller
	machinePrefix  = "/r/machine/" // what a node says of its firmware
)

// SecretKind is the kind of the passwords in the secret store.
const SecretKind = "bmc"

// Time limits.
const (
	askTimeout   = 30 * time.Second // of everything but power
	orderTimeout = 60 * time.Second
	roundEvery   = 5 * time.Second
	lostFor      = 15 * time.Second // a node's session, before its controller is asked
	lookEvery    = time.Minute
	pollNote     = 300 * time.Millisecond // between attempts to note what was done
)

// Settings is /s/bmc/<node>.
type Settings struct {
	Protocol    driver.Protocol `json:"protocol"`
	Host        string          `json:"host"`
	Port        int             `json:"port,omitempty"` // 0: the protocol's own
	User        string          `json:"user"`
	Fingerprint string          `json:"fingerprint,omitempty"` // SHA-256 of the pinned certificate; empty: IPMI
	UUID        string          `json:"uuid,omitempty"`        // of its system, as read when it was set; empty: not read
	Set         time.Time       `json:"set"`
}

// Report is /r/bmc/<node>: the last that was found after the node was lost.
type Report struct {
	Looked time.Time         `json:"looked,omitzero"`
	Power  driver.PowerState `json:"power,omitempty"`
	Error  string            `json:"error,omitempty"`
	// Off is set by a power-off of Roseau's own that was read back, until the node
	// returns or power is switched on. It shortens no lease.
	Off *KnownOff `json:"known_off,omitempty"`
}

// KnownOff is a machine that was switched off and read as off.
type KnownOff struct {
	Since time.Time `json:"since"`
	UUID  string    `json:"uuid"` // of the system, equal to the node's own
}

// Machine is /r/machine/<node>, written by the node.
type Machine struct {
	UUID string `json:"uuid"` // of its firmware (DMI); empty: it has none to show
}

// Secrets is the part of the secret store that is used here.
type Secrets interface {
	Get(ctx context.Context, id secret.ID) (secret.Text, error)
	TxPut(ctx context.Context, tx *store.Tx, id secret.ID, content secret.Text) error
	TxDelete(tx *store.Tx, id secret.ID)
}

// Service is a node's way to the controllers.
type Service struct {
	env      *svc.Env
	secrets  Secrets
	sessions *store.Sessions
	nodes    func() []*model.Node
	leading  func() bool
	uuidFile string
	open     func(driver.Config) (driver.Controller, error)

	mu     sync.Mutex // protects looked
	looked map[ids.ID]look
}

// look is when a node's controller was asked last, and what was said then.
type look struct {
	at   time.Time
	busy bool
	text string
}

// New returns the service of a node. uuidFile is where this machine's firmware
// shows its UUID.
func New(env *svc.Env, s Secrets, sessions *store.Sessions, nodes func() []*model.Node, leading func() bool, uuidFile string) *Service {
	return &Service{env: env, secrets: s, sessions: sessions, nodes: nodes, leading: leading, uuidFile: uuidFile, open: driver.Open, looked: map[ids.ID]look{}}
}

func secretOf(node ids.ID) secret.ID { return secret.ID{Kind: SecretKind, Owner: node.String()} }

// settings reads a node and the settings of its controller.
func (s *Service) settings(ctx context.Context, ref string) (*model.Node, store.Record[Settings], error) {
	n, err := store.Get[model.Node](ctx, s.env.Store.Relaxed(), ref)
	if err != nil {
		return nil, store.Record[Settings]{}, err
	}
	r, err := store.GetRecord[Settings](ctx, s.env.Store.Relaxed(), settingsPrefix+n.ID.String())
	if err == nil && r.Revision == 0 {
		err = errs.New(errs.NotFound, "read BMC of node %s: none is set", n.Name).WithHint("`roseau node bmc set %s --address HOST --user USER` sets one", n.Name)
	}
	return n, r, err
}

// controller opens a node's controller.
func (s *Service) controller(ctx context.Context, ref string) (*model.Node, Settings, driver.Controller, error) {
	n, r, err := s.settings(ctx, ref)
	if err != nil {
		return nil, Settings{}, nil, err
	}
	password, err := s.secrets.Get(ctx, secretOf(n.ID))
	if err != nil {
		return nil, Settings{}, nil, fmt.Errorf("open BMC of node %s: %w", n.Name, err)
	}
	c, err := s.open(r.Value.config(password))
	return n, r.Value, c, err
}

func (v Settings) config(password secret.Text) driver.Config {
	return driver.Config{Protocol: v.Protocol, Host: v.Host, Port: v.Port, User: v.User, Password: password, Fingerprint: v.Fingerprint, UUID: v.UUID}
}

// machineUUID is what the node's firmware said to the node; "" if it said
// nothing.
func (s *Service) machineUUID(ctx context.Context, node ids.ID) (string, error) {
	r, err := store.GetRecord[Machine](ctx, s.env.Store.Relaxed(), machinePrefix+node.String())
	return r.Value.UUID, err
}

// SetRequest is the body of PUT /v1/nodes/{ref}/bmc.
type SetRequest struct {
	Address     string `json:"address" doc:"HOST, https://HOST:PORT or ipmi://HOST:PORT"`
	User        string `json:"user"`
	Password    string `json:"password" doc:"goes to the secret store and comes out nowhere"`
	Fingerprint string `json:"fingerprint,omitempty" doc:"SHA-256 that its certificate must have; empty: the one that it shows now, unless another is pinned"`
	NoTest      bool   `json:"no_test,omitempty" doc:"do not ask the controller: for one that does not answer now"`
}

// Set stores the settings of a node's controller, after it was asked whether
// they are right.
func (s *Service) Set(ctx context.Context, ref string, req SetRequest) (*Shown, error) {
	n, old, err := s.settings(ctx, ref)
	if err != nil && n == nil || err != nil && !errors.Is(err, errs.NotFound) {
		return nil, err
	}
	fail := func(err error) (*Shown, error) { return nil, fmt.Errorf("set BMC of node %s: %w", n.Name, err) }
	c, err := driver.ParseAddress(req.Address)
	if err != nil {
		return fail(err)
	}
	v := Settings{Protocol: c.Protocol, Host: c.Host, Port: c.Port, User: req.User, Set: s.env.Clock.Wall().UTC()}
	if v.Fingerprint, err = s.pin(ctx, c, req, old.Value); err != nil {
		return fail(err)
	}
	own, err := s.machineUUID(ctx, n.ID)
	if err != nil {
		return fail(err)
	}
	conf := v.config(secret.Text(req.Password))
	conf.UUID = own
	ctl, err := s.open(conf)
	if err != nil {
		return fail(err)
	}
	if !req.NoTest {
		info, err := ctl.Info(ctx)
		if err != nil {
			return fail(err)
		}
		if err := sameMachine(n.Name, own, info.UUID); err != nil {
			return fail(err)
		}
		v.UUID = info.UUID
	}
	key := settingsPrefix + n.ID.String()
	tx := store.NewTx().If(key, old.Revision).Put(key, v).Delete(reportPrefix + n.ID.String())
	if err := s.secrets.TxPut(ctx, tx, secretOf(n.ID), secret.Text(req.Password)); err != nil {
		return fail(err)
	}
	if _, err := s.env.Store.Commit(ctx, tx); err != nil {
		return fail(err)
	}
	s.env.Events.Emit(event.Info, "node "+n.Name, "its BMC was set", "address", v.Host, "protocol", string(v.Protocol), "fingerprint", v.Fingerprint)
	return s.shown(ctx, n, v)
}

// pin decides which certificate is to be trusted: the one that is asked for, the
// one that was, or the first that is seen.
func (s *Service) pin(ctx context.Context, c driver.Config, req SetRequest, old Settings) (string, error) {
	want := strings.ToLower(strings.ReplaceAll(req.Fingerprint, ":", ""))
	if c.Protocol != driver.Redfish {
		if want != "" {
			return "", errs.New(errs.Invalid, "fingerprint is %q: IPMI shows no certificate", req.Fingerprint)
		}
		return "", nil
	}
	if want != "" && (len(want) != 64 || strings.Trim(want, "0123456789abcdef") != "") {
		return "", errs.New(errs.Invalid, "fingerprint is %q, want a SHA-256: 64 hexadecimal digits", req.Fingerprint)
	}
	if req.NoTest {
		if want == "" {
			return "", errs.New(errs.Invalid, "without a test there is no certificate to pin").WithHint("say --fingerprint, as the BMC's own page shows it")
		}
		return want, nil
	}
	if want == "" && old.Host == c.Host && old.Port == c.Port {
		want = old.Fingerprint
	}
	cert, err := driver.ReadCertificate(ctx, c)
	if err != nil {
		return "", err
	}
	if want != "" && want != cert.Fingerprint {
		return "", errs.New(errs.Denied, "its certificate has the fingerprint %s, not %s; no password was sent", cert.Fingerprint, want).
			WithHint("if the BMC was given a new certificate: --fingerprint %s; if not, another device answers there", cert.Fingerprint)
	}
	return cert.Fingerprint, nil
}

// sameMachine refuses a controller of another machine.
func sameMachine(node, own, system string) error {
	if own == "" || system == "" || driver.SameUUID(own, system) {
		return nil
	}
	return errs.New(errs.Denied, "it belongs to another machine: its system has the UUID %s, node %s has %s", system, node, own).
		WithHint("look for the BMC whose system has that UUID; a BMC on the wrong node would switch off the wrong machine")
}

// Remove forgets a node's controller.
func (s *Service) Remove(ctx context.Context, ref string) error {
	n, r, err := s.settings(ctx, ref)
	if err != nil {
		return err
	}
	key := settingsPrefix + n.ID.String()
	tx := store.NewTx().If(key, r.Revision).Delete(key).Delete(reportPrefix + n.ID.String())
	s.secrets.TxDelete(tx, secretOf(n.ID))
	_, err = s.env.Store.Commit(ctx, tx)
	return err
}

// Shown is what the API says of a controller.
type Shown struct {
	Node string `json:"node"`
	Settings
	NodeUUID string  `json:"node_uuid,omitempty" doc:"what the node reads from its firmware"`
	Report   *Report `json:"report,omitempty" doc:"what was found after the node was lost"`
}

func (s *Service) shown(ctx context.Context, n *model.Node, v Settings) (*Shown, error) {
	own, err := s.machineUUID(ctx, n.ID)
	if err != nil {
		return nil, err
	}
	r, err := store.GetRecord[Report](ctx, s.env.Store.Relaxed(), reportPrefix+n.ID.String())
	if err != nil {
		return nil, err
	}
	out := &Shown{Node: n.Name, Settings: v, NodeUUID: own}
	if r.Revision > 0 {
		out.Report = &r.Value
	}
	return out, nil
}

// Test is what a controller says of itself now.
type Test struct {
	driver.Info
	Network *driver.Network `json:"network,omitempty"` // nil: it does not say
	Match   string          `json:"match" doc:"whether its system is the node"`
}

func (s *Service) test(ctx context.Context, ref string) (*Test, error) {
	n, _, c, err := s.controller(ctx, ref)
	if err != nil {
		return nil, err
	}
	info, err := c.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("test BMC of node %s: %w", n.Name, err)
	}
	own, err := s.machineUUID(ctx, n.ID)
	if err != nil {
		return nil, err
	}
	if err := sameMachine(n.Name, own, info.UUID); err != nil {
		return nil, fmt.Errorf("test BMC of node %s: %w", n.Name, err)
	}
	t := &Test{Info: *info, Match: "its system is this node"}
	if own == "" || info.UUID == "" {
		t.Match = "not known: the node or the BMC shows no UUID"
	}
	if net, err := c.Network(ctx); err == nil {
		t.Network = &net
	}
	return t, nil
}

// power carries out one order, and notes what is known after it.
func (s *Service) power(ctx context.Context, ref string, a driver.PowerAction) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	n, v, c, err := s.controller(ctx, ref)
	if err != nil {
		return "", err
	}
	info, err := c.Info(ctx)
	if err != nil {
		return "", fmt.Errorf("power %s node %s: %w", a, n.Name, err)
	}
	own, err := s.machineUUID(ctx, n.ID)
	if err != nil {
		return "", err
	}
	if own == "" {
		own = v.UUID
	}
	if err := sameMachine(n.Name, own, info.UUID); err != nil {
		return "", fmt.Errorf("power %s node %s: %w", a, n.Name, err)
	}
	key := reportPrefix + n.ID.String()
	if a == driver.PowerOn || a == driver.PowerCycle {
		// First: who reads "known off" must not find it when the machine runs again.
		if _, err := s.env.Store.Commit(ctx, store.NewTx().Delete(key)); err != nil {
			return "", fmt.Errorf("power %s node %s: %w", a, n.Name, err)
		}
	}
	if err := c.Power(ctx, a); err != nil {
		return "", fmt.Errorf("node %s: %w", n.Name, err)
	}
	s.env.Events.Emit(event.Warn, "node "+n.Name, "power "+string(a)+" by its BMC, as ordered")
	if a != driver.PowerOff && a != driver.PowerSoft {
		return "node " + n.Name + " has power", nil
	}
	r := Report{Looked: s.env.Clock.Wall().UTC(), Power: driver.IsOff}
	if driver.SameUUID(own, info.UUID) {
		r.Off = &KnownOff{Since: r.Looked, UUID: info.UUID}
	}
	// The node may have led etcd, which elects another now.
	err = svc.WaitFor(ctx, pollNote, func(ctx context.Context) (bool, error) {
		_, err := s.env.Store.Commit(ctx, store.NewTx().Put(key, r))
		if err != nil && !errors.Is(err, errs.Unavailable) {
			return false, err
		}
		return err == nil, nil
	})
	if err != nil {
		s.env.Log.Warn("note that a node is off", "off", n.Name, "err", err) // it is off all the same
	}
	return "node " + n.Name + " is off, read back from its BMC", nil
}

// Run says what this machine's firmware shows and, where etcd's leader is, looks
// at lost nodes, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	return s.env.Loop(ctx, "bmc", roundEvery, nil, func(ctx context.Context) error {
		if err := s.publish(ctx); err != nil {
			return err
		}
		if !s.leading() {
			return nil
		}
		reports, err := store.ListRecords[Report](ctx, s.env.Store, reportPrefix)
		if err != nil {
			return err
		}
		s.round(ctx, &wg, reports)
		return nil
	})
}

func (s *Service) publish(ctx context.Context) error {
	data, err := os.ReadFile(s.uuidFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read this machine's UUID: %w", err)
	}
	key, want := machinePrefix+s.env.Node.String(), Machine{UUID: strings.ToLower(strings.TrimSpace(string(data)))}
	r, err := store.GetRecord[Machine](ctx, s.env.Store, key)
	if err != nil || r.Revision > 0 && r.Value == want {
		return err
	}
	_, err = s.env.Store.Commit(ctx, store.NewTx().If(key, r.Revision).Put(key, want))
	return err
}

// round starts a look at each lost node whose turn it is, in goroutines of their
// own: one that hangs holds up none.
func (s *Service) round(ctx context.Context, wg *sync.WaitGroup, reports map[string]store.Record[Report]) {
	now := s.env.Clock.Now()
	for _, n := range s.nodes() {
		if s.sessions.Alive(n.ID) {
			s.returned(ctx, n, reports[reportPrefix+n.ID.String()])
			continue
		}
		lost := s.sessions.LostAt(n.ID)
		if lost == 0 || now.Sub(lost) < lostFor {
			continue
		}
		s.mu.Lock()
		l := s.looked[n.ID]
		due := !l.busy && s.env.Clock.Wall().Sub(l.at) >= lookEvery
		if due {
			l.busy, l.at = true, s.env.Clock.Wall()
			s.looked[n.ID] = l
		}
		s.mu.Unlock()
		if due {
			wg.Go(func() { s.look(ctx, n) })
		}
	}
}

// returned forgets what was found of a node that is back.
func (s *Service) returned(ctx context.Context, n *model.Node, r store.Record[Report]) {
	s.mu.Lock()
	_, looked := s.looked[n.ID]
	delete(s.looked, n.ID)
	s.mu.Unlock()
	key := reportPrefix + n.ID.String()
	if r.Revision == 0 || !looked && r.Value.Off != nil && s.env.Clock.Wall().Sub(r.Value.Off.Since) < lostFor {
		return // its session ends a moment after its power
	}
	if _, err := s.env.Store.Commit(ctx, store.NewTx().If(key, r.Revision).Delete(key)); err != nil {
		s.env.Log.Debug("forget what a BMC said", "node", n.Name, "err", err)
	}
}

// look asks the controller of a lost node, and says what it says if that is new.
func (s *Service) look(ctx context.Context, n *model.Node) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var power driver.PowerState
	_, _, c, err := s.controller(ctx, n.ID.String())
	if err == nil {
		var info *driver.Info
		if info, err = c.Info(ctx); err == nil {
			power = info.Power
		}
	}
	text, level := finding(n.Spec.Order, power, err)
	s.mu.Lock()
	l := s.looked[n.ID]
	said := l.text
	l.busy, l.text = false, text
	s.looked[n.ID] = l
	s.mu.Unlock()
	if text == "" || ctx.Err() != nil && err == nil {
		return
	}
	if said != text {
		s.env.Events.Emit(level, "node "+n.Name, text)
	}
	s.note(ctx, n, power, err)
}

// finding says what is worth telling of a lost node: of one that went off as
// asked only that it did not. "": nothing.
func finding(order *model.NodeOrder, power driver.PowerState, err error) (text, level string) {
	asked := order != nil && order.Phase != model.OrderDraining
	switch {
	case errors.Is(err, errs.NotFound), asked && power != driver.IsOn:
		return "", ""
	case err != nil:
		return "it is lost, and its BMC does not help: " + err.Error(), event.Warn
	case power == driver.IsOff:
		return "it is lost: its BMC says that the machine is off", event.Warn
	case power != driver.IsOn:
		return "it is lost; its BMC does not know whether the machine is on", event.Warn
	case asked:
		return "it left as asked, yet its BMC says that the machine is on", event.Warn
	default:
		return "it is lost, yet its BMC says that the machine is on: it hangs, or is cut off", event.Error
	}
}

func (s *Service) note(ctx context.Context, n *model.Node, power driver.PowerState, found error) {
	key := reportPrefix + n.ID.String()
	r, err := store.GetRecord[Report](ctx, s.env.Store, key)
	if err != nil {
		return // looked at again in a minute
	}
	v := Report{Looked: s.env.Clock.Wall().UTC(), Power: power, Off: r.Value.Off}
	if found != nil {
		v.Error = found.Error()
	}
	if power == driver.IsOn {
		v.Off = nil
	}
	if _, err := s.env.Store.Commit(ctx, store.NewTx().If(key, r.Revision).Put(key, v)); err != nil {
		s.env.Log.Debug("note what a BMC said", "node", n.Name, "err", err)
	}
}
