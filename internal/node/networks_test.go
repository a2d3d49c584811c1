package node

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"roseau/internal/model"
	"roseau/internal/svc/member"
)

// networks are two switches, in a namespace of their own, and a namespace for
// each machine with a cable to both.
type networks struct {
	t     *testing.T
	board *space
	nodes []*space
}

// space is a network namespace with a thread in it, which lives as long as the
// test: a daemon ends with the thread that started it.
type space struct {
	ns    netns.NsHandle
	calls chan func()
}

// prefixes of the two networks, in the order of their roles.
var (
	prefixes = []string{"10.66.0.", "10.66.1."}
	roles    = []model.NetworkRole{model.RoleCluster, model.RoleStorage}
)

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{calls: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var err error
		s.ns, err = netns.New()
		made <- err
		for f := range s.calls {
			f()
		}
	}()
	t.Cleanup(func() { close(s.calls) })
	if err := <-made; err != nil {
		t.Skipf("no network namespaces: %v", err)
	}
	t.Cleanup(func() { s.ns.Close() })
	return s
}

// within runs f in the namespace.
func (s *space) within(f func() error) error {
	done := make(chan error)
	s.calls <- func() { done <- f() }
	return <-done
}

func newNetworks(t *testing.T, count int) *networks {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	w := &networks{t: t}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w.board = newSpace(t)
	must(w.board.within(func() error {
		for i := range prefixes {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = fmt.Sprintf("sw%d", i)
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
				return err
			}
			if err := up(attrs.Name); err != nil {
				return err
			}
		}
		return nil
	}))
	for n := 1; n <= count; n++ {
		node := newSpace(t)
		must(node.within(func() error { return up("lo") }))
		w.nodes = append(w.nodes, node)
		for i := range prefixes {
			must(w.board.within(func() error { return plug(n, i, node.ns) }))
			must(node.within(func() error {
				name := fmt.Sprintf("net%d", i)
				link, err := netlink.LinkByName(name)
				if err != nil {
					return err
				}
				addr, err := netlink.ParseAddr(address(n, i) + "/24")
				if err != nil {
					return err
				}
				return errors.Join(netlink.AddrAdd(link, addr), up(name))
			}))
		}
	}
	return w
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func address(n, network int) string { return fmt.Sprintf("%s%d", prefixes[network], n) }

func port(n, network int) string { return fmt.Sprintf("p%dn%d", network, n) }

// plug lays a cable from a switch to machine n.
func plug(n, network int, ns netns.NsHandle) error {
	bridge, err := netlink.LinkByName(fmt.Sprintf("sw%d", network))
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = port(n, network), bridge.Attrs().Index
	far := fmt.Sprintf("net%d", network)
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: far, PeerNamespace: netlink.NsFd(ns)}); err != nil {
		return err
	}
	return up(attrs.Name)
}

// set cuts or restores the cables of machines to one network.
func (w *networks) set(network int, connected bool, machines ...int) {
	w.t.Helper()
	err := w.board.within(func() error {
		for _, n := range machines {
			link, err := netlink.LinkByName(port(n, network))
			if err != nil {
				return err
			}
			if connected {
				err = netlink.LinkSetUp(link)
			} else {
				err = netlink.LinkSetDown(link)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// machines starts a daemon in each namespace, with an address on each network.
func (w *networks) machines() []*machine {
	w.t.Helper()
	var out []*machine
	for i, node := range w.nodes {
		m := prepareMachine(w.t, i+1)
		m.addrs = map[model.NetworkRole][]string{}
		for k, role := range roles {
			m.addrs[role] = []string{address(i+1, k)}
		}
		m.within = node.within
		out = append(out, m)
	}
	startAll(w.t, out)
	return out
}

// reachable waits until each member stands in etcd's list with both addresses.
func reachable(t *testing.T, m *machine, count int) {
	t.Helper()
	eventually(t, 60*time.Second, "members with two addresses", func() error {
		st := m.status()
		if len(st.Members) != count {
			return fmt.Errorf("%d members", len(st.Members))
		}
		for _, mem := range st.Members {
			if len(mem.Addresses) != 2 {
				return fmt.Errorf("%s is known at %v", mem.Node, mem.Addresses)
			}
		}
		return nil
	})
}

// changes waits until a change is possible through each of the machines.
func changes(t *testing.T, what string, ms ...*machine) {
	t.Helper()
	began := time.Now()
	for _, m := range ms {
		eventually(t, 60*time.Second, "a change on "+m.name+" "+what, func() error {
			_, err := m.c.Do(t.Context(), "POST", "/v1/tokens", struct{}{}, nil)
			return err
		})
	}
	t.Logf("%s: changes on all after %s", what, time.Since(began).Round(10*time.Millisecond))
}

// TestTwoNetworks: either network is cut, on one machine and on all. The cluster
// decides, every node keeps a session, and what is silent is shown; a node dies
// meanwhile, and the other two go on. Not beside others: the threads of its namespaces end
// with it, and with a thread the daemons that were started on it (Pdeathsig).
func TestTwoNetworks(t *testing.T) {
	needsTime(t)
	w := newNetworks(t, 3)
	ms := w.machines()
	cluster(t, ms)
	reachable(t, ms[0], 3)
	alive := func(what string, st func() member.Status, want int) {
		t.Helper()
		eventually(t, 60*time.Second, what, func() error {
			n := 0
			for _, node := range st().Nodes {
				if node.Alive {
					n++
				}
			}
			if q := st().Quorum; n != want || q.Answer != want {
				return fmt.Errorf("%d sessions, %s", n, q.Text)
			}
			return nil
		})
	}
	for k, role := range roles {
		for _, cut := range [][]int{{1, 2, 3}, {2}} {
			what := fmt.Sprintf("with the %s network cut on %v", role, cut)
			w.set(k, false, cut...)
			changes(t, what, ms...)
			alive("three sessions "+what, ms[1].status, 3)
			silent := ms[cut[0]%3] // one that hears of it: a machine beside the first that is cut
			eventually(t, 30*time.Second, "the silent network shows "+what, func() error {
				for _, n := range silent.status().Nodes {
					if n.Name == ms[cut[0]-1].name && fmt.Sprint(n.Silent) == fmt.Sprint([]model.NetworkRole{role}) {
						return nil
					}
				}
				return fmt.Errorf("%+v", silent.status().Nodes)
			})
			w.set(k, true, cut...)
			eventually(t, 30*time.Second, "every beat is heard again", func() error {
				for _, n := range silent.status().Nodes {
					if len(n.Silent) > 0 {
						return fmt.Errorf("%s: %v", n.Name, n.Silent)
					}
				}
				return nil
			})
		}
	}
	w.set(0, false, 1, 2, 3)
	ms[2].kill()
	changes(t, "with the cluster network cut and n3 dead", ms[0], ms[1])
	ms[2].start() // with its cluster network cut still
	alive("n3 is back by the storage network", ms[0].status, 3)
	w.set(0, true, 1, 2, 3)
	changes(t, "with all networks back", ms...)
}
