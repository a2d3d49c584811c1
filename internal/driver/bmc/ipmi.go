package bmc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"roseau/internal/base/errs"
)

// ipmitool is the program of Debian's package of that name.
const ipmitool = "ipmitool"

// maxPassword is what IPMI 2.0 keeps of a password.
const maxPassword = 20

// lanChannel is the channel of the controller's own network port.
const lanChannel = "1"

// ciphers are the suites that are tried, the better one first (SHA-256; SHA-1,
// which every IPMI 2.0 controller has). To ask which it has is not possible
// everywhere.
var ciphers = []string{"17", "3"}

// ipmi is a Controller.
type ipmi struct {
	c Config

	mu     sync.Mutex // protects cipher
	cipher int        // index of the suite that worked, or is to be tried first
}

func newIPMI(c Config) (*ipmi, error) {
	switch {
	case len(c.Password) > maxPassword:
		return nil, errs.New(errs.Invalid, "open BMC %s: the password has %d bytes, IPMI takes %d", c.Host, len(c.Password), maxPassword)
	case bytes.ContainsAny(c.Password, "\x00\n"):
		return nil, errs.New(errs.Invalid, "open BMC %s: the password has a line end or a zero byte", c.Host)
	case len(c.User) > 16 || strings.HasPrefix(c.User, "-") || strings.ContainsAny(c.User, "\x00\n"):
		return nil, errs.New(errs.Invalid, "open BMC %s: user is %q, want 1 to 16 characters, the first no dash", c.Host, c.User)
	}
	return &ipmi{c: c}, nil
}

// command is ipmitool with the password in its environment, which only root and
// the user of the process can read.
func (m *ipmi) command(ctx context.Context, args ...string) *exec.Cmd {
	_, port, _ := net.SplitHostPort(m.c.Address())
	m.mu.Lock()
	suite := ciphers[m.cipher]
	m.mu.Unlock()
	argv := append([]string{"-I", "lanplus", "-C", suite, "-H", m.c.Host, "-p", port, "-U", m.c.User, "-E", "-N", "1", "-R", "2"}, args...)
	cmd := exec.CommandContext(ctx, ipmitool, argv...)
	cmd.Env = []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/nonexistent", "LC_ALL=C", "IPMI_PASSWORD=" + string(m.c.Password)}
	cmd.WaitDelay = time.Second
	return cmd
}

// run returns what one command of ipmitool prints.
func (m *ipmi) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for {
		out, text, err := m.once(ctx, args)
		if err == nil {
			return out, nil
		}
		if errors.Is(err, exec.ErrNotFound) {
			return "", errs.New(errs.Unavailable, "run ipmitool: it is not on this node").WithHint("install the package ipmitool on the nodes")
		}
		// ipmitool says the same of a wrong password and of a host that is not there.
		if !m.answers(ctx) {
			return "", errs.New(errs.Unavailable, "reach it at %s: no answer", m.c.Address()).WithHint("the BMC is off, not connected to a network that this node reaches, or IPMI over LAN is switched off; nothing else waits for it")
		}
		if !sessionRefused(text) {
			return "", errs.New(errs.Unavailable, "%s: %.200s", strings.Join(args, " "), text)
		}
		if !m.nextCipher() {
			return "", errs.New(errs.Denied, "wrong user or password, or it takes neither cipher suite 17 nor 3").WithHint("set them anew: `roseau node bmc set`")
		}
	}
}

// nextCipher goes on to the next suite; false: there is none.
func (m *ipmi) nextCipher() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cipher+1 == len(ciphers) {
		return false
	}
	m.cipher++
	return true
}

// once runs ipmitool: what it printed, and what it said of a failure.
func (m *ipmi) once(ctx context.Context, args []string) (out, text string, err error) {
	cmd := m.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &limited{b: &stdout}, &limited{b: &stderr}
	err = cmd.Run()
	return stdout.String(), strings.Join(strings.Fields(stderr.String()), " "), err
}

// sessionRefused reports whether no session came about, in ipmitool's words.
func sessionRefused(text string) bool {
	return strings.Contains(text, "Unable to establish IPMI v2") || strings.Contains(text, "Activate Session")
}

