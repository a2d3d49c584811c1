package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/svc/member"
	"roseau/internal/witness"
)

// witnessEnv makes the test binary be a witness with its data in the directory
// named.
const witnessEnv = "ROSEAU_TEST_WITNESS"

func witnessMain(ctx context.Context, dir string) error {
	return witness.Run(ctx, witness.Options{Dir: dir, Version: "test", Clock: clock.System{}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
}

// third is a `roseau witness run` process.
type third struct {
	t    *testing.T
	dir  string
	addr string
	cmd  *exec.Cmd
}

func newThird(t *testing.T) *third {
	t.Helper()
	dir, err := os.MkdirTemp("", "rsw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &third{t: t, dir: filepath.Join(dir, "w"), addr: freeAddress()}
	t.Cleanup(func() { w.stop(syscall.SIGTERM) })
	return w
}

func (w *third) join(via *machine, name string) error {
	var out struct{ Token string }
	if _, err := via.c.Do(w.t.Context(), "POST", "/v1/tokens", map[string]any{"witness": true}, &out); err != nil {
		return err
	}
	return witness.Join(w.t.Context(), w.dir, witness.JoinRequest{Token: out.Token, Name: name, Address: w.addr})
}

func (w *third) start() {
	w.t.Helper()
	w.cmd = exec.Command(os.Args[0])
	w.cmd.Env = append(os.Environ(), witnessEnv+"="+w.dir)
	log, err := os.OpenFile(filepath.Join(filepath.Dir(w.dir), "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer log.Close()
	w.cmd.Stderr = log
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := w.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *third) stop(sig syscall.Signal) {
	if w.cmd == nil {
		return
	}
	w.cmd.Process.Signal(sig)
	w.cmd.Wait()
	w.cmd = nil
	if w.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(filepath.Dir(w.dir), "log"))
		w.t.Logf("log of the witness:\n%s", log[max(0, len(log)-6000):])
	}
}

// votes waits until the cluster has so many votes, all of which answer.
func votes(t *testing.T, m *machine, want int, limit time.Duration) member.Status {
	t.Helper()
	var st member.Status
	eventually(t, limit, fmt.Sprintf("%d votes", want), func() error {
		st = m.status()
		if st.Quorum.Voters != want || st.Quorum.Answer != want {
			return fmt.Errorf("%d votes, %d answer: %s", st.Quorum.Voters, st.Quorum.Answer, st.Quorum.Text)
		}
		return nil
	})
	return st
}

// cluster makes one cluster of the machines.
func cluster(t *testing.T, ms []*machine) {
	t.Helper()
	if _, err := ms[0].c.Do(t.Context(), "POST", "/v1/cluster", member.InitRequest{NodeRequest: ms[0].request()}, nil); err != nil {
		t.Fatal(err)
	}
	for _, m := range ms[1:] {
		if err := m.join(ms[0].token()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWitness: three nodes and a witness go on with one node; a witness that
// ends in order takes its votes along; one that was put back to an older state
// comes back under new ids; a witness of another cluster is refused.
func TestWitness(t *testing.T) {
	needsTime(t)
	t.Parallel()
	ms := newMachines(t, 4)
	n1, n2, n3, other := ms[0], ms[1], ms[2], ms[3]
	cluster(t, ms[:3])
	w := newThird(t)
	if err := w.join(n1, "w1"); err != nil {
		t.Fatal(err)
	}
	checkOneWitness(t, w, n1, other)
	w.start()
	st := votes(t, n1, 5, 30*time.Second)
	if !strings.HasPrefix(st.Quorum.Text, "Any 2 of n1, n2 and n3 can fail next, at once or one after the other") || st.Quorum.Nodes != 2 || st.Witness.Votes != 2 {
		t.Errorf("with a witness: %+v, %+v", st.Quorum, st.Witness)
	}
	checkPutBack(t, w, n1)
	checkTwoDie(t, n1, n2, n3)
	checkLeave(t, w, n1)
}

func checkOneWitness(t *testing.T, w *third, n1, other *machine) {
	second := newThird(t)
	if err := second.join(n1, "w2"); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "has a witness already: w1") || errs.Hint(err) == "" {
		t.Errorf("a second witness: %v (hint %q)", err, errs.Hint(err))
	}
	if _, err := other.c.Do(t.Context(), "POST", "/v1/cluster", member.InitRequest{ClusterName: "elsewhere", NodeRequest: other.request()}, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.join(other, "w1"); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "holds witness w1 of cluster roseau") || !strings.Contains(errs.Hint(err), "--data-dir") {
		t.Errorf("a witness of another cluster: %v (hint %q)", err, errs.Hint(err))
	}
	if err := second.joinToken(n1.token()); !errors.Is(err, errs.Denied) || !strings.Contains(errs.Hint(err), "roseau witness add") {
		t.Errorf("a node's token: %v", err)
	}
}

func (w *third) joinToken(token string) error {
	return witness.Join(w.t.Context(), w.dir, witness.JoinRequest{Token: token, Name: "w", Address: w.addr})
}

func witnessMembers(st member.Status) string {
	var out []string
	for _, m := range st.Members {
		if strings.HasPrefix(m.Node, "w1/") {
			out = append(out, m.ID)
		}
	}
	return strings.Join(out, " ")
}

// checkPutBack restores an older copy of the witness's data behind its back.
func checkPutBack(t *testing.T, w *third, n1 *machine) {
	before := witnessMembers(n1.status())
	copyDir := filepath.Join(filepath.Dir(w.dir), "copy")
	w.stop(syscall.SIGKILL)
	if out, err := exec.Command("cp", "-a", w.dir, copyDir).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	w.start() // quick enough to keep its votes
	eventually(t, 20*time.Second, "the second start counts", func() error {
		if st := n1.status(); st.Witness.Starts < 2 || !st.Witness.Present {
			return fmt.Errorf("%+v", st.Witness)
		}
		return nil
	})
	if got := witnessMembers(votes(t, n1, 5, 20*time.Second)); got != before {
		t.Errorf("a plain restart changed its members: %s, were %s", got, before)
	}
	w.stop(syscall.SIGKILL)
	if err := errors.Join(os.RemoveAll(w.dir), os.Rename(copyDir, w.dir)); err != nil {
		t.Fatal(err)
	}
	w.start()
	eventually(t, 20*time.Second, "the old members go", func() error {
		for _, id := range strings.Fields(before) {
			for _, m := range n1.status().Members {
				if m.ID == id {
					return fmt.Errorf("member %s stays", id)
				}
			}
		}
		return nil
	})
	if got := witnessMembers(votes(t, n1, 5, 30*time.Second)); got == "" || got == before {
		t.Errorf("members of the witness that was put back: %q, were %q", got, before)
	}
}

// checkTwoDie kills two of three nodes at once: the last decides.
func checkTwoDie(t *testing.T, n1, n2, n3 *machine) {
	n2.kill()
	n3.kill()
	began := time.Now()
	eventually(t, 15*time.Second, "the last node decides", func() error {
		_, err := n1.c.Do(t.Context(), "POST", "/v1/tokens", struct{}{}, nil)
		return err
	})
	t.Logf("the last node decides %s after two were killed", time.Since(began))
	eventually(t, 10*time.Second, "the last node leads", func() error {
		if q := n1.status().Quorum; q.Leader != "n1" || q.Answer != 3 || !strings.HasPrefix(q.Text, "n1 is the last node that votes") {
			return fmt.Errorf("%+v", q)
		}
		return nil
	})
	n2.start()
	n3.start()
	votes(t, n1, 5, 20*time.Second)
}

// checkLeave ends the witness in order: its votes go at once.
func checkLeave(t *testing.T, w *third, n1 *machine) {
	began := time.Now()
	w.stop(syscall.SIGTERM)
	if took := time.Since(began); took > 9*time.Second {
		t.Errorf("an orderly end took %s", took)
	}
	st := n1.status()
	if st.Quorum.Voters != 3 || !strings.HasPrefix(st.Quorum.Text, "Any 1 of n1, n2 and n3") {
		t.Errorf("after an orderly end: %+v", st.Quorum)
	}
	task, err := n1.c.Change(t.Context(), "DELETE", "/v1/witness/w1", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if end, err := n1.c.WaitTask(t.Context(), task.ID.String(), nil); err != nil || end.Error != nil {
		t.Errorf("remove: %+v, %v", end, err)
	}
}
