package drill

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/base/version"
	"roseau/internal/drill/probe"
	"roseau/internal/model"
)

// RoughFaults are the faults of a soak that no single drill needs.
type RoughFaults interface {
	FreezeNode(ctx context.Context, node string) error
	ThawNode(ctx context.Context, node string) error
	// LoseFrames lets a node's cable to a network lose percent of its frames in either
	// direction, at random; 0 ends it.
	LoseFrames(ctx context.Context, node, network string, percent int) error
	// SlowDisk delays each action of the disk; 0 ends it.
	SlowDisk(ctx context.Context, node, path string, latency time.Duration) error
	// CorruptDisk flips bits of what is allocated from the given offset on, and
	// returns how many.
	CorruptDisk(ctx context.Context, node, path string, from size.Bytes, bits int) (int, error)
	// CutPower cuts the power of every node at once.
	CutPower(ctx context.Context) error
	RestorePower(ctx context.Context) error
	// ResetConnections resets every TCP connection of a service of a node.
	ResetConnections(ctx context.Context, node, service string) error
}

// FrameRecorder hears what is sent on the VM network.
type FrameRecorder interface {
	// Frames calls heard for each IP frame from an address, with the node whose
	// cable it came in by, until ctx ends.
	Frames(ctx context.Context, from net.HardwareAddr, heard func(node string, at time.Time)) error
	// Forge sends a frame with a foreign source address by a node's cable.
	Forge(ctx context.Context, node string, from net.HardwareAddr) error
}

// Soak torments a cluster with random faults for a while: its VMs write all the
// time, and after each round every acknowledged write is read back. What it
// does is decided by Seed and the number of the round.
type Soak struct {
	Env    Env
	Rough  RoughFaults
	Frames FrameRecorder
	Seed   uint64
	First  uint64        // number of the first round
	Rounds int           // 0: no limit
	For    time.Duration // no round begins later than this after the start; 0: no limit
	VMs    int           // 0: 2
	Kinds  []FaultKind   // nil: all
	// Done is called after each round, the failed one included.
	Done func(RoundResult) error

	nodes  []model.Node
	probes []*soakProbe
	db     *databaseProbe // also in probes; nil: none
}

// RoundResult is one line of a soak's record.
type RoundResult struct {
	Number     uint64        `json:"round"`
	Began      time.Time     `json:"began"`
	Faults     string        `json:"faults"`
	Passed     bool          `json:"passed"`
	Failed     []string      `json:"failed,omitempty"`
	Restarts   int           `json:"restarts"`       // of VMs
	LongestGap time.Duration `json:"longest_gap_ns"` // between two acknowledged writes of a VM
	Acked      int           `json:"writes_acked"`
	Rows       int           `json:"rows_acked,omitempty"` // of the database, in the table at the audit
	FioPasses  int           `json:"fio_passes,omitempty"` // of writing and verifying in the database's VM, since its last boot
	Lost       int           `json:"writes_lost"`
	Twice      int           `json:"vms_run_twice"`
	Healed     time.Duration `json:"healed_ns"` // from the end of the last fault until everything was whole
	Load       string        `json:"load_average"`
	Version    string        `json:"version"` // of the program that ran it
}

// soakProbe is a VM of the soak with what is known of its present run.
type soakProbe struct {
	*probeVM
	mac    net.HardwareAddr
	before probe.Status // at the begin of the round
	placed model.VM     // then
	acked  int          // until then
	mu     sync.Mutex
	heard  sightings
}

// soakChunks MiB of random data stand on each VM's disk and are verified after
// each round.
const soakChunks = 64

// healLimit is how long after the last fault everything must be whole again.
const healLimit = 5 * time.Minute

// Run makes the VMs, runs the rounds and takes the VMs down again. It ends with
// the first failed round.
func (s *Soak) Run(ctx context.Context) (err error) {
	s.Env.report = &TestReport{Name: "soak", Figures: Figures{}}
	if s.Kinds == nil {
		s.Kinds = FaultKinds
	}
	if s.VMs == 0 {
		s.VMs = 2
	}
	if s.nodes, err = s.Env.Cluster.Nodes(ctx); err != nil {
		return err
	}
	if len(s.nodes) < 3 {
		return errs.New(errs.Unavailable, "run a soak: it needs three nodes, the cluster has %d", len(s.nodes))
	}
	defer func() { err = errors.Join(err, s.destroy(ctx)) }()
	for range s.VMs {
		if err := s.addProbe(ctx); err != nil {
			return err
		}
	}
	if s.Env.Database != "" {
		if err := s.addDatabase(ctx); err != nil {
			return err
		}
	}
	if err := s.tryCheckers(ctx); err != nil {
		return err
	}
	began := time.Now()
	for n := 0; (s.Rounds == 0 || n < s.Rounds) && (s.For == 0 || time.Since(began) < s.For); n++ {
		res := s.round(ctx, PlanRound(s.Seed, s.First+uint64(n), len(s.nodes), s.VMs, s.Kinds))
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if s.Done != nil {
			if err := s.Done(res); err != nil {
				return err
			}
		}
		if !res.Passed {
			return errs.New(errs.Conflict, "round %d of the soak failed: %s", res.Number, strings.Join(res.Failed, "; "))
		}
	}
	return nil
}

