// Package lab makes clusters out of one machine: nodes are PID, mount, UTS, IPC
// and network namespaces with a power switch, cables and disks that can be
// pulled. A daemon (Daemon) holds one lab; everything in it hangs from file
// descriptors and pipes of that process, so that a lab cannot outlive it: a
// node's init ends at the end of a pipe, a network namespace with its last
// descriptor, a mount with its namespace. What remains (cgroups, files in the
// lab's directory) is named in records and cleaned by the next Up or Down.
//
// Nothing is added to the host's own network namespace.
package lab

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/paths"
	"roseau/internal/driver/ctlsock"
	"roseau/internal/lab/cable"
	"roseau/internal/lab/initd"
	"roseau/internal/lab/labclient"
	"roseau/internal/unit"
)

// Lab is a running lab.
type Lab struct {
	dir   string
	spec  labclient.Spec
	log   *slog.Logger
	since time.Time
	board *cable.Board
	nodes []*node
	third *node          // the witness's machine; nil: none
	tasks sync.WaitGroup // watchers of nodes
	stop  context.CancelFunc

	mu      sync.Mutex // protects below; taken after a node's mu
	records records
	rng     *rand.Rand
	ready   bool
	down    bool
}

// Daemon runs the lab in dir, described by its spec file, until `down` or the
// end of ctx.
func Daemon(ctx context.Context, dir string, log *slog.Logger) (err error) {
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := cleanLeftovers(dir, log); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := open(dir, log, cancel)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	// All that may listen listens before power: an early failure is an error of `up`.
	control, err := ctlsock.Listen(filepath.Join(dir, labclient.SocketFile))
	if err != nil {
		return err
	}
	fds, err := ctlsock.Listen(filepath.Join(dir, labclient.FDSocket))
	if err != nil {
		return errors.Join(err, control.Close())
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return ctlsock.Serve(ctx, control, l.handler()) })
	g.Go(func() error { return l.serveSockets(ctx, fds) })
	g.Go(func() error {
		if err := l.powerAll(ctx); err != nil {
			return err
		}
		l.mu.Lock()
		l.ready = true
		l.mu.Unlock()
		return nil
	})
	return g.Wait()
}

// lockDir makes sure that one daemon runs a lab.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, errs.New(errs.Conflict, "run lab in %s: another daemon runs it: %w", dir, err)
	}
	return f, nil
}

