package disk

import (
	"context"
	"errors"
	"testing"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/repl"
	"roseau/internal/model"
	"roseau/internal/svc"
)

// late is a storage process that does not answer its first questions.
type late struct {
	Storage
	unanswered int
	err        error
	asked      int
}

func (l *late) Devices(context.Context) ([]Device, error) {
	if l.asked++; l.asked <= l.unanswered {
		return nil, l.err
	}
	return []Device{{Path: "/dev/x"}}, nil
}

func TestPresentWaitsForAStartingProcess(t *testing.T) {
	l := &late{unanswered: 2, err: errs.New(errs.Unavailable, "dial: no such file")}
	devs, err := (&Service{storage: l}).present(t.Context())
	if err != nil || len(devs) != 1 || l.asked != 3 {
		t.Fatalf("got %v, %v after %d questions, want one device at the third", devs, err, l.asked)
	}
}

func TestPresentGivesAnAnswerAtOnce(t *testing.T) {
	broken := errors.New("read sysfs")
	l := &late{unanswered: 1, err: broken}
	if _, err := (&Service{storage: l}).present(t.Context()); !errors.Is(err, broken) || l.asked != 1 {
		t.Fatalf("got %v after %d questions, want the process' own error at the first", err, l.asked)
	}
}

func TestPresentEndsWithItsCaller(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l := &late{unanswered: 1 << 30, err: errs.New(errs.Unavailable, "dial: no such file")}
	if _, err := (&Service{storage: l}).present(ctx); !errors.Is(err, errs.Unavailable) {
		t.Fatalf("got %v, want that it is unavailable", err)
	}
}

func TestWorthTelling(t *testing.T) {
	was := model.DiskStatus{State: model.DiskActive, Used: 100 * size.MiB}
	for _, c := range []struct {
		name  string
		used  size.Bytes
		state model.DiskState
		rests bool
		want  bool
	}{
		{"nothing changed", 100 * size.MiB, model.DiskActive, true, false},
		{"little, and it changes", 110 * size.MiB, model.DiskActive, false, false},
		{"little, and it rests", 110 * size.MiB, model.DiskActive, true, true},
		{"less, and it rests", 90 * size.MiB, model.DiskActive, true, true},
		{"much", 164 * size.MiB, model.DiskActive, false, true},
		{"much less", 36 * size.MiB, model.DiskActive, false, true},
		{"the state", 100 * size.MiB, model.DiskFailed, false, true},
	} {
		if got := worthTelling(was, model.DiskStatus{State: c.state, Used: c.used}, c.rests); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func TestAClaimMayBeAskedForTwice(t *testing.T) {
	s := &Service{env: &svc.Env{NodeName: "n1"}, storage: &held{devs: []Device{{Path: "/dev/a", State: model.DiskActive}, {Path: "/dev/b", State: model.DiskFailed}}}}
	if devs, err := s.check(t.Context(), "claim", []string{"/dev/a"}); err != nil || len(devs) != 1 {
		t.Errorf("claim of an active disk: %v, %v", devs, err)
	}
	if _, err := s.check(t.Context(), "claim", []string{"/dev/b"}); !errors.Is(err, errs.Conflict) {
		t.Errorf("claim of a failed disk: got %v, want a conflict", err)
	}
	if _, err := s.check(t.Context(), "wipe", []string{"/dev/a"}); !errors.Is(err, errs.Conflict) {
		t.Errorf("wipe of an active disk: got %v, want a conflict", err)
	}
}

// held is a storage process that holds these devices.
type held struct {
	Storage
	devs []Device
}

func (h *held) Devices(context.Context) ([]Device, error) { return h.devs, nil }

// What is at a path now is meant, not the claimed disk that was there.
func TestFindPrefersWhatIsThere(t *testing.T) {
	devs := []Device{
		{Path: "/dev/sdb", ID: ids.New(), State: model.DiskFailed},
		{Path: "/dev/sda", ID: ids.New(), State: model.DiskActive},
		{Path: "/dev/sdb", State: model.DiskFree},
	}
	for _, c := range []struct {
		path string
		want int
	}{{"/dev/sdb", 2}, {"sdb", 2}, {"sda", 1}} {
		if d, err := find(devs, c.path); err != nil || d != devs[c.want] {
			t.Errorf("%s: %+v, %v", c.path, d, err)
		}
	}
	if _, err := find(devs, "sdc"); errs.Kind(err) != errs.NotFound {
		t.Errorf("no such disk: %v", err)
	}
}

// A failed disk may be wiped, unless a volume would lose its last in-sync copy.
func TestLastCopyIsNotWiped(t *testing.T) {
	a, b, vol := ids.New(), ids.New(), ids.New()
	rec := &repl.VolumeRecord{ID: vol, Seg: repl.Segments{Disks: []ids.ID{a, b}, Map: [][]uint16{{0, 1}, {1, 0}}}}
	vols := map[ids.ID]*repl.VolumeRecord{vol: rec}
	if got := lastOn(vols, a); !got.IsZero() {
		t.Errorf("two copies are in sync: got %s", got)
	}
	rec.Own.Out = map[ids.ID]repl.Out{b: {}}
	if got := lastOn(vols, a); got != vol {
		t.Errorf("the other copy is out: got %s, want %s", got, vol)
	}
	if got := lastOn(vols, b); !got.IsZero() {
		t.Errorf("a copy that is out is nobody's last: got %s", got)
	}
}
