package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/client"
	"roseau/internal/core/quorum"
	"roseau/internal/model"
	"roseau/internal/svc/member"
)

// daemonEnv makes the test binary be a daemon, so that the tests below have
// real processes to kill.
const daemonEnv = "ROSEAU_TEST_DAEMON"

func TestMain(m *testing.M) {
	if dir := os.Getenv(witnessEnv); dir != "" || os.Getenv(daemonEnv) != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		var err error
		if dir != "" {
			err = witnessMain(ctx, dir)
		} else {
			// What takes minutes of silence takes seconds here; the order of events stays.
			timers := quorum.Timers{VoterDead: 4 * time.Second, WitnessSteady: 3 * time.Second}
			err = Run(ctx, Options{Version: "test", Clock: clock.System{}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Timers: timers})
		}
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// needsTime skips what takes a minute of real clusters, unless asked for.
func needsTime(t *testing.T) {
	t.Helper()
	if os.Getenv("ROSEAU_E2E") == "" {
		t.Skip("set ROSEAU_E2E=1: clusters of processes, a minute each")
	}
}

// machine is one `roseau node` process with a root directory and a loopback
// address of its own.
type machine struct {
	t    *testing.T
	name string
	root string
	addr string
	// addrs are its addresses in place of addr, within the namespace that it runs in;
	// nil: a loopback address in the test's.
	addrs  map[model.NetworkRole][]string
	within func(func() error) error
	cmd    *exec.Cmd
	c      *client.Client
}

func newMachines(t *testing.T, count int) []*machine {
	t.Helper()
	var out []*machine
	for i := 1; i <= count; i++ {
		out = append(out, prepareMachine(t, i))
	}
	startAll(t, out)
	return out
}

// startAll starts machines, and ends them with the test: all at once, for a member
// that is left over without the others takes its time.
func startAll(t *testing.T, ms []*machine) {
	t.Helper()
	t.Cleanup(func() {
		var all sync.WaitGroup
		for _, m := range ms {
			all.Go(m.stop)
		}
		all.Wait()
	})
	for _, m := range ms {
		m.start()
	}
}

var addresses atomic.Uint32

// freeAddress is a loopback address that no other test uses, of this process or of
// another one.
func freeAddress() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 64+pid>>8&0x3f, pid&0xff, 1+addresses.Add(1)%250)
}

