package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"roseau/internal/svc/member"
)

// holdsKey reports whether the machine has the authority's key.
func (m *machine) holdsKey() bool {
	_, err := os.Stat(filepath.Join(m.root, "var/lib/roseau/pki/ca.key"))
	return err == nil
}

// voterSet waits until exactly the named machines vote, by their members.
func voterSet(t *testing.T, m *machine, limit time.Duration, want ...string) {
	t.Helper()
	eventually(t, limit, fmt.Sprintf("voters %v", want), func() error {
		have := map[string]member.MemberState{}
		for _, mem := range m.status().Members {
			have[mem.Node] = mem
		}
		for _, n := range want {
			if mem, ok := have[n]; !ok || mem.Learner || !mem.Answers {
				return fmt.Errorf("%s: %+v", n, have)
			}
		}
		if len(have) != len(want) {
			return fmt.Errorf("%d members: %+v", len(have), have)
		}
		return nil
	})
}

// TestVoterReplaced: a dead voter's place goes to the fourth node, the
// authority's key with it; the one that returns is a client without the key; a
// voter that is removed gives its place to it.
func TestVoterReplaced(t *testing.T) {
	needsTime(t)
	t.Parallel()
	ms := newMachines(t, 4)
	n1, n2, n4 := ms[0], ms[1], ms[3]
	cluster(t, ms)
	voterSet(t, n1, 10*time.Second, "n1", "n2", "n3")
	if n4.holdsKey() {
		t.Error("a node that does not vote holds the authority's key")
	}
	n2.kill()
	voterSet(t, n1, 40*time.Second, "n1", "n3", "n4")
	if !n4.holdsKey() {
		t.Error("a node that votes does not hold the authority's key")
	}
	n2.start()
	eventually(t, 20*time.Second, "n2 is back as a client", func() error {
		if n2.holdsKey() {
			return errors.New("it holds the authority's key still")
		}
		return aliveNode(n1, "n2")
	})
	if _, err := n2.c.Do(t.Context(), "POST", "/v1/tokens", struct{}{}, nil); err != nil {
		t.Errorf("a change through the client: %v", err)
	}
	task, err := n1.c.Change(t.Context(), "DELETE", "/v1/nodes/n3", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if end, err := n1.c.WaitTask(t.Context(), task.ID.String(), nil); err != nil || end.Error != nil {
		t.Fatalf("remove n3: %+v, %v", end, err)
	}
	voterSet(t, n1, 20*time.Second, "n1", "n2", "n4")
	if !n2.holdsKey() {
		t.Error("n2 votes again without the authority's key")
	}
}

func aliveNode(m *machine, name string) error {
	for _, n := range m.status().Nodes {
		if n.Name == name && n.Alive {
			return nil
		}
	}
	return errors.New(name + " has no session")
}

// TestFiveVoters: the fourth node waits for the fifth; then both vote, and two
// of five may be killed at once.
func TestFiveVoters(t *testing.T) {
	needsTime(t)
	t.Parallel()
	ms := newMachines(t, 5)
	cluster(t, ms)
	st := votes(t, ms[0], 5, 30*time.Second)
	if st.Quorum.Nodes != 2 {
		t.Errorf("five voters: %+v", st.Quorum)
	}
	ms[1].kill()
	ms[2].kill()
	eventually(t, 15*time.Second, "the other three decide", func() error {
		_, err := ms[4].c.Do(t.Context(), "POST", "/v1/tokens", struct{}{}, nil)
		return err
	})
}
