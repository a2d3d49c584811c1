package bmc_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/driver/bmc"
	"roseau/internal/lab/redfish"
	"roseau/internal/secret"
)

const (
	user     = "roseau"
	password = "correct-horse"
	uuid     = "4c4c4544-0042-4810-8056-b4c04f395931"
)

// machine is a power supply.
type machine struct {
	mu     sync.Mutex
	on     bool
	cycles int
}

func (m *machine) Powered() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.on }
func (m *machine) SetPower(_ context.Context, on bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.on && !on {
		m.cycles++
	}
	m.on = on
	return nil
}
func (m *machine) Shutdown(ctx context.Context) error { return m.SetPower(ctx, false) }

// serve starts a Redfish service and returns how to reach it.
func serve(t *testing.T, h http.Handler) bmc.Config {
	t.Helper()
	cert, err := redfish.NewCertificate("bmc1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	t.Cleanup(srv.Close)
	c, err := bmc.ParseAddress(strings.TrimSuffix(srv.URL, "/"))
	if err != nil {
		t.Fatal(err)
	}
	c.User, c.Password, c.Fingerprint = user, secret.Text(password), redfish.Fingerprint(cert)
	return c
}

func open(t *testing.T, c bmc.Config) bmc.Controller {
	t.Helper()
	ctl, err := bmc.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return ctl
}

// contract is what every controller does, whatever its protocol. powered reads
// the machine's own power supply.
func contract(t *testing.T, c bmc.Config, powered func() bool) {
	ctx, ctl := t.Context(), open(t, c)
	state := func(want bmc.PowerState) {
		t.Helper()
		i, err := ctl.Info(ctx)
		if err != nil || i.Power != want || powered() != (want == bmc.IsOn) {
			t.Fatalf("info: %+v, %v, powered %v, want %s", i, err, powered(), want)
		}
	}
	for _, s := range []struct {
		a    bmc.PowerAction
		want bmc.PowerState
		kind error
	}{{bmc.PowerOff, bmc.IsOff, nil}, {bmc.PowerOff, bmc.IsOff, nil}, {bmc.PowerCycle, bmc.IsOff, errs.Conflict}, {bmc.PowerSoft, bmc.IsOff, errs.Conflict},
		{bmc.PowerOn, bmc.IsOn, nil}, {bmc.PowerCycle, bmc.IsOn, nil}, {bmc.PowerSoft, bmc.IsOff, nil}, {"up", bmc.IsOff, errs.Invalid}, {bmc.PowerOn, bmc.IsOn, nil}} {
		if err := ctl.Power(ctx, s.a); !errors.Is(err, s.kind) {
			t.Fatalf("power %s: %v", s.a, err)
		}
		state(s.want)
	}
	for _, d := range []bmc.BootDevice{bmc.BootPXE, bmc.BootNone} {
		if err := ctl.Boot(ctx, d, false); err != nil {
			t.Errorf("boot %s: %v", d, err)
		}
	}
	if err := ctl.Boot(ctx, "floppy", false); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "floppy") {
		t.Errorf("boot floppy: %v", err)
	}
	for _, on := range []bool{true, false} {
		if err := ctl.Identify(ctx, on); err != nil {
			t.Errorf("identify %v: %v", on, err)
		}
	}
	for _, n := range []bmc.Network{{Address: "10.0.0.300"}, {Address: "10.0.0.3"}, {DHCP: true, Address: "10.0.0.3"},
		{Address: "10.0.0.3", Netmask: "255.0.255.0"}, {Address: "10.0.0.3", Netmask: "255.255.255.0", Gateway: "10.0.1.1"}} {
		if err := ctl.SetNetwork(ctx, n); !errors.Is(err, errs.Invalid) {
			t.Errorf("set network %+v: %v", n, err)
		}
	}
	bad := c
	bad.Password = secret.Text("wrong")
	_, err := open(t, bad).Info(ctx)
	if !errors.Is(err, errs.Denied) || !strings.Contains(err.Error(), "password") || strings.Contains(err.Error(), "wrong\"") || errs.Hint(err) == "" {
		t.Errorf("wrong password: %v", err)
	}
	silent := c
	silent.Port = freePort(t)
	sctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if _, err := open(t, silent).Info(sctx); !errors.Is(err, errs.Unavailable) || sctx.Err() != nil {
		t.Errorf("nobody there: %v", err)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func TestRedfish(t *testing.T) {
	m := &machine{on: true}
	c := serve(t, redfish.New(redfish.Config{User: user, Password: password, UUID: uuid, Address: "127.0.0.1"}, m))
	contract(t, c, m.Powered)
	if m.cycles != 3 { // off, cycle, shutdown
		t.Errorf("%d times off, want 3", m.cycles)
	}
	ctx, ctl := t.Context(), open(t, c)
	if err := ctl.Boot(ctx, bmc.BootCD, true); err != nil {
		t.Fatal(err)
	}
	for _, image := range []string{"http://10.0.0.1/a.iso", "http://10.0.0.1/b.iso", "http://10.0.0.1/b.iso"} {
		if err := ctl.Media(ctx, image); err != nil {
			t.Fatal(err)
		}
	}
	if err := ctl.Identify(ctx, true); err != nil {
		t.Fatal(err)
	}
	i, err := ctl.Info(ctx)
	if err != nil || i.UUID != uuid || i.Boot != "cd always" || i.Media != "http://10.0.0.1/b.iso" || !i.Identify {
		t.Errorf("info: %+v, %v", i, err)
	}
	if err := ctl.Media(ctx, ""); err != nil {
		t.Error(err)
	}
	want := bmc.Network{Address: "127.0.0.9", Netmask: "255.255.0.0", Gateway: "127.0.0.1"}
	if err := ctl.SetNetwork(ctx, want); err != nil {
		t.Error(err)
	}
	if n, err := ctl.Network(ctx); err != nil || n != want {
		t.Errorf("network: %+v, %v", n, err)
	}
	if list, err := ctl.Sensors(ctx); err != nil || len(list) != 2 || list[0].Unit != "W" && list[1].Unit != "W" {
		t.Errorf("sensors: %+v, %v", list, err)
	}
	if _, err := ctl.Console(ctx); !errors.Is(err, errs.Unavailable) || errs.Hint(err) == "" {
		t.Errorf("console: %v", err)
	}
}

// Another certificate is refused before anything is sent, with both fingerprints.
func TestWrongCertificate(t *testing.T) {
	asked := 0
	c := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	got, err := bmc.ReadCertificate(t.Context(), c)
	if err != nil || got.Fingerprint != c.Fingerprint || !strings.Contains(got.Subject, "bmc1") {
		t.Fatalf("read certificate: %+v, %v", got, err)
	}
	pinned := strings.Repeat("ab", 32)
	right := c.Fingerprint
	c.Fingerprint = pinned
	ctl := open(t, c)
	_, err = ctl.Info(t.Context())
	if !errors.Is(err, errs.Denied) || !strings.Contains(err.Error(), pinned) || !strings.Contains(err.Error(), right) || errs.Hint(err) == "" {
		t.Errorf("wrong certificate: %v (hint %q)", err, errs.Hint(err))
	}
	if err := ctl.Power(t.Context(), bmc.PowerOff); !errors.Is(err, errs.Denied) {
		t.Errorf("power by a wrong certificate: %v", err)
	}
	if asked != 0 {
		t.Errorf("%d requests were sent to it", asked)
	}
}

// A service that lies, hangs or points elsewhere gets no password and ends in time.
func TestBadServices(t *testing.T) {
	var elsewhere int
	other := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere++ }))
	for name, h := range map[string]http.HandlerFunc{
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://"+other.Address()+"/", http.StatusFound)
		},
		"other host": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"Systems":{"@odata.id":"//%s/x"}}`, other.Address())
		},
		"absolute": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"Systems":{"@odata.id":"https://%s/x"}}`, other.Address())
		},
		"html":    func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"endless": func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 2<<20)) },
		"none":    func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"Members":[]}`) },
		"500": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"error":{"message":"out of order"}}`, 500)
		},
	} {
		_, err := open(t, serve(t, h)).Info(t.Context())
		if !errors.Is(err, errs.Unavailable) || strings.Contains(err.Error(), password) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if elsewhere != 0 {
		t.Errorf("another host was asked %d times", elsewhere)
	}
	stop := make(chan struct{})
	c := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-stop }))
	defer close(stop)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := open(t, c).Info(ctx); !errors.Is(err, errs.Unavailable) {
		t.Errorf("a service that hangs: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	for in, want := range map[string]string{"10.0.0.1": "redfish 10.0.0.1:443", "https://b.example:8443/": "redfish b.example:8443", "ipmi://10.0.0.1": "ipmi 10.0.0.1:623",
		"fd00::1": "redfish [fd00::1]:443", "ipmi://10.0.0.1:9623": "ipmi 10.0.0.1:9623"} {
		c, err := bmc.ParseAddress(in)
		if got := string(c.Protocol) + " " + c.Address(); err != nil || got != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "http://x", "https://u:p@x", "https://x/y", "https://x:0", "https://x:99999", "ipmi://-oProxy", "https://"} {
		if _, err := bmc.ParseAddress(in); !errors.Is(err, errs.Invalid) || errs.Hint(err) == "" {
			t.Errorf("%q: %v", in, err)
		}
	}
	if !bmc.SameUUID(uuid, strings.ToUpper(uuid)) || !bmc.SameUUID(uuid, "44454c4c-4200-1048-8056-b4c04f395931") || bmc.SameUUID(uuid, "") ||
		bmc.SameUUID("00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000000") {
		t.Error("UUIDs are compared wrongly")
	}
}