func (s *Soak) addProbe(ctx context.Context) error {
	p, err := s.Env.startProbe(ctx, probe.FillOffset+soakChunks*probe.FillChunkBytes)
	if p != nil {
		s.probes = append(s.probes, &soakProbe{probeVM: p})
	}
	if err != nil {
		return err
	}
	return s.probes[len(s.probes)-1].prepare(ctx)
}

func (s *Soak) addDatabase(ctx context.Context) (err error) {
	s.db, err = s.Env.startDatabase(ctx)
	if err != nil {
		return err
	}
	p := &soakProbe{probeVM: s.db.probeVM}
	s.probes = append(s.probes, p)
	return p.prepare(ctx)
}

// prepare learns the VM's address and fills its disk.
func (p *soakProbe) prepare(ctx context.Context) error {
	vm, err := p.vmNode(ctx)
	if err != nil {
		return err
	}
	if p.mac, err = net.ParseMAC(vm.Spec.NICs[0].MAC); err != nil {
		return fmt.Errorf("read the address of VM %s: %w", p.name, err)
	}
	_, err = p.fill(ctx, soakChunks, false, 2*time.Minute)
	return err
}

func (s *Soak) destroy(ctx context.Context) error {
	down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
	defer cancel()
	var err error
	for _, p := range s.probes {
		if s.db == nil || p.probeVM != s.db.probeVM {
			err = errors.Join(err, p.destroy(down))
		}
	}
	if s.db != nil {
		err = errors.Join(err, s.db.destroy(down))
	}
	return err
}

// round starts the load, does the faults, waits until all is whole, and audits.
func (s *Soak) round(ctx context.Context, r Round) RoundResult {
	res := RoundResult{Number: r.Number, Began: time.Now(), Faults: r.String(), Load: LoadAverage(), Version: version.String()}
	fail := func(err error) RoundResult {
		if err != nil {
			res.Failed = append(res.Failed, err.Error())
		}
		res.Passed = len(res.Failed) == 0
		return res
	}
	s.Env.say("round %d: %s", r.Number, res.Faults)
	listen, cancel := context.WithCancel(ctx)
	var ears errgroup.Group
	defer func() { cancel(); ears.Wait() }()
	for _, p := range s.probes {
		if err := s.begin(ctx, p); err != nil {
			return fail(err)
		}
		ears.Go(func() error { return s.Frames.Frames(listen, p.mac, p.note) })
	}
	if s.db != nil {
		if err := errors.Join(s.db.startFio(ctx, r.Number+1), s.db.startRows(ctx)); err != nil {
			return fail(err)
		}
	}
	err := s.inflict(ctx, r)
	if err != nil {
		return fail(err)
	}
	healed := time.Now()
	if err := s.waitWhole(ctx); err != nil {
		return fail(err)
	}
	res.Healed = time.Since(healed)
	for _, p := range s.probes {
		if err := s.audit(ctx, p, r, &res); err != nil {
			return fail(fmt.Errorf("audit of VM %s: %w", p.name, err))
		}
	}
	if s.db == nil {
		return fail(nil)
	}
	if res.FioPasses, err = s.db.auditFio(ctx); err != nil {
		fail(err)
	}
	rows, lost, problems, err := s.db.auditRows(ctx)
	if res.Rows = rows; lost > 0 {
		problems = append(problems, fmt.Sprintf("%d of %d committed rows lost", lost, rows))
	}
	res.Lost += lost
	res.Failed = append(res.Failed, problems...)
	return fail(err)
}

func (p *soakProbe) note(node string, at time.Time) {
	p.mu.Lock()
	p.heard.note(node, at)
	p.mu.Unlock()
}

