package volume

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"

	"roseau/internal/block/nbd/nbdtest"
)

// vmConfig is what the guard of vm on node i opens vols with.
func (w *world) vmConfig(i int, vm, run ids.ID, attempt uint64, vols ...ids.ID) Config {
	c := w.config(i, vols...)
	c.Purpose, c.VM, c.Run, c.Attempt = repl.PurposeVM, vm, run, attempt
	return c
}

func (w *world) place(vm ids.ID, p repl.Placement) {
	w.put(repl.Key{Kind: repl.KeyPlacement, ID: vm}.Path(), p)
}

func context20(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// A guard after a guard: the same epoch, the next inc, no wait for the lease,
// with etcd and without.
func TestReopen(t *testing.T) {
	w := newWorld(t)
	w.fakes()
	vm, run, vol := ids.New(), ids.New(), w.volume(16<<20)
	w.place(vm, repl.Placement{Node: w.nodes[0], Attempt: 1, State: "running"})
	cfg := w.vmConfig(0, vm, run, 1, vol)
	cfg.Cache = filepath.Join(t.TempDir(), "records.json")
	first := w.take(cfg)
	nbdtest.Tool(t, "qemu-io", "-f", "raw", w.export(first, vol), "-c", "write -P 5 0 64k")
	st := first.Status().Volumes[0]
	first.Close() // a crash: nothing is released

	cfg.Guard, cfg.GuestAlive = ids.New(), true
	next := w.open(cfg)
	begun := time.Now()
	if err := next.Reopen(context20(t), Predecessor{Epoch: st.Epoch, Nonce: st.Nonce, Inc: st.Inc}); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begun); d > time.Second {
		t.Errorf("reopen took %v", d)
	}
	w.eventually("the status tells the next inc", 2*time.Second, func() bool {
		v := next.Status().Volumes[0]
		return v.Epoch == st.Epoch && v.Inc > st.Inc && v.Nonce == st.Nonce
	})
	if out := nbdtest.Tool(t, "qemu-io", "-f", "raw", w.export(next, vol), "-c", "read -P 5 0 64k"); strings.Contains(out, "failed") {
		t.Error(out)
	}
}

