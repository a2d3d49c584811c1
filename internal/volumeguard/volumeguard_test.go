package volumeguard

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/block/volume"
	"roseau/internal/core/repl"
	"roseau/internal/driver/volumectl"
	"roseau/internal/model"
	"roseau/internal/unit"
)

// fakeSet is a Handle whose storage is always at hand. Methods that the process
// does not use are nil and would panic.
type fakeSet struct {
	volume.Handle
	vol ids.ID

	mu       sync.Mutex
	phase    volume.Phase
	healthy  bool
	healing  int
	rollback uint32
	scrub    volume.ScrubStatus
	refusals int // rounds of PREPARE that say no
	conflict int // takes that lose
	calls    []string
	events   chan volume.Event
	closed   bool
}

func (f *fakeSet) log(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, s)
}

func (f *fakeSet) Prepare(context.Context) (volume.Prepared, error) {
	f.log("prepare")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusals--
	return volume.Prepared{Ready: f.refusals < 0, Text: "the lease runs"}, nil
}

func (f *fakeSet) Take(context.Context, volume.Claim) error {
	f.log("take")
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conflict > 0 {
		f.conflict--
		return errs.New(errs.Conflict, "somebody was faster")
	}
	f.phase = volume.PhaseServing
	return nil
}

func (f *fakeSet) Release(context.Context) error {
	f.log("release")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.phase = volume.PhaseReleased
	return nil
}

func (f *fakeSet) ReplaceDisk(context.Context, volume.Replace) error { f.log("replace"); return nil }
func (f *fakeSet) Scrub(_ context.Context, _ ids.ID, stop bool) error {
	f.log("scrub")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.scrub = volume.ScrubStatus{Running: !stop}
	return nil
}
func (f *fakeSet) Ping(context.Context) error  { return nil }
func (f *fakeSet) Events() <-chan volume.Event { return f.events }

func (f *fakeSet) Status() volume.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := volume.VolumeStatus{Volume: f.vol, Copies: 3, CopiesInSync: 3, Healthy: f.healthy, Healing: f.healing, Rollback: f.rollback, Scrub: f.scrub}
	if !f.healthy {
		v.CopiesInSync = 2
		v.Disks = []volume.DiskStatus{{Disk: f.vol, Reason: "lost"}}
	}
	return volume.Status{Phase: f.phase, Lease: f.phase == volume.PhaseServing, Volumes: []volume.VolumeStatus{v}}
}

func (f *fakeSet) Serve(ctx context.Context, _ ids.ID, l net.Listener) error {
	<-ctx.Done()
	return l.Close()
}

func (f *fakeSet) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		close(f.events)
	}
	return nil
}

func (f *fakeSet) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// start runs the process around f.
func start(t *testing.T, f *fakeSet, purpose repl.Purpose) (*volumectl.Client, context.CancelFunc, chan error) {
	t.Helper()
	root, err := os.MkdirTemp("", "vg") // unix socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	was := paths.Run
	paths.Run = root
	t.Cleanup(func() { paths.Run = was })
	f.vol, f.events, f.phase = ids.New(), make(chan volume.Event), volume.PhaseOpen
	cfg := &volumectl.Config{Volume: f.vol, Purpose: purpose, Node: ids.New(), Etcd: []string{"https://127.0.0.1:1"}}
	if err := volumectl.WriteConfig(cfg); err != nil {
		t.Fatal(err)
	}
	if cfg, err = volumectl.ReadConfig(f.vol); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	done := make(chan error, 1)
	opener := func(context.Context, volume.Config) (volume.Handle, error) { return f, nil }
	go func() {
		done <- run(ctx, cfg, slog.New(slog.DiscardHandler), &unit.Notifier{}, opener, volume.Config{})
	}()
	return volumectl.Dial(f.vol), cancel, done
}

// until waits for a phase.
func until(t *testing.T, c *volumectl.Client, p volumectl.Phase) volumectl.Status {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		s, err := c.Status(context.Background())
		if err == nil && s.Phase == p {
			return s
		}
		if time.Now().After(end) {
			t.Fatalf("phase %s not reached: %+v %v", p, s, err)
		}
	}
}

func wait(t *testing.T, done chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the process does not end")
		return nil
	}
}

func TestServeUntilReleased(t *testing.T) {
	f := &fakeSet{healthy: true, refusals: 2, conflict: 1}
	c, _, done := start(t, f, repl.PurposeServe)
	st := until(t, c, volumectl.PhaseServing)
	if st.State.Health != model.Healthy || st.State.Copies != 3 || st.Socket != paths.VolumeNBD(f.vol) {
		t.Errorf("status %+v", st)
	}
	if err := c.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, done); err != nil {
		t.Fatal(err)
	}
	want := []string{"prepare", "prepare", "prepare", "take", "prepare", "take", "release"}
	if !reflect.DeepEqual(f.calls, want) {
		t.Errorf("calls %v, want %v", f.calls, want)
	}
	if _, err := os.Stat(paths.VolumeNBD(f.vol)); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestMaintenanceEndsWhenHealthy(t *testing.T) {
	f := &fakeSet{}
	c, _, done := start(t, f, repl.PurposeMaintenance)
	if st := until(t, c, volumectl.PhaseServing); st.State.Health != model.Degraded || len(st.State.Out) != 1 || st.Socket != "" {
		t.Errorf("status %+v", st)
	}
	if err := c.ReplaceDisk(context.Background(), volumectl.Replace{Old: ids.New(), New: ids.New()}); err != nil {
		t.Error(err)
	}
	f.set(func() { f.healthy = true })
	if err := wait(t, done); err != nil {
		t.Fatal(err)
	}
	if n := len(f.calls); f.calls[n-1] != "release" {
		t.Errorf("calls %v", f.calls)
	}
}