func prepareMachine(t *testing.T, i int) *machine {
	t.Helper()
	// Short: a socket's path has at most 107 bytes.
	root, err := os.MkdirTemp("", "rs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	m := &machine{t: t, name: fmt.Sprintf("n%d", i), root: root, addr: freeAddress()}
	m.c = client.Local(filepath.Join(root, "run/roseau/api.sock"))
	return m
}

func (m *machine) start() {
	m.t.Helper()
	m.cmd = exec.Command(os.Args[0])
	m.cmd.Env = append(os.Environ(), daemonEnv+"=1", "ROSEAU_ROOT="+m.root)
	log, err := os.OpenFile(filepath.Join(m.root, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	m.cmd.Stderr = log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if m.within == nil {
		err = m.cmd.Start()
	} else {
		err = m.within(m.cmd.Start)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	eventually(m.t, 10*time.Second, "the daemon of "+m.name+" answers", func() error {
		var st member.Status
		return m.c.Get(m.t.Context(), "/v1/cluster/status", &st)
	})
}

func (m *machine) kill() {
	m.cmd.Process.Kill()
	m.cmd.Wait()
}

// stop ends the daemon in order and shows its log if the test failed.
func (m *machine) stop() {
	if m.cmd == nil || m.cmd.Process == nil {
		return // it did not come to its start
	}
	m.cmd.Process.Signal(syscall.SIGTERM)
	m.cmd.Wait()
	if m.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(m.root, "log"))
		m.t.Logf("log of %s:\n%s", m.name, log[max(0, len(log)-6000):])
	}
}

func (m *machine) request() member.NodeRequest {
	if m.addrs != nil {
		return member.NodeRequest{Name: m.name, Addresses: m.addrs}
	}
	return member.NodeRequest{Name: m.name, Addresses: map[model.NetworkRole][]string{model.RoleCluster: {m.addr}}}
}

func (m *machine) token() string {
	m.t.Helper()
	var out struct{ Token string }
	if _, err := m.c.Do(m.t.Context(), "POST", "/v1/tokens", struct{}{}, &out); err != nil {
		m.t.Fatalf("token: %v", err)
	}
	return out.Token
}

func (m *machine) join(token string) error {
	_, err := m.c.Do(m.t.Context(), "POST", "/v1/cluster/join", member.LocalJoinRequest{Token: token, NodeRequest: m.request()}, nil)
	return err
}

func (m *machine) status() member.Status {
	m.t.Helper()
	var st member.Status
	if err := m.c.Get(m.t.Context(), "/v1/cluster/status", &st); err != nil {
		m.t.Fatalf("status of %s: %v", m.name, err)
	}
	return st
}

func (m *machine) etcd(running bool) {
	m.t.Helper()
	if _, err := m.c.Do(m.t.Context(), "POST", "/v1/local/etcd", map[string]bool{"running": running}, nil); err != nil {
		m.t.Fatal(err)
	}
}

// eventually polls until cond holds.
func eventually(t *testing.T, limit time.Duration, what string, cond func() error) {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s: %v", limit, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func allAlive(m *machine, want int) error {
	st := m.status()
	alive := 0
	for _, n := range st.Nodes {
		if n.Alive {
			alive++
		}
	}
	if alive != want || st.Quorum.Answer != want {
		return fmt.Errorf("%d nodes alive, %s", alive, st.Quorum.Text)
	}
	return nil
}

// TestThreeNodes is the life of a cluster: init, joins, wrong tokens, a killed
// daemon, a lost quorum, a removed node that joins again.
func TestThreeNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	t.Parallel()
	ms := newMachines(t, 4)
	n1, n2, n3, stranger := ms[0], ms[1], ms[2], ms[3]
	if _, err := n1.c.Do(t.Context(), "POST", "/v1/cluster", member.InitRequest{NodeRequest: n1.request()}, nil); err != nil {
		t.Fatal(err)
	}
	used := n1.token()
	if err := n2.join(used); err != nil {
		t.Fatal(err)
	}
	checkRefusals(t, n1, stranger, used)
	if err := n3.join(n2.token()); err != nil { // any voter can invite
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "three nodes alive", func() error { return allAlive(n3, 3) })
	if got := n3.status().Quorum.Text; !strings.Contains(got, "Any 1 of n1, n2 and n3 can fail next") {
		t.Errorf("quorum in words: %q", got)
	}
	eventually(t, 20*time.Second, "beats from both others", func() error {
		for _, n := range n3.status().Nodes {
			if n.Name != "n3" && n.Beat == "" {
				return errors.New("no beat from " + n.Name)
			}
		}
		return nil
	})
	checkKill(t, n1, n2)
	checkNoQuorum(t, n1, n2, n3)
	checkContext(t, n1)
	checkRemove(t, n1, n3)
}

func checkRefusals(t *testing.T, n1, stranger *machine, used string) {
	refused := func(what string, err error, kind error, words string) {
		t.Helper()
		if !errors.Is(err, kind) || !strings.Contains(err.Error(), words) || errs.Hint(err) == "" {
			t.Errorf("%s: got %v (hint %q), want %v with %q and a hint", what, err, errs.Hint(err), kind, words)
		}
	}
	refused("used token", stranger.join(used), errs.Denied, "used already")
	refused("damaged token", stranger.join(used[:len(used)-9]), errs.Invalid, "read join token")
	inv, err := member.ParseInvitation(n1.token())
	if err != nil {
		t.Fatal(err)
	}
	foreign := inv
	foreign.Fingerprint = strings.Repeat("ab", 32)
	refused("token of another cluster", stranger.join(foreign.String()), errs.Denied, "authority")
	guessed := inv
	guessed.Secret = "guessed"
	refused("wrong secret", stranger.join(guessed.String()), errs.Denied, "secret")
	taken := stranger.request()
	taken.Name = "n1"
	_, err = stranger.c.Do(t.Context(), "POST", "/v1/cluster/join", member.LocalJoinRequest{Token: inv.String(), NodeRequest: taken}, nil)
	refused("name that exists", err, errs.Conflict, "taken")
	if st := stranger.status(); st.Configured {
		t.Errorf("a refused join left the machine configured: %+v", st)
	}
	refused("init of a node", n1.join(inv.String()), errs.Conflict, "already")
}

// checkKill kills the daemon that made the cluster: the others elect, and it
// comes back as who it was.
func checkKill(t *testing.T, n1, n2 *machine) {
	before := n1.status()
	n1.kill()
	began := time.Now()
	eventually(t, 10*time.Second, "a session lost, a new leader", func() error {
		st := n2.status()
		if !st.Quorum.Healthy || st.Quorum.Leader == "n1" {
			return errors.New(st.Quorum.Text)
		}
		for _, n := range st.Nodes {
			if n.Name == "n1" && n.Alive {
				return errors.New("n1 still has a session")
			}
		}
		return nil
	})
	t.Logf("session lost and leader elected after %s", time.Since(began))
	n1.start()
	eventually(t, 10*time.Second, "n1 back", func() error { return allAlive(n1, 3) })
	if after := n1.status(); after.Cluster.ID != before.Cluster.ID || after.Node != before.Node {
		t.Errorf("came back as %s of %s, was %s of %s", after.Node, after.Cluster.ID, before.Node, before.Cluster.ID)
	}
}

// checkNoQuorum stops two members: changes are refused in words, reads go on,
// and all is well again afterwards.
func checkNoQuorum(t *testing.T, n1, n2, n3 *machine) {
	n2.etcd(false)
	n3.etcd(false)
	// A leader that is stopped hands over first, which may take a moment.
	eventually(t, 10*time.Second, "changes refused", func() error {
		_, err := n1.c.Do(t.Context(), "POST", "/v1/tokens", struct{}{}, nil)
		if err == nil {
			return errors.New("a change was made")
		}
		return nil
	})
	for _, m := range []*machine{n1, n2} {
		_, err := m.c.Do(t.Context(), "POST", "/v1/tokens", struct{}{}, nil)
		if !errors.Is(err, errs.Unavailable) || !strings.Contains(errs.Hint(err), "running VMs are not affected") {
			t.Errorf("change on %s without quorum: %v (hint %q)", m.name, err, errs.Hint(err))
		}
		var nodes []*model.Node
		if err := m.c.Get(t.Context(), "/v1/nodes", &nodes); err != nil || len(nodes) != 3 {
			t.Errorf("read on %s without quorum: %d nodes, %v", m.name, len(nodes), err)
		}
		if got := m.status().Quorum; got.Healthy || got.Answer != 1 || !strings.Contains(got.Text, "No quorum") {
			t.Errorf("status on %s without quorum: %+v", m.name, got)
		}
	}
	n2.etcd(true)
	n3.etcd(true)
	eventually(t, 10*time.Second, "changes again", func() error {
		_, err := n2.c.Do(t.Context(), "POST", "/v1/tokens", struct{}{}, nil)
		return err
	})
}

// checkContext reaches the cluster over mutual TLS as a user, and not as nobody.
func checkContext(t *testing.T, n1 *machine) {
	ctx, err := client.NewContext(t.Context(), n1.c, "ann", nil)
	if err != nil {
		t.Fatal(err)
	}
	cs := &client.Contexts{Contexts: map[string]client.Context{"c": ctx}}
	c, err := cs.Client("c")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var nodes []*model.Node
	if err := c.Get(t.Context(), "/v1/nodes", &nodes); err != nil || len(nodes) != 3 {
		t.Errorf("as user: %d nodes, %v", len(nodes), err)
	}
	if _, err := c.Do(t.Context(), "POST", "/v1/local/etcd", map[string]bool{"running": false}, nil); !errors.Is(err, errs.Denied) {
		t.Errorf("a user stops etcd: %v", err)
	}
	out, err := exec.Command("curl", "-sk", "https://"+n1.addr+":7443/v1/nodes").CombinedOutput()
	if err == nil {
		t.Errorf("without a certificate: %s", out)
	}
}

// checkRemove takes n3 out, asked on n3 itself, and lets it join again.
func checkRemove(t *testing.T, n1, n3 *machine) {
	var task *model.Task
	// A vote is not given away while another voter is only just coming back.
	eventually(t, 30*time.Second, "n3 may go", func() (err error) {
		task, err = n3.c.Change(t.Context(), "DELETE", "/v1/nodes/n3", nil, nil)
		return err
	})
	end, err := n1.c.WaitTask(t.Context(), task.ID.String(), nil)
	if err != nil || end.State != model.TaskDone {
		t.Fatalf("remove: %+v, %v", end, err)
	}
	eventually(t, time.Minute, "n3 knows", func() error {
		if n3.status().Configured {
			return errors.New("still configured")
		}
		return nil
	})
	if got := n1.status().Quorum; got.Voters != 2 {
		t.Errorf("voters after removal: %+v", got)
	}
	if err := n3.join(n1.token()); err != nil {
		t.Fatalf("join again: %v", err)
	}
	eventually(t, 10*time.Second, "three again", func() error { return allAlive(n3, 3) })
	var es []model.Event
	if err := n1.c.Get(t.Context(), "/v1/events", &es); err != nil || len(es) < 5 {
		t.Errorf("events: %d, %v", len(es), err)
	}
	rctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := n1.c.Stream(rctx, "GET", "/v1/events?watch=true&limit=1", nil, func([]byte) error { return io.EOF }); !errors.Is(err, io.EOF) {
		t.Errorf("watch of events: %v", err)
	}
}

// TestJoinResumed kills the joiner after it became a node, before it votes: its
// next daemon finishes the join.
func TestJoinResumed(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	t.Parallel()
	ms := newMachines(t, 2)
	n1, n2 := ms[0], ms[1]
	if _, err := n1.c.Do(t.Context(), "POST", "/v1/cluster", member.InitRequest{NodeRequest: n1.request()}, nil); err != nil {
		t.Fatal(err)
	}
	token := n1.token()
	joined := make(chan error, 1)
	go func() { joined <- n2.join(token) }()
	eventually(t, 20*time.Second, "n2 is a node on disk", func() error {
		_, err := os.Stat(filepath.Join(n2.root, "var/lib/roseau/node.json"))
		return err
	})
	n2.kill()
	<-joined
	n2.start()
	eventually(t, 20*time.Second, "n2 finished its join", func() error { return allAlive(n1, 2) })
	if err := n2.join(token); !errors.Is(err, errs.Conflict) {
		t.Errorf("join of a node: %v", err)
	}
}
