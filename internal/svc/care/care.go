// Package care looks after the disks: on each node it reads what their storage
// process and the drives themselves say; one node, the office "care", compares the
// disks with each other, raises alarms, has damage repaired where no writer is, and
// runs the scrubs of the pools.
//
// What is wanted (a scrub, a pause) is a record; what goes on is asked for each
// time. So an office that changes hands, and a daemon that dies, cost seconds.
package care

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/core/diskcare"
	"roseau/internal/driver/smart"
	"roseau/internal/driver/storagectl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/volume"
)

// Storage is the part of storagectl.Client that is used here.
type Storage interface {
	Care(ctx context.Context) ([]storagectl.Care, error)
	Scrub(ctx context.Context, r storagectl.ScrubRequest) error
	Status(ctx context.Context) (storagectl.Status, error)
}

// Service has the care of a node's disks, and the office.
type Service struct {
	env     *svc.Env
	storage Storage
	volumes *volume.Service
	smart   smart.Reader
	every   time.Duration // between readings of the drives' health

	mu     sync.Mutex // protects health
	health map[string]*diskcare.Health
}

// Reading the drives' own health.
const (
	healthEvery    = 10 * time.Minute
	labHealthEvery = 3 * time.Second
)

// New returns the service of a node. labHealth is the directory of a lab's health
// files, empty outside of labs.
func New(env *svc.Env, st Storage, volumes *volume.Service, labHealth string) *Service {
	s := &Service{env: env, storage: st, volumes: volumes, smart: smart.Reader{Lab: labHealth}, every: healthEvery, health: map[string]*diskcare.Health{}}
	if labHealth != "" {
		s.every = labHealthEvery
	}
	return s
}

// DiskReport is what a node says of one of its disks.
type DiskReport struct {
	storagectl.Care
	Class  string           `json:"class"` // nvme, ssd, hdd, file
	Health *diskcare.Health `json:"health,omitempty"`
}

// NodeRef is the input of operations on a node's disks.
type NodeRef struct {
	Node string `path:"node" doc:"name or id of the node"`
}

// Routes adds the operations.
func (s *Service) Routes(r *api.Router) {
	on := func(op huma.Operation) huma.Operation {
		op.Middlewares = huma.Middlewares{r.OnNode(s.env.OnNode("node"))}
		return op
	}
	huma.Register(r, on(api.Op("get-node-care", "GET", "/v1/nodes/{node}/care", "Show the health of a node's disks: bad blocks, scrubs, wear")), func(ctx context.Context, _ *NodeRef) (*api.Body[[]DiskReport], error) {
		return api.OK(s.report(ctx))
	})
	huma.Register(r, on(api.Op("scrub-node-disk", "POST", "/v1/nodes/{node}/scrub", "Start or stop a scrub pass over a disk of a node")), func(ctx context.Context, in *struct {
		NodeRef
		Body storagectl.ScrubRequest
	}) (*struct{}, error) {
		return nil, s.storage.Scrub(ctx, in.Body)
	})
	s.scrubRoutes(r)
}

// Run reads the drives' health and holds the office when this node has it.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.env.Loop(ctx, "disk health", s.every, nil, s.readHealth) }) // ends with ctx
	defer wg.Wait()
	return s.env.Store.Elect(ctx, "care", s.env.Node, func(ctx context.Context) error {
		o := newOffice(s)
		return s.env.Loop(ctx, "care", officeInterval, nil, o.round)
	})
}

// readHealth asks each claimed disk of this node.
func (s *Service) readHealth(ctx context.Context) error {
	st, err := s.storage.Status(ctx)
	if err != nil {
		return err
	}
	now := map[string]*diskcare.Health{}
	for _, d := range st.Disks {
		now[d.Path] = s.smart.Read(ctx, d.Path)
	}
	s.mu.Lock()
	s.health = now
	s.mu.Unlock()
	return nil
}

// report is what this node says of its disks.
func (s *Service) report(ctx context.Context) ([]DiskReport, error) {
	list, err := s.storage.Care(ctx)
	if err != nil {
		return nil, err
	}
	st, err := s.storage.Status(ctx)
	if err != nil {
		return nil, err
	}
	path := map[ids.ID]string{}
	for _, d := range st.Disks {
		path[d.ID] = d.Path
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]DiskReport, 0, len(list))
	for _, c := range list {
		out = append(out, DiskReport{Care: c, Class: class(path[c.Disk]), Health: s.health[path[c.Disk]]})
	}
	return out, nil
}

// class names what a disk may be compared with.
func class(path string) string {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "unknown"
	}
	if st, err := os.Stat(real); err == nil && st.Mode().IsRegular() {
		return "file"
	}
	name := filepath.Base(real)
	if strings.HasPrefix(name, "nvme") {
		return "nvme"
	}
	if b, err := os.ReadFile("/sys/class/block/" + name + "/queue/rotational"); err == nil && strings.TrimSpace(string(b)) == "1" {
		return "hdd"
	}
	return "ssd"
}