func open(dir string, log *slog.Logger, stop context.CancelFunc) (l *Lab, err error) {
	l = &Lab{dir: dir, log: log, stop: stop, since: clock.System{}.Wall(), records: records{Inits: map[string]proc{}}}
	b, err := os.ReadFile(filepath.Join(dir, labclient.SpecFile))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &l.spec); err != nil {
		return nil, fmt.Errorf("read %s: %w", labclient.SpecFile, err)
	}
	if l.spec.Seed == 0 {
		var b [8]byte
		crand.Read(b[:]) // never fails since Go 1.24
		l.spec.Seed = binary.LittleEndian.Uint64(b[:])
	}
	l.rng = rand.New(rand.NewPCG(l.spec.Seed, 0x6c6162))
	log.Info("lab starts", "nodes", l.spec.Nodes, "seed", l.spec.Seed)
	if l.records.Daemon, err = identify(os.Getpid()); err != nil {
		return nil, err
	}
	if err := l.records.save(dir); err != nil {
		return nil, err
	}
	if l.board, err = cable.NewBoard(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	for i := 1; i <= l.spec.Nodes; i++ {
		n, err := l.machine(fmt.Sprintf("n%d", i), i, l.spec.DisksPerNode)
		if err != nil {
			return nil, err
		}
		address := net.JoinHostPort(cable.Networks[0].NodeAddress(i).Addr().String(), strconv.Itoa(paths.PortAPI))
		n.api, err = newForward(func(ctx context.Context) (net.Conn, error) { return n.dialNode(ctx, address) }, n.log)
		if err != nil {
			return nil, fmt.Errorf("forward to node %s: %w", n.name, err)
		}
		l.nodes = append(l.nodes, n)
		if n.bmc, err = newController(n); err != nil {
			return nil, err
		}
	}
	if l.spec.Witness {
		if l.third, err = l.machine(labclient.WitnessName, witnessNumber, 0); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// witnessNumber is the witness's place in addresses and ports, behind the nodes'.
const witnessNumber = 90

// machine prepares one machine, without power.
func (l *Lab) machine(name string, number, disks int) (*node, error) {
	n := &node{lab: l, number: number, name: name, power: labclient.Off, diskCount: disks}
	n.dir, n.log = filepath.Join(l.dir, labclient.NodesDir, n.name), l.log.With("node", n.name)
	if err := n.prepare(); err != nil {
		return nil, fmt.Errorf("prepare node %s: %w", n.name, err)
	}
	return n, nil
}

// machines are the nodes and the witness's machine.
func (l *Lab) machines() []*node {
	if l.third == nil {
		return l.nodes
	}
	return append(slices.Clone(l.nodes), l.third)
}

// close takes the power from all nodes and gives everything back.
func (l *Lab) close() (err error) {
	l.mu.Lock()
	l.down = true
	l.mu.Unlock()
	for _, n := range l.nodes {
		if n.bmc != nil {
			err = errors.Join(err, n.bmc.close())
		}
	}
	var g errgroup.Group
	for _, n := range l.machines() {
		g.Go(func() error {
			_, _, err := n.cut()
			if errors.Is(err, errs.Conflict) {
				return nil // has no power
			}
			return err
		})
	}
	err = errors.Join(err, g.Wait())
	l.tasks.Wait()
	for _, n := range l.machines() {
		if n.api != nil {
			err = errors.Join(err, n.api.close())
		}
	}
	if l.board != nil {
		err = errors.Join(err, l.board.Close())
	}
	if rerr := os.Remove(filepath.Join(l.dir, labclient.RecordsFile)); !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	l.log.Info("lab is down", "err", err)
	return err
}

// powerAll boots every node that has no power, all at once.
func (l *Lab) powerAll(ctx context.Context) error {
	var g errgroup.Group
	for _, n := range l.machines() {
		g.Go(func() error {
			err := n.powerOn(ctx)
			if errors.Is(err, errs.Conflict) {
				return nil
			}
			return err
		})
	}
	return g.Wait()
}

// units returns the units of a machine.
func (l *Lab) units(n *node) []unit.Unit {
	if n == l.third {
		return []unit.Unit{unit.WitnessTemplate(initd.Binary)}
	}
	if l.spec.Units != nil {
		return l.spec.Units
	}
	return unit.Templates(initd.Binary)
}

// seed draws the seed of a loss of power.
func (l *Lab) seed() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rng.Uint64()
}

// cgroupName is the name of a node's cgroup, distinct for labs in different
// directories.
func (l *Lab) cgroupName(node string) string {
	h := fnv.New32a()
	h.Write([]byte(l.dir))
	return fmt.Sprintf("roseau-lab-%s-%08x-%s", l.spec.Name, h.Sum32(), node)
}

// record notes a node's first process; forget takes it back.
func (l *Lab) record(name string, life *life) error {
	p, err := identify(life.cmd.Process.Pid)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return errs.New(errs.Unavailable, "the lab goes down")
	}
	l.records.Inits[name] = p
	l.records.Cgroups = append(l.records.Cgroups, life.freezer.groups()...)
	return l.records.save(l.dir)
}

func (l *Lab) forget(name string, life *life) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.records.Inits, name)
	kept := l.records.Cgroups[:0]
	for _, dir := range l.records.Cgroups {
		if !slices.Contains(life.freezer.groups(), dir) {
			kept = append(kept, dir)
		}
	}
	l.records.Cgroups = kept
	return l.records.save(l.dir)
}

// node returns the node called name.
func (l *Lab) node(name string) (*node, error) {
	for _, n := range l.machines() {
		if n.name == name {
			return n, nil
		}
	}
	return nil, errs.New(errs.NotFound, "find node %q: the lab has nodes n1 to n%d", name, l.spec.Nodes)
}

// status describes the lab.
func (l *Lab) status(ctx context.Context) labclient.Status {
	st := labclient.Status{
		Name: l.spec.Name, Dir: l.dir, Since: l.since, PID: os.Getpid(),
		Partition: l.board.Groups(), Ports: map[string][]labclient.Port{},
	}
	l.mu.Lock()
	st.Ready = l.ready
	l.mu.Unlock()
	for _, n := range l.nodes {
		st.Nodes = append(st.Nodes, n.status(ctx))
	}
	if l.third != nil {
		w := l.third.status(ctx)
		st.Witness = &w
	}
	for _, w := range cable.Networks {
		ports := l.board.Ports(w.Name)
		for _, n := range l.nodes {
			if index, ok := ports[n.name]; ok {
				st.Ports[w.Name] = append(st.Ports[w.Name], labclient.Port{Node: n.name, Index: index})
			}
		}
		if index, ok := ports["outside"]; ok {
			st.Ports[w.Name] = append(st.Ports[w.Name], labclient.Port{Node: "outside", Index: index})
		}
	}
	return st
}
