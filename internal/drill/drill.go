// Package drill has the acceptance tests that ship with Roseau. They run on the
// user's own cluster: they start a guest of their own, do to the cluster what
// the test names, watch from outside, read every acknowledged write back, clean
// up and report measured figures.
//
// What the drill needs of its surroundings are the three interfaces Cluster
// (the API), Faults (power, cables, disks: the lab's, or a person's hands) and
// Vantage (a place outside the cluster on the VM network).
package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/model"
)

// Cluster is what the drill does through the API.
type Cluster interface {
	Name(ctx context.Context) (string, error)
	Nodes(ctx context.Context) ([]model.Node, error)
	// Outlook returns how many nodes, whichever, can fail next without loss of
	// service, and the same in words.
	Outlook(ctx context.Context) (nodes int, text string, err error)
	// Leader is the node of etcd's leader, which the HA manager is on.
	Leader(ctx context.Context) (string, error)
	Disks(ctx context.Context) ([]model.Disk, error)
	VM(ctx context.Context, name string) (model.VM, error)
	Volume(ctx context.Context, name string) (model.Volume, error)
	// VolumeDisks returns the identities of the disks that the volume's
	// segments are placed on.
	VolumeDisks(ctx context.Context, name string) ([]string, error)
	Events(ctx context.Context, since time.Time) ([]model.Event, error)
	// ImportImage, CreateVM, Migrate, DeleteVM and DeleteImage wait for the end
	// of their task. Migrate with node "" lets the scheduler choose.
	ImportImage(ctx context.Context, name, path string) error
	CreateVM(ctx context.Context, req VMRequest) error
	Migrate(ctx context.Context, vm, node string) error
	// MigrateBounded lets the scheduler choose; at most bandwidth bytes a second are
	// sent. giveUpAfter 0: it is given up only when it is hopeless.
	MigrateBounded(ctx context.Context, vm string, bandwidth size.Bytes, giveUpAfter time.Duration) error
	DeleteVM(ctx context.Context, name string) error
	DeleteImage(ctx context.Context, name string) error
	// CreateVolume and DeleteVolume serve to see whether changes are possible.
	CreateVolume(ctx context.Context, name string, bytes size.Bytes) error
	DeleteVolume(ctx context.Context, name string) error
	// ReturnDisk makes a disk that was pulled and put back a member of its pool
	// again.
	ReturnDisk(ctx context.Context, disk model.Disk) error
	// ReplaceNode lets a node take the place of one that is gone for good, and waits
	// for the end: every copy is in sync elsewhere, the old node is removed.
	ReplaceNode(ctx context.Context, old, with string) error
	// Drain, Leave and RestartRolling wait for the end of their task: every VM has
	// left the node, the node is off (or back), every node was restarted.
	Drain(ctx context.Context, node string) error
	Undrain(ctx context.Context, node string) error
	Leave(ctx context.Context, node string, verb model.OrderVerb) error
	RestartRolling(ctx context.Context) error
}

// VMDisk is a further disk of a VM.
type VMDisk struct {
	Image string
	Size  size.Bytes
}

// VMRequest describes the probe VM.
type VMRequest struct {
	Name     string
	Image    string
	Network  string
	CPUs     int
	Memory   size.Bytes
	DiskSize size.Bytes
	More     []VMDisk
	NoHA     bool // it is not started on another node
}

