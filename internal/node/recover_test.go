package node

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/errs"
)

// TestRecover: two of three nodes are lost for good; the third goes on alone in a
// new generation. A lost one that returns is kept out until it is imported.
func TestRecover(t *testing.T) {
	needsTime(t)
	t.Parallel()
	ms := newMachines(t, 3)
	n1, n2, n3 := ms[0], ms[1], ms[2]
	cluster(t, ms)
	voterSet(t, n1, 10*time.Second, "n1", "n2", "n3")
	name := n1.status().Cluster.Name
	ask := func(m *machine, req RecoverRequest) (RecoverAnswer, error) {
		var ans RecoverAnswer
		_, err := m.c.Do(t.Context(), http.MethodPost, "/v1/local/recover", req, &ans)
		return ans, err
	}
	if _, err := ask(n1, RecoverRequest{Cluster: name, Confirm: name}); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "has a majority") {
		t.Fatalf("recovery of a cluster with a majority: %v", err)
	}
	n2.kill()
	n3.kill()
	if _, err := ask(n1, RecoverRequest{Cluster: name}); !errors.Is(err, errs.Invalid) || !strings.Contains(errs.Hint(err), "--confirm "+name) {
		t.Fatalf("named once: %v (hint %q)", err, errs.Hint(err))
	}
	plan, err := ask(n1, RecoverRequest{Cluster: name, DryRun: true})
	if err != nil || plan.Begun || !strings.Contains(strings.Join(plan.GivenUp, "\n"), "every change is lost that n2 or n3 had and n1 has not") {
		t.Fatalf("dry run: %+v, %v", plan, err)
	}
	if _, err := ask(n1, RecoverRequest{Cluster: name, Confirm: name}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "n1 alone, generation 2", func() error {
		st := n1.status()
		if st.Cluster == nil || st.Cluster.Generation != 2 || !st.Quorum.Healthy || st.Quorum.Voters != 1 {
			return fmt.Errorf("%+v", st.Quorum)
		}
		return nil
	})
	if _, err := n1.c.Do(t.Context(), "POST", "/v1/tokens", struct{}{}, nil); err != nil {
		t.Errorf("a change after the recovery: %v", err)
	}
	// A returning node is told, and kept out; twice, for a restart must not change it.
	for range 2 {
		n2.start()
		eventually(t, 20*time.Second, "n2 is kept out", func() error {
			if st := n2.status(); !strings.Contains(st.Quorum.Text, "was recovered without this node") {
				return errors.New(st.Quorum.Text)
			}
			return nil
		})
		n2.kill()
	}
	n2.start()
	eventually(t, 20*time.Second, "n2 is kept out again", func() error {
		_, err := n2.c.Do(t.Context(), http.MethodPost, "/v1/local/import", ImportRequest{Node: "n2", Confirm: "other"}, nil)
		if !errors.Is(err, errs.Invalid) {
			return fmt.Errorf("import of another name: %w", err)
		}
		return nil
	})
	if _, err := n2.c.Do(t.Context(), http.MethodPost, "/v1/local/import", ImportRequest{Node: "n2", Confirm: "n2"}, nil); err != nil {
		t.Fatal(err)
	}
	voterSet(t, n1, 30*time.Second, "n1", "n2")
}