// A maintenance writer stays as long as blocks wait for their repair.
func TestMaintenanceWaitsForRepairs(t *testing.T) {
	f := &fakeSet{healthy: true, healing: 3}
	c, _, done := start(t, f, repl.PurposeMaintenance)
	if st := until(t, c, volumectl.PhaseServing); st.Scrub.Healing != 3 {
		t.Errorf("status %+v", st.Scrub)
	}
	if st, err := c.Scrub(context.Background(), volumectl.ScrubStart); err != nil || !st.Running || st.Healing != 3 {
		t.Errorf("%+v %v", st, err)
	}
	if st, err := c.Scrub(context.Background(), volumectl.ScrubShow); err != nil || !st.Running {
		t.Errorf("%+v %v", st, err)
	}
	if st, err := c.Scrub(context.Background(), volumectl.ScrubStop); err != nil || st.Running {
		t.Errorf("%+v %v", st, err)
	}
	select {
	case err := <-done:
		t.Fatalf("ended with repairs open: %v", err)
	default:
	}
	f.set(func() { f.healing = 0 })
	if err := wait(t, done); err != nil {
		t.Fatal(err)
	}
}

// A maintenance writer stays until a rollback is over.
func TestMaintenanceWaitsForRollback(t *testing.T) {
	f := &fakeSet{healthy: true, rollback: 2}
	c, _, done := start(t, f, repl.PurposeMaintenance)
	until(t, c, volumectl.PhaseServing)
	select {
	case err := <-done:
		t.Fatalf("ended in the middle of a rollback: %v", err)
	case <-time.After(3 * pace):
	}
	f.set(func() { f.rollback = 0 })
	if err := wait(t, done); err != nil {
		t.Fatal(err)
	}
}

// SIGTERM before the take leaves nothing to release; after it releases.
func TestSignal(t *testing.T) {
	f := &fakeSet{refusals: 1 << 30}
	c, cancel, done := start(t, f, repl.PurposeImport)
	until(t, c, volumectl.PhasePreparing)
	cancel()
	if err := wait(t, done); err != nil {
		t.Fatal(err)
	}
	for _, call := range f.calls {
		if call != "prepare" {
			t.Fatalf("calls %v", f.calls)
		}
	}
}

// Another writer is right: no release, no error, no restart.
// A process that may open no further descriptor ends with an error, so that it is
// started again, and does not wait for a release that it cannot ask for.
func TestOutOfDescriptors(t *testing.T) {
	f := &fakeSet{healthy: true}
	c, _, done := start(t, f, repl.PurposeServe)
	until(t, c, volumectl.PhaseServing)
	f.events <- volume.Event{Kind: volume.EventExhausted, Text: "too many open files"}
	if err := wait(t, done); errs.Kind(err) != errs.Exhausted {
		t.Errorf("the process ends with %v", err)
	}
	if calls := f.calls; slices.Contains(calls, "release") {
		t.Errorf("calls %v", calls)
	}
}

func TestFenced(t *testing.T) {
	f := &fakeSet{healthy: true}
	c, _, done := start(t, f, repl.PurposeServe)
	until(t, c, volumectl.PhaseServing)
	f.set(func() { f.phase = volume.PhaseFenced })
	if err := wait(t, done); err != nil {
		t.Fatal(err)
	}
	if n := len(f.calls); f.calls[n-1] != "take" {
		t.Errorf("calls %v", f.calls)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x", "v.lock")
	a, err := takeLock(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := takeLock(ctx, path); errs.Kind(err) != errs.Conflict {
		t.Errorf("two writers: %v", err)
	}
	a.Close()
	b, err := takeLock(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
}

func TestConfigRefusals(t *testing.T) {
	vol := ids.New()
	good := volumectl.Config{Volume: vol, Purpose: repl.PurposeServe, Node: ids.New(), Etcd: []string{"x"}}
	for name, change := range map[string]func(*volumectl.Config){
		"purpose": func(c *volumectl.Config) { c.Purpose = "vm" },
		"volume":  func(c *volumectl.Config) { c.Volume = ids.ID{} },
		"node":    func(c *volumectl.Config) { c.Node = ids.ID{} },
		"etcd":    func(c *volumectl.Config) { c.Etcd = nil },
		"replace": func(c *volumectl.Config) { c.Replace = make([]volumectl.Replace, 1) },
		"address": func(c *volumectl.Config) {
			c.Nodes = []volumectl.Peer{{Addresses: map[model.NetworkRole][]string{model.RoleStorage: {"host"}}}}
		},
	} {
		c := good
		change(&c)
		if errs.Kind(c.Validate()) != errs.Invalid {
			t.Errorf("%s: %v", name, c.Validate())
		}
	}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}

func TestStorageAddrs(t *testing.T) {
	got := StorageAddrs(map[model.NetworkRole][]string{model.RoleCluster: {"10.0.0.1", "10.1.0.1"}, model.RoleStorage: {"10.1.0.1"}, model.RoleVM: {"10.2.0.1"}})
	if want := []string{"10.1.0.1:7444", "10.0.0.1:7444"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