// begin starts the load of a VM and remembers its run.
func (s *Soak) begin(ctx context.Context, p *soakProbe) (err error) {
	if err := p.startLoad(ctx, 5*time.Millisecond); err != nil {
		return err
	}
	if p.before, err = p.status(ctx); err != nil {
		return err
	}
	if p.placed, err = p.vmNode(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	p.heard = sightings{}
	p.mu.Unlock()
	p.acked = p.acks.count()
	p.acks.watch()
	return p.waitAcks(ctx, 20)
}

// inflict does the round's faults at their times and heals them.
func (s *Soak) inflict(ctx context.Context, r Round) error {
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range r.Faults {
		g.Go(func() error {
			if err := until(ctx, began.Add(f.Begin)); err != nil {
				return err
			}
			heal, err := s.do(ctx, f)
			if err != nil && len(r.Faults) > 1 {
				s.Env.Log.Info("fault did not apply", "fault", f.Kind.Name, "cause", err) // the other one was in its way
				err = nil
			}
			if err == nil {
				err = until(ctx, began.Add(f.End))
			}
			if heal == nil {
				return err
			}
			back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
			defer cancel()
			return errors.Join(err, heal(back))
		})
	}
	return g.Wait()
}

// until waits for a moment: a fault lasts as long as it was drawn to last.
func until(ctx context.Context, at time.Time) error {
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// waitWhole waits until nodes, disks, VMs and volumes are as before the round.
func (s *Soak) waitWhole(ctx context.Context) error {
	return waitUntil(ctx, healLimit, 200*time.Millisecond, "every node, disk, VM and volume to be whole", func() (bool, error) {
		nodes, err := s.Env.Cluster.Nodes(ctx)
		if err != nil {
			return false, err
		}
		for _, n := range nodes {
			if !n.Status.Ready {
				return false, errs.New(errs.Unavailable, "node %s is not ready", n.Name)
			}
		}
		disks, err := s.Env.Cluster.Disks(ctx)
		if err != nil {
			return false, err
		}
		for _, d := range disks {
			if d.Status.State != model.DiskActive {
				return false, errs.New(errs.Unavailable, "disk %s is %s", d.Name, d.Status.State)
			}
		}
		for _, p := range s.probes {
			if ok, err := s.probeWhole(ctx, p); !ok {
				return false, err
			}
		}
		return true, nil
	})
}

func (s *Soak) probeWhole(ctx context.Context, p *soakProbe) (bool, error) {
	vm, err := p.vmNode(ctx)
	if err != nil {
		return false, err
	}
	if vm.Status.State != model.VMRunning {
		return false, errs.New(errs.Unavailable, "VM %s is %s (%s)", p.name, vm.Status.State, vm.Status.Reason)
	}
	for _, d := range vm.Spec.Disks {
		v, err := s.Env.Cluster.Volume(ctx, d.Volume)
		if err != nil {
			return false, err
		}
		if v.Status.Health != model.Healthy {
			return false, errs.New(errs.Unavailable, "volume %s is %s", v.Name, v.Status.Health)
		}
	}
	return true, p.waitForPage(ctx, time.Minute)
}

// settled waits until no attempt to place the VM stands: one that was decided while
// etcd had no majority may be written when it is back, and ends when the copies say
// that the VM's writer lives.
func (p *probeVM) settled(ctx context.Context) (vm model.VM, err error) {
	return vm, waitUntil(ctx, time.Minute, 100*time.Millisecond, "VM "+p.name+" running, no attempt under way", func() (bool, error) {
		vm, err = p.vmNode(ctx)
		return err == nil && vm.Status.State == model.VMRunning, err
	})
}

// audit reads everything of a VM back and notes what is wrong.
func (s *Soak) audit(ctx context.Context, p *soakProbe, r Round, res *RoundResult) error {
	wrong := func(ok bool, format string, args ...any) {
		if !ok {
			res.Failed = append(res.Failed, fmt.Sprintf("VM %s: ", p.name)+fmt.Sprintf(format, args...))
		}
	}
	if err := p.stopLoad(ctx); err != nil {
		return err
	}
	res.LongestGap = max(res.LongestGap, p.acks.watched())
	bad, err := p.fill(ctx, soakChunks, true, 3*time.Minute)
	if err != nil {
		return err
	}
	acked, lost, err := p.readBack(ctx)
	if errors.Is(err, errs.Fenced) {
		res.Twice++
		wrong(false, "%v", err)
	} else if err != nil {
		return err
	}
	after, err := p.status(ctx)
	if err != nil {
		return err
	}
	vm, err := p.settled(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	twice := p.heard.twice()
	p.mu.Unlock()
	res.Acked, res.Lost = res.Acked+acked-p.acked, res.Lost+lost
	wrong(lost == 0, "%d of %d acknowledged writes lost", lost, acked)
	wrong(bad == 0, "%d of %d MiB of random data read back wrong", bad, soakChunks)
	wrong(after.IOErrors == 0, "%d I/O errors (%s)", after.IOErrors, after.LastError)
	wrong(after.MemoryBad == 0, "%d words of its memory pattern wrong", after.MemoryBad)
	wrong(twice == "", "two nodes sent for it: %s", twice)
	if twice != "" {
		res.Twice++
	}
	if after.Boot != p.before.Boot {
		res.Restarts++
		wrong(!r.Control(), "it was restarted, and only the control plane suffered")
	}
	if r.Control() {
		wrong(vm.Status.Node == p.placed.Status.Node, "it moved from %s to %s, and only the control plane suffered", p.placed.Status.Node, vm.Status.Node)
		wrong(vm.Status.PauseCount == p.placed.Status.PauseCount, "it was paused, and only the control plane suffered")
	}
	return nil
}
