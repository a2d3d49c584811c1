// Package bmc talks to the management controllers of servers, by Redfish or by
// IPMI. It decides nothing: docs/design/bmc.md says what a controller is used
// for, and that none is ever waited for in a failover.
//
// Errors: errs.Denied means that the controller is there and refuses (password,
// rights) or is not the one that it should be (certificate); errs.Unavailable
// that it does not answer, or has no such thing; errs.Invalid that the settings
// are wrong.
package bmc

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/secret"
)

// Protocol is how a controller is talked to.
type Protocol string

// The protocols.
const (
	Redfish Protocol = "redfish"
	IPMI    Protocol = "ipmi"
)

// requestTimeout bounds one request to a controller; orders take several.
const requestTimeout = 10 * time.Second

// pollEvery is how often a power state is read back.
const pollEvery = 500 * time.Millisecond

// Config is how a controller is reached.
type Config struct {
	Protocol Protocol
	Host     string // IP address or name
	Port     int    // 0: 443 for Redfish, 623 for IPMI
	User     string
	Password secret.Text
	// Fingerprint is the SHA-256 of the certificate that a Redfish service must
	// show, in hexadecimal digits. Empty is refused.
	Fingerprint string
	// UUID chooses among several systems of one Redfish service; empty: there must
	// be one.
	UUID string
}

// Address returns host and port.
func (c Config) Address() string {
	port := c.Port
	if port == 0 {
		port = map[Protocol]int{Redfish: 443, IPMI: 623}[c.Protocol]
	}
	return net.JoinHostPort(c.Host, strconv.Itoa(port))
}

// ParseAddress reads what a person writes for a controller: a host with or
// without port, or https://host[:port] for Redfish, ipmi://host[:port] for IPMI.
func ParseAddress(s string) (c Config, err error) {
	bad := func(why string) (Config, error) {
		return Config{}, errs.New(errs.Invalid, "parse address of a BMC %q: %s", s, why).WithHint("write for example 10.0.0.21, https://bmc1.example:8443 or ipmi://10.0.0.21")
	}
	raw := s
	if !strings.Contains(s, "://") {
		raw = "https://" + s
		if ip, err := netip.ParseAddr(s); err == nil && ip.Is6() {
			raw = "https://[" + s + "]"
		}
	}
	u, err := url.Parse(raw)
	if err != nil {
		return bad("not an address")
	}
	switch u.Scheme {
	case "https":
		c.Protocol = Redfish
	case "ipmi":
		c.Protocol = IPMI
	default:
		return bad("want https or ipmi, not " + u.Scheme)
	}
	if u.User != nil {
		return bad("user and password do not belong here")
	}
	if u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return bad("want a host and a port at most")
	}
	if c.Host = u.Hostname(); c.Host == "" || strings.HasPrefix(c.Host, "-") || strings.ContainsAny(c.Host, " \t\n\x00'\"") {
		return bad("no host")
	}
	if p := u.Port(); p != "" {
		if c.Port, err = strconv.Atoi(p); err != nil || c.Port < 1 || c.Port > 65535 {
			return bad("port " + p + ": want 1 to 65535")
		}
	}
	return c, nil
}

// PowerAction is an order to a power supply.
type PowerAction string

// The power actions.
const (
	PowerOn    PowerAction = "on"
	PowerOff   PowerAction = "off"      // at once
	PowerSoft  PowerAction = "shutdown" // the power button: the system shuts down by itself
	PowerCycle PowerAction = "cycle"    // off and on again, or a hard reset
)

// PowerState is what a controller reads.
type PowerState string

// The power states.
const (
	IsOn         PowerState = "on"
	IsOff        PowerState = "off"
	PowerUnknown PowerState = "unknown" // on its way, or the controller does not know
)

// Info is who a controller and its system are.
type Info struct {
	Power        PowerState `json:"power"`
	UUID         string     `json:"uuid,omitempty"` // of the system, lower case with dashes
	Manufacturer string     `json:"manufacturer,omitempty"`
	Model        string     `json:"model,omitempty"`
	Serial       string     `json:"serial,omitempty"`
	Firmware     string     `json:"firmware,omitempty"` // of the controller
	Identify     bool       `json:"identify"`           // the LED is lit
	Boot         string     `json:"boot,omitempty"`     // override in force: device, "once" or "always"
	Media        string     `json:"media,omitempty"`    // image in the virtual drive
}

// BootDevice is where a system starts from.
type BootDevice string

// The boot devices.
const (
	BootNone  BootDevice = "none" // as its firmware is set
	BootDisk  BootDevice = "disk"
	BootPXE   BootDevice = "pxe"
	BootCD    BootDevice = "cd"
	BootSetup BootDevice = "setup" // the firmware's menu
)

// Sensor is one reading.
type Sensor struct {
	Name    string  `json:"name"`
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"` // C, RPM, V, W, A, %
	Health  string  `json:"health,omitempty"`
	NoValue bool    `json:"no_value,omitempty"` // it is there and reads nothing
}

// Network is a controller's own address. DHCP: the rest is what it was given.
type Network struct {
	DHCP    bool   `json:"dhcp"`
	Address string `json:"address,omitempty"` // IPv4
	Netmask string `json:"netmask,omitempty"`
	Gateway string `json:"gateway,omitempty"` // empty: none
}