// TestIPMI runs the contract against OpenIPMI's simulator.
func TestIPMI(t *testing.T) {
	for _, bin := range []string{"ipmi_sim", "ipmitool"} {
		if _, err := exec.LookPath(bin); err != nil {
			t.Skipf("%s is not installed", bin)
		}
	}
	if testing.Short() {
		t.Skip("runs ipmi_sim")
	}
	dir, port := t.TempDir(), freePort(t)
	write := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	power := write("power", "1\n", 0o644)
	script := write("chassis", `#!/bin/sh
shift; op=$1; shift
if [ $op = get ]; then for p in "$@"; do case $p in power) echo "power:$(cat `+power+`)";; boot) echo boot:none;; esac; done; fi
if [ $op = set ]; then while [ $# -gt 0 ]; do case $1 in power) echo $2 >`+power+`;; shutdown) echo 0 >`+power+`;; esac; shift 2; done; fi
exit 0
`, 0o755)
	lan := write("lan.conf", fmt.Sprintf(`name "roseau"
set_working_mc 0x20
startlan 1
addr 127.0.0.1 %d
priv_limit admin
allowed_auths_admin none md2 md5 straight
guid a123456789abcdefa123456789abcdef
endlan
chassis_control "%s 0x20"
user 2 true "%s" "%s" admin 10 none md2 md5 straight
`, port, script, user, password), 0o644)
	emu := write("emu", "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n", 0o644)
	cmd := exec.Command("ipmi_sim", "-c", lan, "-f", emu, "-s", dir, "-n")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	c := bmc.Config{Protocol: bmc.IPMI, Host: "127.0.0.1", Port: port, User: user, Password: secret.Text(password)}
	for end := time.Now().Add(20 * time.Second); ; {
		_, err := open(t, c).Info(t.Context())
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the simulator does not answer: %v", err)
		}
	}
	contract(t, c, func() bool {
		b, err := os.ReadFile(power)
		return err == nil && strings.TrimSpace(string(b)) == "1"
	})
	if err := open(t, c).Media(t.Context(), "http://x/y.iso"); !errors.Is(err, errs.Unavailable) || errs.Hint(err) == "" {
		t.Errorf("media: %v", err)
	}
	if i, err := open(t, c).Info(t.Context()); err != nil || i.UUID == "" || i.Firmware == "" {
		t.Errorf("info: %+v, %v", i, err)
	}
	c.Password = secret.Text(strings.Repeat("x", 21))
	if _, err := bmc.Open(c); !errors.Is(err, errs.Invalid) {
		t.Errorf("a password of 21 bytes: %v", err)
	}
}