// A crash without a release: another writer waits out the lease, and the first
// one, if it still lived, is fenced.
func TestTakeoverFences(t *testing.T) {
	w := newWorld(t)
	fakes := w.fakes()
	vol := w.volume(16 << 20)
	first := w.take(w.config(0, vol))
	nbdtest.Tool(t, "qemu-io", "-f", "raw", w.export(first, vol), "-c", "write -P 7 0 64k")
	// Its messages stop: a node cut off for longer than its lease.
	for _, f := range fakes {
		f.mu.Lock()
		f.grantEnd = 0
		f.mu.Unlock()
	}
	second := w.open(w.config(1, vol))
	ctx := context20(t)
	p, err := second.Prepare(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for !p.Ready { // a heartbeat of the first may have renewed its grant
		for _, f := range fakes {
			f.mu.Lock()
			f.grantEnd = 0
			f.mu.Unlock()
		}
		if p, err = second.Prepare(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if o, err := second.Claim(ctx, Claim{}); o != Made {
		t.Fatal(o, err)
	}
	for _, f := range fakes {
		f.mu.Lock()
		f.grantEnd = 0
		f.mu.Unlock()
	}
	if err := second.Activate(ctx); err != nil {
		t.Fatal(err)
	}
	w.eventually("the first is fenced", 10*time.Second, func() bool { return first.Status().Phase == PhaseFenced })
	if first.Lease().Held {
		t.Error("the fenced writer holds a lease")
	}
	fenced := false
	for !fenced {
		select {
		case e := <-first.Events():
			fenced = e.Kind == EventFenced && e.By.Node == w.nodes[1]
		case <-ctx.Done():
			t.Fatal("no event tells who fenced")
		}
	}
	if err := first.Drain(ctx); errs.Kind(err) != errs.Fenced {
		t.Errorf("drain of a fenced writer: %v", err)
	}
	nbdtest.Tool(t, "qemu-io", "-f", "raw", w.export(second, vol), "-c", "read -P 7 0 64k")
}

// Live migration: one commit point, two volumes, no wait for the lease.
func TestHandOver(t *testing.T) {
	w := newWorld(t)
	w.fakes()
	vm, run := ids.New(), ids.New()
	vols := []ids.ID{w.volume(4 << 20), w.volume(16 << 20)}
	w.place(vm, repl.Placement{Node: w.nodes[0], Attempt: 1, State: "running"})
	ctx := context20(t)
	src := w.take(w.vmConfig(0, vm, run, 1, vols...))
	uri := w.export(src, vols[1])
	nbdtest.Tool(t, "qemu-io", "-f", "raw", uri, "-c", "write -P 1 0 1M")
	w.place(vm, repl.Placement{Node: w.nodes[0], Attempt: 1, State: "migrating", Target: w.nodes[1], Run: run})

	cfg := w.vmConfig(1, vm, run, 1, vols...)
	cfg.GuestAlive = true
	dst := w.open(cfg)
	p, err := dst.Prepare(ctx)
	if err != nil || !p.Reachable || p.Ready {
		t.Fatalf("prepare while the source lives: %+v %v", p, err)
	}
	if err := src.Stall(ctx); err != nil {
		t.Fatal(err)
	}
	done := make(chan string, 1)
	go func() { done <- nbdtest.Tool(t, "qemu-io", "-f", "raw", uri, "-c", "flush", "-c", "read -P 1 0 64k") }()

	// "Never": the source goes on under its epoch and answers what waited.
	if o, err := dst.Abort(ctx); err != nil || o != NotMade {
		t.Fatalf("abort: %v %v", o, err)
	}
	select {
	case out := <-done:
		t.Fatalf("a stalled volume answered: %s", out)
	case <-time.After(100 * time.Millisecond):
	}
	if err := src.Resume(); err != nil {
		t.Fatal(err)
	}
	if out := <-done; strings.Contains(out, "failed") {
		t.Fatal(out)
	}

	// The second try is made.
	if err := src.Stall(ctx); err != nil {
		t.Fatal(err)
	}
	epoch := src.Status().Epoch
	dst.Close()
	cfg.Guard = ids.New()
	dst = w.open(cfg)
	if p, err = dst.Prepare(ctx); err != nil || !p.Reachable {
		t.Fatalf("prepare: %+v %v", p, err)
	}
	o, err := dst.Claim(ctx, Claim{ExpectRun: run, ExpectEpoch: epoch,
		Placement: &repl.Placement{Node: w.nodes[1], Attempt: 2, State: "running", Run: run}})
	if o != Made {
		t.Fatal(o, err)
	}
	if own, err := dst.Owner(ctx); err != nil || !own.Mine || own.Node != w.nodes[1] || own.Run != run {
		t.Fatalf("%+v %v", own, err)
	}
	if err := src.Release(ctx); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := dst.Activate(ctx); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begun); d > time.Second {
		t.Errorf("activate after a release took %v", d)
	}
	nbdtest.Tool(t, "qemu-io", "-f", "raw", w.export(dst, vols[1]), "-c", "read -P 1 0 1M")
}

// The source takes its own way back when the destination is silent.
func TestReclaim(t *testing.T) {
	w := newWorld(t)
	w.fakes()
	vm, run, vol := ids.New(), ids.New(), w.volume(4<<20)
	w.place(vm, repl.Placement{Node: w.nodes[0], Attempt: 1, State: "running"})
	ctx := context20(t)
	src := w.take(w.vmConfig(0, vm, run, 1, vol))
	before := src.Status().Epoch
	if err := src.Stall(ctx); err != nil {
		t.Fatal(err)
	}
	if o, err := src.Reclaim(ctx, Claim{ExpectRun: run}); o != Made || err != nil {
		t.Fatal(o, err)
	}
	if e := src.Status().Epoch; e != before+1 {
		t.Errorf("epoch %d after %d", e, before)
	}
	if !src.Lease().Held {
		t.Error("no lease after the reclaim")
	}
	nbdtest.Tool(t, "qemu-io", "-f", "raw", w.export(src, vol), "-c", "write 0 64k")
}
