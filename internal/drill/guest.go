package drill

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/drill/guestimage"
	"roseau/internal/drill/probe"
	"roseau/internal/model"
)

// probeMemory is enough for the guest's kernel and its program.
const probeMemory = 128 * size.MiB

// probeVM is a running probe.
type probeVM struct {
	env   *Env
	name  string
	addr  netip.Addr
	seed  uint64
	http  *http.Client
	acks  *recorder
	image bool // an image of this name was made
	vm    bool
}

// startProbe imports the image, creates and boots the VM and waits for its
// page. On error the probe is returned too, if there is something to destroy.
func (e *Env) startProbe(ctx context.Context, disk size.Bytes) (*probeVM, error) {
	return e.startProbeWith(ctx, VMRequest{Memory: probeMemory, DiskSize: disk})
}

// startProbeWith is startProbe for a VM of another shape; name, image and
// network are filled in.
func (e *Env) startProbeWith(ctx context.Context, req VMRequest) (*probeVM, error) {
	addr, gateway, err := e.Vantage.Address(ctx)
	if err != nil {
		return nil, err
	}
	p := &probeVM{env: e, name: probeName(), addr: addr.Addr(), seed: rand.Uint64() | 1}
	p.http = &http.Client{Transport: &http.Transport{DialContext: e.Vantage.Dial, DisableKeepAlives: true}}
	file := filepath.Join(e.WorkDir, p.name+".img")
	defer os.Remove(file)
	if err := guestimage.Configure(e.Image, file, probe.Config{Name: p.name, Address: addr, Gateway: gateway, Seed: p.seed}); err != nil {
		return nil, err
	}
	e.say("importing the probe's image as %s", p.name)
	if err := e.Cluster.ImportImage(ctx, p.name, file); err != nil {
		return nil, err
	}
	p.image = true
	e.say("creating VM %s, %s of disk, address %s", p.name, req.DiskSize, p.addr)
	req.Name, req.Image, req.Network, req.CPUs = p.name, p.name, e.Network, 1
	if err := e.Cluster.CreateVM(ctx, req); err != nil {
		return p, err
	}
	p.vm = true
	began := time.Now()
	if err := p.waitForPage(ctx, 2*time.Minute); err != nil {
		return p, err
	}
	e.say("its page answers %s after it was started", time.Since(began).Round(100*time.Millisecond))
	p.acks = newRecorder(e.Vantage, netip.AddrPortFrom(p.addr, probe.AckPort))
	return p, nil
}

// destroy deletes the VM and its image.
func (p *probeVM) destroy(ctx context.Context) error {
	var err error
	if p.acks != nil {
		p.acks.close()
	}
	if p.vm {
		err = errors.Join(err, p.env.Cluster.DeleteVM(ctx, p.name))
	}
	if p.image {
		err = errors.Join(err, p.env.Cluster.DeleteImage(ctx, p.name))
	}
	if err != nil {
		return fmt.Errorf("clean up after the drill: %w", err)
	}
	return nil
}

// call does one request to the guest's interface.
func (p *probeVM) call(ctx context.Context, method, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+netip.AddrPortFrom(p.addr, probe.HTTPPort).String()+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errs.New(errs.Unavailable, "%s %s: %s: %s", method, path, resp.Status, strings.TrimSpace(string(body)))
	}
	return body, err
}

// status asks the guest, with a limit of its own.
func (p *probeVM) status(ctx context.Context) (probe.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var st probe.Status
	body, err := p.call(ctx, "GET", "/status")
	if err != nil {
		return st, fmt.Errorf("ask the guest for its status: %w", err)
	}
	return st, json.Unmarshal(body, &st)
}

// waitForPage polls the guest's page over fresh connections.
func (p *probeVM) waitForPage(ctx context.Context, limit time.Duration) error {
	return waitUntil(ctx, limit, 50*time.Millisecond, "the guest's page", func() (bool, error) {
		try, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		body, err := p.call(try, "GET", "/")
		return err == nil && strings.Contains(string(body), p.name), err
	})
}

func (p *probeVM) post(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	_, err := p.call(ctx, "POST", path)
	return err
}

// startLoad begins the flushed writes after the last one recorded, and waits
// until acknowledgements come.
func (p *probeVM) startLoad(ctx context.Context, pause time.Duration) error {
	p.acks.start()
	if err := p.acks.waitConnected(ctx, 20*time.Second); err != nil {
		return err
	}
	before := p.acks.count()
	if err := p.post(ctx, fmt.Sprintf("/load?from=%d&pause_us=%d", p.acks.last()+2, pause.Microseconds())); err != nil {
		return err
	}
	return waitUntil(ctx, 30*time.Second, 20*time.Millisecond, "acknowledged writes", func() (bool, error) {
		return p.acks.count() > before+10, nil
	})
}

// begin starts the load and returns the guest's own word and the cluster's, from
// before anything is done to it.
func (p *probeVM) begin(ctx context.Context, pause time.Duration) (before probe.Status, vm model.VM, err error) {
	if err := p.startLoad(ctx, pause); err != nil {
		return before, vm, err
	}
	if before, err = p.status(ctx); err != nil {
		return before, vm, err
	}
	vm, err = p.vmNode(ctx)
	return before, vm, err
}

