package watchdog

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/clock"
	core "roseau/internal/core/watchdog"
	"roseau/internal/model"
	"roseau/internal/svc"
	"roseau/internal/svc/event"
)

// manual is a clock that tests move.
type manual struct {
	clock.System
	now clock.Instant
}

func (m *manual) Now() clock.Instant { return m.now }

type guards struct {
	all, holding int
	err          error
}

func (g *guards) Leases(context.Context) (int, int, error) { return g.all, g.holding, g.err }

// rig is a service over a file in place of the device.
type rig struct {
	*Service
	t     *testing.T
	clock *manual
	g     *guards
	file  string
}

func newRig(t *testing.T) *rig {
	n := &model.Node{}
	r := &rig{t: t, clock: &manual{now: clock.Instant(time.Hour)}, g: &guards{}, file: filepath.Join(t.TempDir(), "watchdog")}
	log := slog.New(slog.DiscardHandler)
	env := &svc.Env{Events: event.NewLog(nil, "n1", r.clock, log), NodeName: "n1", Clock: r.clock, Log: log}
	r.Service = New(env, func() *model.Node { return n }, func(context.Context) bool { return true }, r.g, r.file)
	return r
}

func (r *rig) size() int64 {
	r.t.Helper()
	st, err := os.Stat(r.file)
	if err != nil {
		r.t.Fatal(err)
	}
	return st.Size()
}

func TestWatchdog(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	if err := os.WriteFile(r.file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.round(ctx)
	if r.size() != 0 || r.dog != nil {
		t.Fatal("it was touched without being asked for")
	}
	r.Service.node().Spec.Watchdog = core.DefaultTimeout
	// grows reports whether a round at a later time fed.
	grows := func(after time.Duration) bool {
		t.Helper()
		r.clock.now = r.clock.now.Add(after)
		before := r.size()
		r.round(ctx)
		return r.size() > before
	}
	if !grows(0) || r.dog == nil {
		t.Fatal("asked for, and not fed")
	}
	r.Service.session = func(context.Context) bool { return false }
	r.g.all, r.g.holding = 2, 2
	for range 400 { // an hour and more without a control plane
		if !grows(15 * time.Second) {
			t.Fatal("not fed while guards hold their leases")
		}
	}
	r.g.holding = 0
	for i, want := range []bool{true, true, false, false} { // 0, 15, 30 and 45 s
		if grows(15*time.Second) != want {
			t.Errorf("cut off, no guard holds a lease, round %d: fed is not %v", i, want)
		}
	}
	r.g.err = errors.New("the supervisor does not answer")
	if !grows(15 * time.Second) {
		t.Error("what is not known counts against feeding")
	}
	r.g.err = nil
	r.Service.session = func(context.Context) bool { return true }
	if !grows(15 * time.Second) {
		t.Error("not fed with its session back")
	}
	// Off, or the daemon's end: disarmed by the letter V.
	last := func() byte {
		t.Helper()
		b, err := os.ReadFile(r.file)
		if err != nil || len(b) == 0 {
			t.Fatalf("%v", err)
		}
		return b[len(b)-1]
	}
	r.Service.node().Spec.Watchdog = 0
	r.round(ctx)
	if last() != 'V' || r.dog != nil {
		t.Error("switched off, and not disarmed")
	}
	if err := os.WriteFile(r.file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.Service.node().Spec.Watchdog = 30 * time.Second
	cctx, cancel := context.WithCancel(ctx)
	cancel()
	if err := r.Run(cctx); !errors.Is(err, context.Canceled) || last() != 'V' {
		t.Errorf("at the daemon's end: %v", err)
	}
	if err := os.Remove(r.file); err != nil {
		t.Fatal(err)
	}
	r.round(ctx)
	if r.dog != nil || !strings.Contains(r.said, "shows none") {
		t.Errorf("no device: %q", r.said)
	}
}