// Faults does to machines what the tests need.
type Faults interface {
	// CutNode cuts the node's power and cables, and returns the moment at which
	// it did.
	CutNode(ctx context.Context, node string) (time.Time, error)
	// RestoreNode gives it power again: a conflict while it still has some.
	RestoreNode(ctx context.Context, node string) error
	HasPower(ctx context.Context, node string) (bool, error)
	// PullDisk takes the disk with the given path out of the node.
	PullDisk(ctx context.Context, node, path string) (time.Time, error)
	InsertDisk(ctx context.Context, node, path string) error
	// KillService kills a process of the node by SIGKILL: node, storage or
	// guard:VM-ID. Its supervisor starts it again.
	KillService(ctx context.Context, node, service string) (time.Time, error)
	// StopService and StartService end and begin a service: etcd.
	StopService(ctx context.Context, node, service string) error
	StartService(ctx context.Context, node, service string) error
	// CutLink and RestoreLink work on one of the node's networks: cluster,
	// storage or vm.
	CutLink(ctx context.Context, node, network string) (time.Time, error)
	RestoreLink(ctx context.Context, node, network string) error
}

// Vantage is a place outside the cluster, on the VM network.
type Vantage interface {
	Dial(ctx context.Context, network, address string) (net.Conn, error)
	// ListenICMP returns a socket that sends and receives ICMP echo messages.
	ListenICMP(ctx context.Context) (net.PacketConn, error)
	// Address returns a free address of the VM network, with its prefix, and
	// the gateway.
	Address(ctx context.Context) (netip.Prefix, netip.Addr, error)
}

// Env is what a test gets.
type Env struct {
	Cluster Cluster
	Faults  Faults
	Vantage Vantage
	Rough   RoughFaults   // of a lab; nil: there are none
	Frames  FrameRecorder // set where Rough is
	Log     *slog.Logger
	Out     io.Writer // progress, one line a step
	Image   string    // path of the unconfigured probe image
	WorkDir string    // for files of this run
	Network string    // the bridged network to plug the probe into
	Version string    // of the product, for figures that are kept
	Repeat  Repeat    // of the tests that repeat
	// Database is the path of a database guest's second disk; "": none is made.
	Database string

	report *TestReport
}

// say prints a step for people and keeps it in the report.
func (e *Env) say(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	e.report.Log = append(e.report.Log, time.Now().Format("15:04:05.000")+" "+line)
	fmt.Fprintf(e.Out, "  %s\n", line)
}

// Figures are a test's measured values by name: numbers and booleans.
type Figures map[string]any

// Series is a measured curve for the report's plot: milliseconds against
// seconds since the test's event.
type Series struct {
	Name string    `json:"name"`
	X    []float64 `json:"x_s"`
	Y    []float64 `json:"y_ms"`
}

// Test is one acceptance test.
type Test struct {
	Name    string
	Summary string
	Method  string
	rough   string // what it does that only a lab does; empty: nothing
	run     func(ctx context.Context, e *Env) error
}

// start runs the test where its faults can be made.
func (t *Test) start(ctx context.Context, e *Env) error {
	if t.rough != "" && e.Rough == nil {
		return errs.New(errs.Unavailable, "run %s: it %s, which only a lab does", t.Name, t.rough).WithHint("roseau lab up")
	}
	return t.run(ctx, e)
}

// Tests returns all tests in the order in which they run.
func Tests() []Test {
	return []Test{liveMigration, busyMigration, nodeFailure, diskFailure, processKill, controlPlane, isolation, networkCut, doubleFailure, freeze, drainTest, nodeShutdown, rollingRestart, coldStart, nodeReplacement, sickLink, withoutEtcd, packetLoss, copiesCut, migrations, failovers}
}

// essential are run when none is named: the three promises.
var essential = []string{liveMigration.Name, nodeFailure.Name, diskFailure.Name}

// Select returns the named tests, the three essential ones if none is named.
func Select(names []string) ([]Test, error) {
	all := Tests()
	if len(names) == 0 {
		names = essential
	}
	var out []Test
	for _, n := range names {
		found := false
		for _, t := range all {
			if t.Name == n {
				out, found = append(out, t), true
			}
		}
		if !found {
			var have []string
			for _, t := range all {
				have = append(have, t.Name)
			}
			return nil, errs.New(errs.NotFound, "find drill %q: no such test", n).WithHint("tests: %s", strings.Join(have, ", "))
		}
	}
	return out, nil
}

