package bmc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"roseau/internal/base/errs"
)

const (
	redfishRoot   = "/redfish/v1"
	maxAnswer     = 1 << 20
	maxCollection = 64 // members that are looked at
)

// Certificate is what a Redfish service shows.
type Certificate struct {
	Fingerprint string // SHA-256, hexadecimal
	Subject     string
}

// ReadCertificate connects to a Redfish service, sends nothing and returns the
// certificate that it shows.
func ReadCertificate(ctx context.Context, c Config) (Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}} // it is what is asked for
	conn, err := d.DialContext(ctx, "tcp", c.Address())
	if err != nil {
		return Certificate{}, errs.New(errs.Unavailable, "reach BMC %s: %w", c.Address(), err).WithHint("is the address right, and the BMC connected to a network that the nodes reach?")
	}
	defer conn.Close()
	leaf := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	sum := sha256.Sum256(leaf.Raw)
	return Certificate{hex.EncodeToString(sum[:]), leaf.Subject.String()}, nil
}

// redfish is a Controller.
type redfish struct {
	c      Config
	client *http.Client
}

func newRedfish(c Config) *redfish {
	pin := &tls.Config{
		MinVersion: tls.VersionTLS12,
		// Nobody signs a BMC's certificate: it is the pinned one, or it is refused.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			sum := sha256.Sum256(s.PeerCertificates[0].Raw)
			if got := hex.EncodeToString(sum[:]); !strings.EqualFold(got, c.Fingerprint) {
				return errs.New(errs.Denied, "its certificate has the fingerprint %s, not %s as when it was set; no password was sent", got, c.Fingerprint).
					WithHint("if the BMC was given a new certificate, set it anew with --fingerprint %s; if not, another device answers there", got)
			}
			return nil
		},
	}
	d := &net.Dialer{Timeout: requestTimeout / 2}
	return &redfish{c: c, client: &http.Client{
		Timeout:       requestTimeout,
		Transport:     &http.Transport{TLSClientConfig: pin, DialContext: d.DialContext, TLSHandshakeTimeout: requestTimeout / 2, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// link is a reference to another resource.
type link struct {
	ID string `json:"@odata.id"`
}

type action struct {
	Target  string   `json:"target"`
	Allowed []string `json:"ResetType@Redfish.AllowableValues"`
}

type system struct {
	link
	Etag         string `json:"@odata.etag"`
	UUID         string
	PowerState   string
	Manufacturer string
	Model        string
	SerialNumber string
	IndicatorLED *string
	Located      *bool `json:"LocationIndicatorActive"`
	Boot         struct {
		Target  string `json:"BootSourceOverrideTarget"`
		Enabled string `json:"BootSourceOverrideEnabled"`
	}
	Actions struct {
		Reset action `json:"#ComputerSystem.Reset"`
	}
	Links struct {
		Chassis   []link
		ManagedBy []link
	}
}

type manager struct {
	FirmwareVersion    string
	VirtualMedia       link
	EthernetInterfaces link
}

type drive struct {
	link
	Etag       string `json:"@odata.etag"`
	Image      string
	Inserted   bool
	MediaTypes []string
	Actions    struct {
		Insert action `json:"#VirtualMedia.InsertMedia"`
		Eject  action `json:"#VirtualMedia.EjectMedia"`
	}
}

type ethernet struct {
	link
	Etag   string `json:"@odata.etag"`
	DHCPv4 struct {
		Enabled bool `json:"DHCPEnabled"`
	}
	IPv4Addresses []struct {
		Address, SubnetMask, Gateway, AddressOrigin string
	}
}

// do sends one request and decodes the answer into out (nil: dropped).
func (r *redfish) do(ctx context.Context, method, path, etag string, in, out any) error {
	if !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") {
		return errs.New(errs.Unavailable, "it refers to %q, which is not a path of its own", path)
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+r.c.Address()+path, body)
	if err != nil {
		return errs.New(errs.Unavailable, "it refers to %q, which is not a path", path)
	}
	req.SetBasicAuth(r.c.User, string(r.c.Password))
	req.Header.Set("Accept", "application/json")
	req.Header.Set("OData-Version", "4.0")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if etag != "" {
		req.Header.Set("If-Match", etag)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		if k := errs.Kind(err); k != nil {
			return unwrapKind(err)
		}
		return errs.New(errs.Unavailable, "reach it at %s: %w", r.c.Address(), err).WithHint("the BMC is off, or not connected to a network that this node reaches; nothing else waits for it")
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return errs.New(errs.Unavailable, "%s %s: read answer: %w", method, path, err)
	}
	return decodeAnswer(method, path, resp.StatusCode, data, out)
}

// unwrapKind takes the error with a kind out of what net/http puts around it.
func unwrapKind(err error) error {
	var e *errs.Error
	if errors.As(err, &e) {
		return e
	}
	return err
}

// decodeAnswer makes an object or an error of an answer.
func decodeAnswer(method, path string, status int, data []byte, out any) error {
	switch {
	case status == http.StatusUnauthorized:
		return errs.New(errs.Denied, "wrong user or password").WithHint("set them anew: `roseau node bmc set`")
	case status == http.StatusForbidden:
		return errs.New(errs.Denied, "the user may not do that (%s %s)", method, path).WithHint("it needs the rights of an operator on the BMC")
	case status == http.StatusNotFound:
		return errs.New(errs.Unavailable, "it has no %s", path).WithHint("is there a Redfish service? else use ipmi://")
	case status >= 300:
		return errs.New(errs.Unavailable, "%s %s: it answers %d%s", method, path, status, redfishMessage(data))
	}
	if out == nil || len(data) == 0 {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return errs.New(errs.Unavailable, "%s %s: decode answer: %w", method, path, err)
	}
	return nil
}

// redfishMessage is what a service says of an error, ": text" or "".
func redfishMessage(data []byte) string {
	var e struct {
		Error struct {
			Message string
			Info    []struct{ Message string } `json:"@Message.ExtendedInfo"`
		}
	}
	if json.Unmarshal(data, &e) != nil {
		return ""
	}
	text := e.Error.Message
	if len(e.Error.Info) > 0 && e.Error.Info[0].Message != "" {
		text = e.Error.Info[0].Message
	}
	if text = strings.Join(strings.Fields(text), " "); text == "" {
		return ""
	}
	return fmt.Sprintf(": %.200s", text)
}

// members reads the links of a collection.
func (r *redfish) members(ctx context.Context, path string) ([]link, error) {
	var c struct{ Members []link }
	if err := r.do(ctx, http.MethodGet, path, "", nil, &c); err != nil {
		return nil, err
	}
	if len(c.Members) > maxCollection {
		c.Members = c.Members[:maxCollection]
	}
	return c.Members, nil
}

// system finds the one system, or the one with the UUID that is looked for.
func (r *redfish) system(ctx context.Context) (*system, error) {
	var root struct{ Systems link }
	if err := r.do(ctx, http.MethodGet, redfishRoot, "", nil, &root); err != nil {
		return nil, err
	}
	if root.Systems.ID == "" {
		root.Systems.ID = redfishRoot + "/Systems"
	}
	list, err := r.members(ctx, root.Systems.ID)
	if err != nil {
		return nil, err
	}
	var uuids []string
	for _, l := range list {
		s := new(system)
		if err := r.do(ctx, http.MethodGet, l.ID, "", nil, s); err != nil {
			return nil, err
		}
		if s.ID == "" {
			s.ID = l.ID
		}
		if len(list) == 1 || r.c.UUID != "" && SameUUID(s.UUID, r.c.UUID) {
			return s, nil
		}
		uuids = append(uuids, s.UUID)
	}
	if len(list) == 0 {
		return nil, errs.New(errs.Unavailable, "it manages no system")
	}
	return nil, errs.New(errs.Conflict, "it manages %d systems, none of them known as the node's (UUIDs %s)", len(list), strings.Join(uuids, ", ")).
		WithHint("set it while the node is up, so that its UUID is known")
}

func (r *redfish) fail(verb string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s BMC %s: %w", verb, r.c.Host, err)
}

func powerState(s string) PowerState {
	switch s {
	case "On":
		return IsOn
	case "Off":
		return IsOff
	}
	return PowerUnknown
}

// Info implements Controller.
func (r *redfish) Info(ctx context.Context) (*Info, error) {
	s, err := r.system(ctx)
	if err != nil {
		return nil, r.fail("ask", err)
	}
	i := &Info{Power: powerState(s.PowerState), UUID: plainUUID(s.UUID), Manufacturer: s.Manufacturer, Model: s.Model, Serial: s.SerialNumber}
	i.Identify = s.Located != nil && *s.Located || s.Located == nil && s.IndicatorLED != nil && *s.IndicatorLED != "Off"
	if s.Boot.Enabled == "Once" || s.Boot.Enabled == "Continuous" {
		i.Boot = strings.ToLower(s.Boot.Target) + map[string]string{"Once": " once", "Continuous": " always"}[s.Boot.Enabled]
	}
	m, err := r.manager(ctx, s)
	if err != nil {
		return nil, r.fail("ask", err)
	}
	i.Firmware = m.FirmwareVersion
	if d, err := r.drive(ctx, m); err == nil && d.Inserted {
		i.Media = d.Image
	}
	return i, nil
}

func (r *redfish) manager(ctx context.Context, s *system) (*manager, error) {
	if len(s.Links.ManagedBy) == 0 {
		return nil, errs.New(errs.Unavailable, "its system names no manager")
	}
	m := new(manager)
	return m, r.do(ctx, http.MethodGet, s.Links.ManagedBy[0].ID, "", nil, m)
}

// Power implements Controller.
func (r *redfish) Power(ctx context.Context, a PowerAction) error {
	state := func(ctx context.Context) (PowerState, error) {
		s, err := r.system(ctx)
		if err != nil {
			return PowerUnknown, err
		}
		return powerState(s.PowerState), nil
	}
	return powerOf(ctx, r.c.Host, a, state, func(ctx context.Context, a PowerAction) error {
		s, err := r.system(ctx)
		if err != nil {
			return err
		}
		if s.Actions.Reset.Target == "" {
			return errs.New(errs.Unavailable, "its system has no power button")
		}
		typ := resetType(a, s.Actions.Reset.Allowed)
		if typ == "" {
			return errs.New(errs.Unavailable, "it cannot do that (it knows %s)", strings.Join(s.Actions.Reset.Allowed, ", "))
		}
		return r.do(ctx, http.MethodPost, s.Actions.Reset.Target, "", map[string]string{"ResetType": typ}, nil)
	})
}

// resetType picks the first word of the action's that the service allows; a
// service that lists none is sent the usual one.
func resetType(a PowerAction, allowed []string) string {
	words := map[PowerAction][]string{
		PowerOn: {"On", "ForceOn"}, PowerOff: {"ForceOff"}, PowerSoft: {"GracefulShutdown", "PushPowerButton"},
		PowerCycle: {"ForceRestart", "PowerCycle"},
	}[a]
	for _, w := range words {
		if len(allowed) == 0 {
			return w
		}
		for _, have := range allowed {
			if have == w {
				return w
			}
		}
	}
	return ""
}

// Boot implements Controller.
func (r *redfish) Boot(ctx context.Context, d BootDevice, always bool) error {
	target, ok := map[BootDevice]string{BootNone: "None", BootDisk: "Hdd", BootPXE: "Pxe", BootCD: "Cd", BootSetup: "BiosSetup"}[d]
	if !ok {
		return errs.New(errs.Invalid, "set boot device of BMC %s: %q: want none, disk, pxe, cd or setup", r.c.Host, d)
	}
	s, err := r.system(ctx)
	if err != nil {
		return r.fail("set boot device of", err)
	}
	enabled := "Once"
	if always {
		enabled = "Continuous"
	}
	if d == BootNone {
		enabled = "Disabled"
	}
	boot := map[string]any{"Boot": map[string]string{"BootSourceOverrideTarget": target, "BootSourceOverrideEnabled": enabled}}
	return r.fail("set boot device of", r.do(ctx, http.MethodPatch, s.ID, s.Etag, boot, nil))
}

// drive finds the virtual drive that takes CD images.
func (r *redfish) drive(ctx context.Context, m *manager) (*drive, error) {
	if m.VirtualMedia.ID == "" {
		return nil, errs.New(errs.Unavailable, "it has no virtual media").WithHint("some makers want a licence for it")
	}
	list, err := r.members(ctx, m.VirtualMedia.ID)
	if err != nil {
		return nil, err
	}
	for _, l := range list {
		d := new(drive)
		if err := r.do(ctx, http.MethodGet, l.ID, "", nil, d); err != nil {
			return nil, err
		}
		for _, t := range d.MediaTypes {
			if t == "CD" || t == "DVD" {
				if d.ID == "" {
					d.ID = l.ID
				}
				return d, nil
			}
		}
	}
	return nil, errs.New(errs.Unavailable, "it has no virtual drive for CD images")
}

// Media implements Controller.
func (r *redfish) Media(ctx context.Context, image string) error {
	return r.fail("change virtual media of", r.media(ctx, image))
}

func (r *redfish) media(ctx context.Context, image string) error {
	s, err := r.system(ctx)
	if err != nil {
		return err
	}
	m, err := r.manager(ctx, s)
	if err != nil {
		return err
	}
	d, err := r.drive(ctx, m)
	if err != nil {
		return err
	}
	if d.Inserted {
		if err := r.eject(ctx, d); err != nil {
			return err
		}
	}
	if image == "" {
		return nil
	}
	if d.Actions.Insert.Target != "" {
		return r.do(ctx, http.MethodPost, d.Actions.Insert.Target, "", map[string]any{"Image": image, "Inserted": true, "WriteProtected": true}, nil)
	}
	return r.do(ctx, http.MethodPatch, d.ID, d.Etag, map[string]any{"Image": image, "Inserted": true}, nil)
}

func (r *redfish) eject(ctx context.Context, d *drive) error {
	if d.Actions.Eject.Target != "" {
		return r.do(ctx, http.MethodPost, d.Actions.Eject.Target, "", map[string]any{}, nil)
	}
	return r.do(ctx, http.MethodPatch, d.ID, d.Etag, map[string]any{"Image": nil, "Inserted": false}, nil)
}

// Identify implements Controller.
func (r *redfish) Identify(ctx context.Context, on bool) error {
	s, err := r.system(ctx)
	if err == nil {
		var change map[string]any
		switch {
		case s.Located != nil:
			change = map[string]any{"LocationIndicatorActive": on}
		case s.IndicatorLED != nil && on:
			change = map[string]any{"IndicatorLED": "Blinking"}
		case s.IndicatorLED != nil:
			change = map[string]any{"IndicatorLED": "Off"}
		default:
			err = errs.New(errs.Unavailable, "its system has no LED")
		}
		if err == nil {
			err = r.do(ctx, http.MethodPatch, s.ID, s.Etag, change, nil)
		}
	}
	return r.fail("switch the LED of", err)
}

func (r *redfish) ethernet(ctx context.Context) (*ethernet, error) {
	s, err := r.system(ctx)
	if err != nil {
		return nil, err
	}
	m, err := r.manager(ctx, s)
	if err != nil {
		return nil, err
	}
	if m.EthernetInterfaces.ID == "" {
		return nil, errs.New(errs.Unavailable, "it does not show its network")
	}
	list, err := r.members(ctx, m.EthernetInterfaces.ID)
	if err != nil {
		return nil, err
	}
	// The interface by which it was reached, if it says so; else the first with an address.
	var first *ethernet
	for _, l := range list {
		e := new(ethernet)
		if err := r.do(ctx, http.MethodGet, l.ID, "", nil, e); err != nil {
			return nil, err
		}
		if e.ID == "" {
			e.ID = l.ID
		}
		for _, a := range e.IPv4Addresses {
			if a.Address == r.c.Host {
				return e, nil
			}
			if first == nil && a.Address != "" {
				first = e
			}
		}
	}
	if first == nil {
		return nil, errs.New(errs.Unavailable, "none of its interfaces has an IPv4 address")
	}
	return first, nil
}

// Network implements Controller.
func (r *redfish) Network(ctx context.Context) (Network, error) {
	e, err := r.ethernet(ctx)
	if err != nil {
		return Network{}, r.fail("read the address of", err)
	}
	n := Network{DHCP: e.DHCPv4.Enabled}
	for _, a := range e.IPv4Addresses {
		if n.Address == "" || a.Address == r.c.Host {
			n.Address, n.Netmask, n.Gateway = a.Address, a.SubnetMask, a.Gateway
		}
	}
	return n, nil
}

// SetNetwork implements Controller.
func (r *redfish) SetNetwork(ctx context.Context, n Network) error {
	if err := n.Check(); err != nil {
		return err
	}
	e, err := r.ethernet(ctx)
	if err != nil {
		return r.fail("set the address of", err)
	}
	change := map[string]any{"DHCPv4": map[string]bool{"DHCPEnabled": n.DHCP}}
	if !n.DHCP {
		a := map[string]string{"Address": n.Address, "SubnetMask": n.Netmask}
		if n.Gateway != "" {
			a["Gateway"] = n.Gateway
		}
		change["IPv4StaticAddresses"] = []any{a}
	}
	return r.fail("set the address of", r.do(ctx, http.MethodPatch, e.ID, e.Etag, change, nil))
}

// Console implements Controller.
func (r *redfish) Console(context.Context) (io.ReadWriteCloser, error) {
	return nil, r.fail("open the console of", errs.New(errs.Unavailable, "Redfish carries no serial console").
		WithHint("most BMCs offer it by IPMI: switch that on there and set the address as ipmi://%s; or by SSH", r.c.Host))
}
