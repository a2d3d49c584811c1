package seat

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"roseau/internal/base/clock"
	"roseau/internal/driver/etcd"
	"roseau/internal/nodeconf"
)

func TestJudge(t *testing.T) {
	learner := &etcd.Member{ID: 7, Learner: true}
	running := &etcd.Member{ID: 7, Name: "n"}
	for _, c := range []struct {
		says    string
		saved   nodeconf.Seat
		found   *etcd.Member
		hasData bool
		want    verdict
	}{
		{"a client stays one", nodeconf.Seat{}, nil, false, stay},
		{"a client is named", nodeconf.Seat{}, learner, false, begin},
		{"old data of another seat are cleared", nodeconf.Seat{}, learner, true, begin},
		{"named under another id", nodeconf.Seat{Seated: true, Member: 5}, learner, true, begin},
		{"announced, not started: the list may have grown", nodeconf.Seat{Seated: true, Member: 7}, learner, false, again},
		{"started, not yet known to others", nodeconf.Seat{Seated: true, Member: 7}, learner, true, stay},
		{"runs", nodeconf.Seat{Seated: true, Member: 7}, running, true, stay},
		{"removed", nodeconf.Seat{Seated: true, Member: 7}, nil, true, leave},
		{"makes the cluster", nodeconf.Seat{Seated: true}, nil, false, stay},
		{"made the cluster", nodeconf.Seat{Seated: true}, running, true, stay},
		{"somebody else's: never clear a voter that runs", nodeconf.Seat{Seated: true, Member: 5}, running, true, foreign},
		{"somebody else's, as a client", nodeconf.Seat{}, running, false, foreign},
	} {
		if got := judge(c.saved, c.found, c.hasData); got != c.want {
			t.Errorf("%s: %d, want %d", c.says, got, c.want)
		}
	}
}

// TestStartingMemberKeepsItsData: the list grows while the member is being
// started for the first time. What it writes meanwhile must not be cleared.
func TestStartingMemberKeepsItsData(t *testing.T) {
	dir := t.TempDir()
	saves := 0
	s := New(Config{Etcd: etcd.Config{Name: "me", Dir: dir}, Peer: "https://me:1", Clock: clock.System{}, Log: slog.New(slog.DiscardHandler),
		Save: func(nodeconf.Seat) error { saves++; return nil }}, nodeconf.Seat{Seated: true, Member: 7, Initial: map[string]string{"me": "https://me:1"}})
	list := []etcd.Member{{ID: 7, Learner: true, PeerURLs: []string{"https://me:1"}}, {ID: 8, Learner: true, PeerURLs: []string{"https://other:1"}}}
	s.busy.Lock() // it is being started
	if err := s.Follow(t.Context(), list); err != nil || saves != 0 {
		t.Fatalf("while it starts: %d saves, %v", saves, err)
	}
	wal := filepath.Join(dir, "member", "wal")
	if err := errors.Join(os.MkdirAll(wal, 0o700), os.WriteFile(filepath.Join(wal, "0.wal"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	s.busy.Unlock()
	if err := s.renew(map[string]string{"me": "https://me:1", "other": "https://other:1"}); err != nil || saves != 0 {
		t.Fatalf("with data: %d saves, %v", saves, err)
	}
	if _, err := os.Stat(filepath.Join(wal, "0.wal")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "member")); err != nil {
		t.Fatal(err)
	}
	if err := s.Follow(t.Context(), list); err != nil || saves != 1 || len(s.Saved().Initial) != 2 {
		t.Fatalf("not started yet: %d saves, %+v, %v", saves, s.Saved(), err)
	}
}