// TestReport is the outcome of one test.
type TestReport struct {
	Name    string        `json:"name"`
	Passed  bool          `json:"passed"`
	Method  string        `json:"method"`
	Figures Figures       `json:"figures"`
	Failed  []string      `json:"failed,omitempty"` // each requirement that was missed
	Log     []string      `json:"log"`
	Series  []Series      `json:"series,omitempty"`
	Took    time.Duration `json:"took_ns"`
}

// require notes a missed requirement.
func (r *TestReport) require(ok bool, format string, args ...any) {
	if !ok {
		r.Failed = append(r.Failed, fmt.Sprintf(format, args...))
	}
}

// Report is the outcome of a run.
type Report struct {
	Cluster string        `json:"cluster"`
	Version string        `json:"version"`
	Started time.Time     `json:"started"`
	Load    string        `json:"load_average"` // of the machine that ran the drill, at the start and at the end
	Tests   []*TestReport `json:"tests"`
}

// Passed reports whether every test passed.
func (r *Report) Passed() bool {
	for _, t := range r.Tests {
		if !t.Passed {
			return false
		}
	}
	return len(r.Tests) > 0
}

// Run runs the tests one after another; a failed one does not stop the rest.
// The error is about the drill itself, not about a test that failed.
func Run(ctx context.Context, env Env, tests []Test) (*Report, error) {
	name, err := env.Cluster.Name(ctx)
	if err != nil {
		return nil, err
	}
	rep := &Report{Cluster: name, Started: time.Now(), Load: LoadAverage()}
	for _, t := range tests {
		if err := context.Cause(ctx); err != nil {
			return rep, err
		}
		fmt.Fprintf(env.Out, "%s: %s\n", t.Name, t.Summary)
		tr := &TestReport{Name: t.Name, Method: t.Method, Figures: Figures{}}
		rep.Tests = append(rep.Tests, tr)
		e := env
		e.report = tr
		began := time.Now()
		if err := t.start(ctx, &e); err != nil {
			tr.Failed = append(tr.Failed, err.Error())
		}
		tr.Took = time.Since(began)
		tr.Passed = len(tr.Failed) == 0
		verdict := "passed"
		if !tr.Passed {
			verdict = "FAILED: " + strings.Join(tr.Failed, "; ")
		}
		e.say("%s after %s", verdict, tr.Took.Round(100*time.Millisecond))
	}
	rep.Load += " .. " + LoadAverage()
	return rep, nil
}

// withProbe starts a probe VM, runs f and takes the VM down again whatever
// happens.
func (e *Env) withProbe(ctx context.Context, disk size.Bytes, f func(ctx context.Context, p *probeVM) error) error {
	return e.withProbeOf(ctx, VMRequest{Memory: probeMemory, DiskSize: disk}, f)
}

// withProbeOf is withProbe for a VM of another shape.
func (e *Env) withProbeOf(ctx context.Context, req VMRequest, f func(ctx context.Context, p *probeVM) error) (err error) {
	p, err := e.startProbeWith(ctx, req)
	if p != nil {
		defer func() {
			down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
			defer cancel()
			err = errors.Join(err, p.destroy(down))
		}()
	}
	if err != nil {
		return err
	}
	return f(ctx, p)
}

// waitUntil polls cond until it holds, with a limit that names what was waited
// for.
func waitUntil(ctx context.Context, limit, every time.Duration, what string, cond func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last error
	for {
		ok, err := cond()
		if ok {
			return nil
		}
		if err != nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return errs.New(errs.Unavailable, "wait for %s: not within %s: %w", what, limit, errors.Join(last, context.Cause(ctx)))
		case <-tick.C:
		}
	}
}

// probeName is unique enough for several drills on one cluster.
func probeName() string { return fmt.Sprintf("drill-%06x", rand.Uint32()&0xffffff) }
