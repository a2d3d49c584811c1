package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/block/volume"
	"roseau/internal/core/repl"
	"roseau/internal/drill/probe"
	"roseau/internal/driver/etcd"
	"roseau/internal/driver/guardctl"
	"roseau/internal/model"
	"roseau/internal/nodeconf"
	"roseau/internal/pki"
)

// takerEnv makes the test's binary a taker: a process on a lab's node that asks for the
// volumes of a VM as a guard does, and stops between PREPARE and the CAS.
const takerEnv = "ROSEAU_E2E_TAKER"

// takerMain reads the configuration of the VM's guard, then orders: prepare waits until
// the volumes may be taken, try asks once, claim makes the CAS, leave forgets all.
func takerMain(in io.Reader, out io.Writer) error {
	r := bufio.NewReader(in)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return err
	}
	var of guardctl.Config
	if err := json.Unmarshal(line, &of); err != nil {
		return err
	}
	self, err := nodeconf.Load(paths.NodeConfig)
	if err != nil {
		return err
	}
	identity, err := pki.Load(paths.PKI)
	if err != nil {
		return err
	}
	client, err := etcd.Dial(identity, of.Etcd)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var set volume.Handle
	defer func() {
		if set != nil {
			set.Close()
		}
	}()
	for sc := bufio.NewScanner(r); sc.Scan(); {
		if set == nil {
			// No VM in it: the placement names another node, which only binds guards.
			set, err = volume.Open(ctx, volume.Config{Cluster: of.Cluster, Generation: of.Generation, Node: self.Node, Guard: ids.New(), Run: ids.New(),
				Purpose: repl.PurposeVM, Volumes: of.Volumes(), Etcd: client, Identity: identity, Nodes: takerPeers(of.Nodes), Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
			if err != nil {
				return err
			}
		}
		switch sc.Text() {
		case "prepare", "try":
			for {
				p, err := set.Prepare(ctx)
				if err != nil {
					return err
				}
				if p.Ready || sc.Text() == "try" {
					fmt.Fprintf(out, "ready %v live %v %s\n", p.Ready, p.Live, p.Text)
					break
				}
			}
		case "claim":
			o, err := set.Claim(ctx, volume.Claim{})
			fmt.Fprintf(out, "claim %s %v\n", o, err)
		case "leave":
			err := set.Close()
			set = nil
			fmt.Fprintf(out, "left %v\n", err)
		}
	}
	return nil
}

// takerPeers is the directory of a guard's configuration.
type takerPeers []guardctl.Peer

func (d takerPeers) StorageAddrs(node ids.ID) (out []string) {
	for _, p := range d {
		if p.ID == node {
			for _, role := range []model.NetworkRole{model.RoleStorage, model.RoleCluster} {
				for _, ip := range p.Addresses[role] {
					out = append(out, net.JoinHostPort(ip, strconv.Itoa(paths.PortStorage)))
				}
			}
		}
	}
	return out
}

// taker is such a process.
type taker struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
}

// newTaker starts one on a node, for the volumes that a VM's guard has.
func newTaker(t *testing.T, node, home string, vm ids.ID) *taker {
	t.Helper()
	config := strings.TrimSpace(inNode(t, home, "cat", "/run/roseau/vm/"+vm.String()+"/config.json"))
	var line strings.Builder
	enc := json.NewEncoder(&line)
	if err := enc.Encode(json.RawMessage(config)); err != nil { // one line
		t.Fatal(err)
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	const there = "/run/roseau-lab/taker" // the node does not see the test's directory
	put := exec.Command(roseau, "lab", "exec", "--name", labName, node, "--", "sh", "-c", "cat > "+there+" && chmod 700 "+there)
	put.Stdin = self
	if out, err := put.CombinedOutput(); err != nil {
		t.Fatalf("put the taker on %s: %v\n%s", node, err, out)
	}
	cmd := exec.Command(roseau, "lab", "exec", "--name", labName, node, "--", "env", takerEnv+"=1", there)
	k := &taker{t: t}
	if k.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	cmd.Stderr = &log
	k.out = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.in.Close() // it ends at the end of its orders
		if err := cmd.Wait(); err != nil {
			t.Errorf("the taker: %v\n%s", err, log.String())
		}
		inNode(t, node, "rm", there)
	})
	if _, err := io.WriteString(k.in, line.String()); err != nil {
		t.Fatal(err)
	}
	return k
}

// do gives an order and returns the answer.
func (k *taker) do(order string) string {
	k.t.Helper()
	if _, err := fmt.Fprintln(k.in, order); err != nil {
		k.t.Fatal(err)
	}
	s, err := k.out.ReadString('\n')
	if err != nil {
		k.t.Fatalf("taker, %s: %v", order, err)
	}
	return s
}

// Row 41: a VM's node is cut off until its volumes may be taken, and its networks heal
// between the PREPARE and the CAS of whoever wants them.
func TestHealsBetweenPrepareAndClaim(t *testing.T) {
	long(t)
	heals(t)
	// Without HA nobody else asks for the volumes: the test alone is the taker.
	g := newGuest(t, "heals", 34, "--ha", "off")
	must(t, time.Minute, "vm", "start", "heals")
	before := g.up(t, "")
	g.fill(t)
	home, vm := guardOf(t, "heals")
	run := showVM(t, "heals").Status.Run
	whole(t)
	k := newTaker(t, another(t, home), home, vm)
	if s := k.do("try"); !strings.HasPrefix(s, "ready false live true") {
		t.Fatalf("a PREPARE beside a healthy guard: %s", s)
	}
	k.do("leave")
	for _, network := range []string{"storage", "cluster"} {
		must(t, time.Minute, "lab", "link", "cut", home, "--network", network, "--name", labName)
	}
	cut := time.Now()
	if s := k.do("prepare"); !strings.HasPrefix(s, "ready true") {
		t.Fatalf("PREPARE while the node is cut off: %s", s)
	}
	prepared := time.Now()
	must(t, time.Minute, "lab", "heal", "--name", labName)
	k.do("leave") // a taker that ends before its CAS: what it reserved ends by itself
	g.wait(t, "going on", func(st probe.Status) bool { return st.Boot == before.Boot })
	stalled := time.Since(prepared)
	t.Logf("prepared %s after the cut; the guest answers %s after that", prepared.Sub(cut).Round(time.Millisecond), stalled.Round(time.Millisecond))
	if stalled > healedWithin {
		t.Errorf("the guest stalled for %s after the PREPARE, at most %s allowed", stalled, healedWithin)
	}
	// Now it is healthy: the next PREPARE fails, and without one there is no CAS.
	eventually(t, 20*time.Second, "a PREPARE to find the writer alive", func() bool { return strings.HasPrefix(k.do("try"), "ready false live true") })
	if s := k.do("claim"); !strings.HasPrefix(s, "claim not made") {
		t.Errorf("a CAS beside a healthy writer: %s", s)
	}
	k.do("leave")
	whole(t)
	if now := waitVM(t, "heals", "running", running); now.Status.Run != run || now.Status.Node != home {
		t.Errorf("run %s on %s, was %s on %s", now.Status.Run, now.Status.Node, run, home)
	}
	g.filled(t)
	g.sameGuest(t, before)
}

// healedWithin is the 2 s of a reservation, and as much again for connections that are
// made anew and the guest's own network.
const healedWithin = 5 * time.Second