// waitAcks waits until n more writes are acknowledged.
func (p *probeVM) waitAcks(ctx context.Context, n int) error {
	before := p.acks.count()
	return waitUntil(ctx, time.Minute, 20*time.Millisecond, fmt.Sprintf("%d acknowledged writes", n), func() (bool, error) {
		return p.acks.count() > before+n, nil
	})
}

func (p *probeVM) stopLoad(ctx context.Context) error { return p.post(ctx, "/load?stop=1") }

// fill writes, or verifies, chunks of random data and returns the bad ones.
func (p *probeVM) fill(ctx context.Context, chunks int, verify bool, limit time.Duration) (bad int, err error) {
	path := fmt.Sprintf("/fill?chunks=%d", chunks)
	if verify {
		path += "&verify=1"
	}
	if err := p.post(ctx, path); err != nil {
		return 0, err
	}
	err = waitUntil(ctx, limit, 200*time.Millisecond, "the fill region", func() (bool, error) {
		st, err := p.status(ctx)
		bad = st.FillBad
		return err == nil && !st.FillRunning && st.FillDone == chunks, err
	})
	return bad, err
}

// audit reads back and reports what it found; no acknowledged write may be lost.
func (p *probeVM) audit(ctx context.Context) (acked, lost int, err error) {
	acked, lost, err = p.readBack(ctx)
	if err != nil {
		return 0, 0, err
	}
	r := p.env.report
	r.Figures["writes_acked"], r.Figures["writes_lost"] = acked, lost
	r.require(lost == 0, "%d of %d acknowledged writes lost", lost, acked)
	return acked, lost, nil
}

// reportPauses reports how often and for how long the VM stood still, and returns
// it.
func (p *probeVM) reportPauses(ctx context.Context) (model.VM, error) {
	vm, err := p.vmNode(ctx)
	if err != nil {
		return vm, err
	}
	f := p.env.report.Figures
	f["vm_pauses"], f["vm_paused_ms"] = vm.Status.PauseCount, ms(vm.Status.PausedFor)
	return vm, nil
}

// vmNode returns the node that runs the VM.
func (p *probeVM) vmNode(ctx context.Context) (model.VM, error) {
	return p.env.Cluster.VM(ctx, p.name)
}

// recorder is the client outside: it keeps, for each slot, the newest write
// whose flush the guest's disk acknowledged. It reconnects by itself.
type recorder struct {
	vantage Vantage
	addr    netip.AddrPort
	heard   func(seq uint64) // nil: nobody wants each

	mu        sync.Mutex
	newest    map[uint32]uint64
	total     int
	lastSeq   uint64
	lastAt    time.Time
	longest   time.Duration // longest time between two acknowledgements while watched
	watching  bool
	connected bool
	cancel    context.CancelFunc
	wait      sync.WaitGroup
}

func newRecorder(v Vantage, addr netip.AddrPort) *recorder {
	return &recorder{vantage: v, addr: addr, newest: map[uint32]uint64{}}
}

// start begins recording; further calls do nothing.
func (r *recorder) start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.wait.Add(1)
	go r.run(ctx)
}

func (r *recorder) close() {
	r.mu.Lock()
	cancel := r.cancel
	r.mu.Unlock()
	if cancel != nil {
		cancel()
		r.wait.Wait()
	}
}

func (r *recorder) run(ctx context.Context) {
	defer r.wait.Done()
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		conn, err := r.vantage.Dial(try, "tcp", r.addr.String())
		cancel()
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		r.listen(ctx, conn)
	}
}

// listen records until the connection breaks. A guest that lost power says no
// goodbye: keep-alive probes end the connection.
func (r *recorder) listen(ctx context.Context, conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 3})
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	r.setConnected(true)
	defer r.setConnected(false)
	for sc := bufio.NewScanner(conn); sc.Scan(); {
		seq, err := strconv.ParseUint(sc.Text(), 10, 64)
		if err != nil {
			return
		}
		r.note(seq, time.Now())
		if r.heard != nil {
			r.heard(seq)
		}
	}
}

func (r *recorder) setConnected(v bool) {
	r.mu.Lock()
	r.connected = v
	r.mu.Unlock()
}

func (r *recorder) note(seq uint64, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slot := probe.Slot(seq)
	r.newest[slot] = max(r.newest[slot], seq)
	r.total++
	r.lastSeq = max(r.lastSeq, seq)
	if r.watching && !r.lastAt.IsZero() {
		r.longest = max(r.longest, now.Sub(r.lastAt))
	}
	r.lastAt = now
}

// watch begins to measure the longest time between two acknowledgements.
func (r *recorder) watch() {
	r.mu.Lock()
	r.watching, r.longest, r.lastAt = true, 0, time.Now()
	r.mu.Unlock()
}

// watched returns it.
func (r *recorder) watched() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watching = false
	return max(r.longest, 0)
}

func (r *recorder) waitConnected(ctx context.Context, limit time.Duration) error {
	return waitUntil(ctx, limit, 20*time.Millisecond, "the recorder's connection to the guest", func() (bool, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.connected, nil
	})
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total
}

func (r *recorder) last() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lastSeq
}

func (r *recorder) ledger() (newest map[uint32]uint64, total int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	newest = make(map[uint32]uint64, len(r.newest))
	for k, v := range r.newest {
		newest[k] = v
	}
	return newest, r.total
}