// answers asks for the channel's authentication capabilities, which needs no
// session: somebody speaks IPMI there.
func (m *ipmi) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", m.c.Address())
	if err != nil {
		return false
	}
	defer conn.Close()
	// RMCP, class IPMI; no authentication, no session; 9 bytes: to 0x20, netfn App,
	// from 0x81, command 0x38, channel "this one", privilege administrator.
	ask := []byte{6, 0, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0x20, 0x18, 0xc8, 0x81, 0, 0x38, 0x8e, 4, 0xb5}
	buf := make([]byte, 256)
	for range 2 {
		if _, err := conn.Write(ask); err != nil {
			return false
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := conn.Read(buf); err == nil && n > 4 && buf[0] == 6 && buf[3]&0x0f == 7 {
			return true
		}
	}
	return false
}

// limited keeps the first bytes of an output.
type limited struct{ b *bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := maxAnswer - l.b.Len(); room > 0 {
		l.b.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

func (m *ipmi) fail(verb string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s BMC %s: %w", verb, m.c.Host, err)
}

func (m *ipmi) order(ctx context.Context, verb string, args ...string) error {
	_, err := m.run(ctx, args...)
	return m.fail(verb, err)
}

// pairs reads lines of "name : value"; the first of equal names counts.
func pairs(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		k, v, ok := strings.Cut(line, ":")
		if k = strings.TrimSpace(k); ok && k != "" {
			if _, twice := out[k]; !twice {
				out[k] = strings.TrimSpace(v)
			}
		}
	}
	return out
}

func (m *ipmi) state(ctx context.Context) (PowerState, error) {
	out, err := m.run(ctx, "chassis", "status")
	if err != nil {
		return PowerUnknown, err
	}
	return parsePower(out), nil
}

func parsePower(out string) PowerState {
	switch pairs(out)["System Power"] {
	case "on":
		return IsOn
	case "off":
		return IsOff
	}
	return PowerUnknown
}

// Info implements Controller.
func (m *ipmi) Info(ctx context.Context) (*Info, error) {
	power, err := m.state(ctx)
	if err != nil {
		return nil, m.fail("ask", err)
	}
	i := &Info{Power: power}
	out, err := m.run(ctx, "mc", "info")
	if err != nil {
		return nil, m.fail("ask", err)
	}
	p := pairs(out)
	i.Firmware, i.Manufacturer, i.Model = p["Firmware Revision"], p["Manufacturer Name"], p["Product Name"]
	if out, err = m.run(ctx, "mc", "guid"); err == nil { // not every controller has one
		i.UUID = plainUUID(pairs(out)["System GUID"])
	}
	return i, nil
}

// Power implements Controller.
func (m *ipmi) Power(ctx context.Context, a PowerAction) error {
	return powerOf(ctx, m.c.Host, a, m.state, func(ctx context.Context, a PowerAction) error {
		word := map[PowerAction]string{PowerOn: "on", PowerOff: "off", PowerSoft: "soft", PowerCycle: "cycle"}[a]
		_, err := m.run(ctx, "chassis", "power", word)
		return err
	})
}

// Boot implements Controller.
func (m *ipmi) Boot(ctx context.Context, d BootDevice, always bool) error {
	dev, ok := map[BootDevice]string{BootNone: "none", BootDisk: "disk", BootPXE: "pxe", BootCD: "cdrom", BootSetup: "bios"}[d]
	if !ok {
		return errs.New(errs.Invalid, "set boot device of BMC %s: %q: want none, disk, pxe, cd or setup", m.c.Host, d)
	}
	args := []string{"chassis", "bootdev", dev}
	if always && d != BootNone {
		args = append(args, "options=persistent")
	}
	return m.order(ctx, "set boot device of", args...)
}

// Media implements Controller.
func (m *ipmi) Media(context.Context, string) error {
	return m.fail("change virtual media of", errs.New(errs.Unavailable, "IPMI has no virtual media").WithHint("set its address as https://%s if it has Redfish, or boot from the network: `roseau node bmc boot NODE pxe`", m.c.Host))
}

// Sensors implements Controller.
func (m *ipmi) Sensors(ctx context.Context) ([]Sensor, error) {
	out, err := m.run(ctx, "-c", "sdr", "list", "full")
	if err != nil {
		return nil, m.fail("read the sensors of", err)
	}
	return parseSensors(out), nil
}

// parseSensors reads "name,value,unit,status" lines; without a value: "name,,,ns"
// or "name,disabled,ns".
func parseSensors(out string) (list []Sensor) {
	units := map[string]string{"degrees C": "C", "Volts": "V", "Watts": "W", "Amps": "A", "percent": "%"}
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), ",")
		if len(f) < 3 || f[0] == "" {
			continue
		}
		s := Sensor{Name: f[0], NoValue: true, Health: f[len(f)-1]}
		if v, err := strconv.ParseFloat(f[1], 64); err == nil && len(f) >= 4 {
			s.Value, s.NoValue, s.Unit = v, false, f[2]
			if u := units[f[2]]; u != "" {
				s.Unit = u
			}
		}
		switch s.Health {
		case "ok":
			s.Health = "OK"
		case "nc":
			s.Health = "Warning"
		case "cr", "nr":
			s.Health = "Critical"
		default:
			s.Health = ""
		}
		list = append(list, s)
	}
	return list
}

