package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"roseau/internal/drill/guestimage"
	"roseau/internal/drill/probe"
	"roseau/internal/lab/labclient"
)

// guest is a VM with the drills' guest in it, reached from the lab's outside host.
type guest struct {
	name string
	addr netip.Addr
	http *http.Client
}

// The VM network's prefix and the outside host; the drills' guests are at
// 10.202.6.200 and up.
const (
	vmPrefixBits = 16
	vmGateway    = "10.202.255.254"
)

// newGuest makes a VM, which is not started, and its image; number makes its
// address. Both are deleted with the test.
func newGuest(t *testing.T, name string, number byte, args ...string) *guest {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	image, err := guestimage.Builder{CacheDir: filepath.Join(os.Getenv("XDG_CACHE_HOME"), "roseau", "guests"),
		Probe: filepath.Join(filepath.Dir(roseau), "roseau-probe")}.Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{name: name, addr: netip.AddrFrom4([4]byte{10, 202, 7, number})}
	file := filepath.Join(t.TempDir(), name+".img")
	err = guestimage.Configure(image, file, probe.Config{Name: name, Address: netip.PrefixFrom(g.addr, vmPrefixBits),
		Gateway: netip.MustParseAddr(vmGateway), Seed: uint64(number)})
	if err != nil {
		t.Fatal(err)
	}
	lab, err := labclient.Open(labName)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lab.Close)
	g.http = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return lab.DialOutside(ctx, network, address)
		}}}
	must(t, time.Minute, "image", "import", file, "--name", name)
	os.Remove(file)
	t.Cleanup(func() { must(t, time.Minute, "image", "delete", name, "--confirm", name) })
	must(t, time.Minute, append([]string{"vm", "create", name, "--memory", "128MiB", "--disk", "image=" + name + ",size=128MiB", "--network", "lan"}, args...)...)
	t.Cleanup(func() {
		if out, err := cli(time.Minute, "vm", "stop", name, "--force"); err != nil {
			t.Logf("vm stop %s: %s", name, out) // it may be off
		}
		must(t, time.Minute, "vm", "delete", name, "--confirm", name)
	})
	return g
}

// call does a request to the guest.
func (g *guest) call(method, path string) (st probe.Status, err error) {
	req, err := http.NewRequest(method, "http://"+netip.AddrPortFrom(g.addr, probe.HTTPPort).String()+path, nil)
	if err != nil {
		return st, err
	}
	resp, err := g.http.Do(req)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	if err == nil && method == http.MethodGet {
		err = json.Unmarshal(b, &st)
	}
	return st, err
}

// post gives the guest an order.
func (g *guest) post(t *testing.T, path string) {
	t.Helper()
	if _, err := g.call(http.MethodPost, path); err != nil {
		t.Fatalf("guest %s: %v", g.name, err)
	}
}

// wait asks the guest until ok.
func (g *guest) wait(t *testing.T, what string, ok func(probe.Status) bool) (st probe.Status) {
	t.Helper()
	var err error
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if st, err = g.call(http.MethodGet, "/status"); err == nil && ok(st) {
			return st
		}
		if time.Now().After(end) {
			t.Fatalf("guest %s: not %s: %+v, %v", g.name, what, st, err)
		}
	}
}

// up waits until the guest answers, as another boot than old.
func (g *guest) up(t *testing.T, old string) probe.Status {
	t.Helper()
	return g.wait(t, "up", func(st probe.Status) bool { return st.Boot != old })
}

// fill writes some data that can be computed again, flushed; filled reads it.
func (g *guest) fill(t *testing.T) {
	t.Helper()
	g.post(t, fmt.Sprintf("/fill?chunks=%d", fillChunks))
	g.wait(t, "filled", func(st probe.Status) bool { return !st.FillRunning && st.FillDone == fillChunks && st.IOErrors == 0 })
}

func (g *guest) filled(t *testing.T) {
	t.Helper()
	g.post(t, fmt.Sprintf("/fill?chunks=%d&verify=1", fillChunks))
	st := g.wait(t, "verified", func(st probe.Status) bool { return !st.FillRunning && st.FillDone == fillChunks })
	if st.FillBad > 0 || st.IOErrors > 0 {
		t.Errorf("guest %s: %d of %d MiB are not what was written, %d I/O errors", g.name, st.FillBad, fillChunks, st.IOErrors)
	}
}

const fillChunks = 8

// pressed waits until the guest's power button was pressed n times.
func (g *guest) pressed(t *testing.T, n uint64) {
	t.Helper()
	g.wait(t, fmt.Sprintf("pressed %d times", n), func(st probe.Status) bool { return st.Pressed >= n })
}

// powersOff lets the guest do what its button asks for.
func (g *guest) powersOff(t *testing.T) {
	t.Helper()
	if _, err := g.call(http.MethodPost, "/button"); err != nil {
		t.Logf("guest %s, told to power off: %v", g.name, err) // it may be off before it answers
	}
}
