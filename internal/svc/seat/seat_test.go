package seat

import (
	"testing"

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