// Identify implements Controller.
func (m *ipmi) Identify(ctx context.Context, on bool) error {
	if on {
		return m.order(ctx, "switch the LED of", "chassis", "identify", "force")
	}
	return m.order(ctx, "switch the LED of", "chassis", "identify", "0")
}

// Network implements Controller.
func (m *ipmi) Network(ctx context.Context) (Network, error) {
	out, err := m.run(ctx, "lan", "print", lanChannel)
	if err != nil {
		return Network{}, m.fail("read the address of", err)
	}
	return parseLAN(out), nil
}

func parseLAN(out string) Network {
	p := pairs(out)
	n := Network{DHCP: strings.HasPrefix(p["IP Address Source"], "DHCP"), Address: p["IP Address"], Netmask: p["Subnet Mask"], Gateway: p["Default Gateway IP"]}
	if n.Gateway == "0.0.0.0" {
		n.Gateway = ""
	}
	return n
}

// SetNetwork implements Controller. The address goes last: it may end the way
// by which the orders come.
func (m *ipmi) SetNetwork(ctx context.Context, n Network) error {
	if err := n.Check(); err != nil {
		return err
	}
	orders := [][]string{{"ipsrc", "dhcp"}}
	if !n.DHCP {
		orders = [][]string{{"ipsrc", "static"}, {"netmask", n.Netmask}}
		if n.Gateway != "" {
			orders = append(orders, []string{"defgw", "ipaddr", n.Gateway})
		}
		orders = append(orders, []string{"ipaddr", n.Address})
	}
	for _, o := range orders {
		if err := m.order(ctx, "set the address of", append([]string{"lan", "set", lanChannel}, o...)...); err != nil {
			return err
		}
	}
	return nil
}

// Console implements Controller: serial over LAN, by an ipmitool of its own that
// gets a terminal, for it reads one.
func (m *ipmi) Console(ctx context.Context) (io.ReadWriteCloser, error) {
	if _, err := m.state(ctx); err != nil { // says plainly what ipmitool would garble
		return nil, m.fail("open the console of", err)
	}
	near, far, err := openPTY()
	if err != nil {
		return nil, m.fail("open the console of", err)
	}
	defer far.Close()
	end, cancel := context.WithCancel(context.WithoutCancel(ctx))
	// The escape character of ipmitool (~ by default) is set to one that no terminal sends.
	cmd := m.command(end, "-e", "\x1f", "sol", "activate")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = far, far, far
	if err := cmd.Start(); err != nil {
		cancel()
		near.Close()
		return nil, m.fail("open the console of", err)
	}
	c := &console{File: near, cancel: cancel, done: make(chan struct{})}
	go func() { // ends with the process, which Close ends
		cmd.Wait()
		near.Close()
		close(c.done)
	}()
	return c, nil
}

// console is the near end of a terminal with ipmitool at the far one.
type console struct {
	*os.File
	cancel context.CancelFunc
	done   chan struct{}
}

// Close ends the session and waits for its process.
func (c *console) Close() error {
	c.cancel()
	<-c.done
	return nil
}