// Check refuses an address that a controller could not be reached by again.
func (n Network) Check() error {
	if n.DHCP {
		if n.Address != "" || n.Netmask != "" || n.Gateway != "" {
			return errs.New(errs.Invalid, "check BMC address: dhcp and an address exclude each other")
		}
		return nil
	}
	for _, f := range []struct {
		name, v string
		empty   bool
	}{{"address", n.Address, false}, {"netmask", n.Netmask, false}, {"gateway", n.Gateway, true}} {
		if f.v == "" && f.empty {
			continue
		}
		if ip, err := netip.ParseAddr(f.v); err != nil || !ip.Is4() {
			return errs.New(errs.Invalid, "check BMC address: %s is %q, want an IPv4 address", f.name, f.v)
		}
	}
	mask := net.IPMask(net.ParseIP(n.Netmask).To4())
	if ones, _ := mask.Size(); ones == 0 {
		return errs.New(errs.Invalid, "check BMC address: netmask is %q, want for example 255.255.255.0", n.Netmask)
	}
	if n.Gateway != "" && !net.ParseIP(n.Gateway).Mask(mask).Equal(net.ParseIP(n.Address).Mask(mask)) {
		return errs.New(errs.Invalid, "check BMC address: gateway %s is not in the network of %s", n.Gateway, n.Address)
	}
	return nil
}

// Controller is one management controller. Orders return when they are carried
// out as far as the controller reads it back, or at ctx's end.
type Controller interface {
	Info(ctx context.Context) (*Info, error)
	// Power switches. On a system that is that way already it does nothing; cycle
	// and shutdown of one that is off are a Conflict.
	Power(ctx context.Context, a PowerAction) error
	// Boot says where the system starts from, the next time or always.
	Boot(ctx context.Context, d BootDevice, always bool) error
	// Media puts the image at a URL into the virtual drive; "" takes it out.
	Media(ctx context.Context, image string) error
	Sensors(ctx context.Context) ([]Sensor, error)
	// Identify switches the LED by which a person finds the machine.
	Identify(ctx context.Context, on bool) error
	Network(ctx context.Context) (Network, error)
	// SetNetwork changes the controller's own address: it may be gone before it
	// has answered.
	SetNetwork(ctx context.Context, n Network) error
	// Console is the serial port of the system, until it is closed.
	Console(ctx context.Context) (io.ReadWriteCloser, error)
}

// Open returns the controller of c; nothing is sent yet.
func Open(c Config) (Controller, error) {
	if c.User == "" || len(c.Password) == 0 {
		return nil, errs.New(errs.Invalid, "open BMC %s: want a user and a password", c.Host)
	}
	switch c.Protocol {
	case Redfish:
		if c.Fingerprint == "" {
			return nil, errs.New(errs.Invalid, "open BMC %s: no fingerprint of its certificate", c.Host)
		}
		return newRedfish(c), nil
	case IPMI:
		return newIPMI(c)
	}
	return nil, errs.New(errs.Invalid, "open BMC %s: protocol is %q, want redfish or ipmi", c.Host, c.Protocol)
}

// powerOf carries out what both protocols do alike: nothing if it is so already,
// a refusal where there is nothing to shut down, and the reading back.
func powerOf(ctx context.Context, host string, a PowerAction, state func(context.Context) (PowerState, error), order func(context.Context, PowerAction) error) error {
	fail := func(err error) error { return fmt.Errorf("power %s by BMC %s: %w", a, host, err) }
	now, err := state(ctx)
	if err != nil {
		return fail(err)
	}
	want := IsOff
	switch a {
	case PowerOn, PowerCycle:
		want = IsOn
	case PowerOff, PowerSoft:
	default:
		return errs.New(errs.Invalid, "power %q by BMC %s: want on, off, shutdown or cycle", a, host)
	}
	if now == IsOff && (a == PowerCycle || a == PowerSoft) {
		return fail(errs.New(errs.Conflict, "the system is off").WithHint("switch it on: `roseau node power on`"))
	}
	if now == want && a != PowerCycle {
		return nil
	}
	if err := order(ctx, a); err != nil {
		return fail(err)
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		now, err = state(ctx)
		if err == nil && now == want {
			return nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("it still reads %s", now)
			}
			return fail(errs.New(errs.Unavailable, "the order was taken, but %w", err).WithHint("ask again: `roseau node power status`"))
		case <-tick.C:
		}
	}
}

// plainUUID is a UUID as both sides compare it; "" if it is none.
func plainUUID(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	if len(s) != 36 || strings.Trim(s, "0123456789abcdef-") != "" || strings.Trim(s, "0-") == "" || strings.Trim(s, "f-") == "" {
		return ""
	}
	return s
}

// SameUUID compares two UUIDs of one machine. Firmware of some makers swaps the
// bytes of the first three groups; those are the same. An absent one is not.
func SameUUID(a, b string) bool {
	a, b = plainUUID(a), plainUUID(b)
	if a == "" || b == "" {
		return false
	}
	return a == b || swapUUID(a) == b
}

func swapUUID(s string) string {
	f := strings.Split(s, "-")
	if len(f) != 5 || len(f[0]) != 8 || len(f[1]) != 4 || len(f[2]) != 4 {
		return s
	}
	for i := range 3 {
		r := ""
		for j := len(f[i]); j > 0; j -= 2 {
			r += f[i][j-2 : j]
		}
		f[i] = r
	}
	return strings.Join(f, "-")
}