// gather asks all living nodes; a node that does not answer is left out.
func (s *Service) gather(ctx context.Context) (map[ids.ID]DiskReport, error) {
	out := map[ids.ID]DiskReport{}
	var mu sync.Mutex
	_, err := s.env.EachNode(ctx, func(ctx context.Context, n *model.Node) {
		var list []DiskReport
		var err error
		if n.ID == s.env.Node {
			list, err = s.report(ctx)
		} else {
			err = s.env.Ask(ctx, n.ID, "GET", "/v1/nodes/"+n.ID.String()+"/care", nil, &list)
		}
		if err != nil {
			s.env.Log.Debug("no word of a node's disks", "node", n.Name, "err", err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, d := range list {
			out[d.Disk] = d
		}
	})
	return out, err
}

// scrubDisk orders a pass on the node that has the disk.
func (s *Service) scrubDisk(ctx context.Context, d *model.Disk, r storagectl.ScrubRequest) error {
	if d.Spec.Node == s.env.Node {
		return s.storage.Scrub(ctx, r)
	}
	return s.env.Ask(ctx, d.Spec.Node, "POST", "/v1/nodes/"+d.Spec.Node.String()+"/scrub", r, nil)
}

// office is what the holder of the office remembers.
type office struct {
	s        *Service
	detector diskcare.Detector
	judged   clock.Instant // when the detector was asked last
	verdicts map[ids.ID]diskcare.Verdict
	wrote    map[ids.ID]clock.Instant // progress of a disk was written
	healed   map[ids.ID]attempt       // maintenance writers opened for damage
	scrubs   map[ids.ID]*comparison   // by volume
}

// attempt is when a volume was last opened to repair so many blocks.
type attempt struct {
	at     clock.Instant
	blocks int
}

const officeInterval = 2 * time.Second

func newOffice(s *Service) *office {
	return &office{s: s, verdicts: map[ids.ID]diskcare.Verdict{}, wrote: map[ids.ID]clock.Instant{}, healed: map[ids.ID]attempt{}, scrubs: map[ids.ID]*comparison{}}
}

func (o *office) round(ctx context.Context) error {
	reports, err := o.s.gather(ctx)
	if err != nil {
		return err
	}
	disks, err := store.List[model.Disk](ctx, o.s.env.Store)
	if err != nil {
		return err
	}
	now := o.s.env.Clock.Now()
	if now.Sub(o.judged) >= diskcare.SlowWindow {
		o.judged = now
		o.judge(now, reports)
	}
	for _, d := range disks {
		if r, ok := reports[d.ID]; ok {
			if err := o.note(ctx, d, r); err != nil {
				return err
			}
		}
	}
	if err := o.heal(ctx, reports); err != nil {
		return err
	}
	return o.scrub(ctx, disks, reports)
}

// judge compares the disks with their like. A disk that a pass keeps busy is in no
// steady state.
func (o *office) judge(now clock.Instant, reports map[ids.ID]DiskReport) {
	var samples []diskcare.Sample
	for _, id := range sorted(reports) {
		r := reports[id]
		samples = append(samples, diskcare.Sample{Disk: id, Class: r.Class, Median: r.WriteMedian, Count: r.Writes, Exclude: r.Scrub.Running && r.Scrub.DutyPercent > 50})
	}
	o.verdicts = map[ids.ID]diskcare.Verdict{}
	for _, v := range o.detector.Step(now, samples) {
		o.verdicts[v.Disk] = v
	}
}

// noteEvery is how often mere progress of a disk is written.
const noteEvery = 10 * time.Second

// note writes what changed of a disk, and says what a person should hear.
func (o *office) note(ctx context.Context, d *model.Disk, r DiskReport) error {
	c := careOf(r, o.verdicts[d.ID])
	was := d.Status.Care
	if was == nil {
		was = &model.DiskCare{}
	}
	// Until the first window was judged after the office changed hands, nothing is
	// known of slowness.
	if _, judged := o.verdicts[d.ID]; !judged {
		c.Slow, c.SlowScore, c.WriteMedian, c.Cohort = was.Slow, was.SlowScore, was.WriteMedian, was.Cohort
	}
	if d.Status.Care != nil && !changed(was, c) {
		return nil
	}
	now := o.s.env.Clock.Now()
	if d.Status.Care != nil && !urgent(was, c) && now.Sub(o.wrote[d.ID]) < noteEvery {
		return nil
	}
	o.wrote[d.ID] = now
	if _, err := store.Update(ctx, o.s.env.Store, d.ID, func(d *model.Disk) error { d.Status.Care = c; return nil }); err != nil {
		return fmt.Errorf("note care of disk %s: %w", d.Name, err)
	}
	for _, a := range news(was, c) {
		o.s.env.Events.Emit(a.level, "disk "+d.Name, a.text)
	}
	return nil
}
