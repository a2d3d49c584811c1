// Package bench measures a Roseau volume of three copies beside a plain file,
// qemu-nbd, QEMU's quorum driver and Ceph, all on one disk, with the same fio jobs.
//
// Absolute figures of a shared machine mean little. The rounds are interleaved,
// so that a slow minute hits every target alike, and what counts is the ratio of
// medians: to quorum, QEMU's own three-way mirror, without resync, leases or
// checksums, and to Ceph's RBD with three copies.
package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
)

// Job is one fio job, a row of the table.
type Job struct {
	ID    string // short, for --jobs
	Name  string
	Args  []string
	MBps  bool // the figure is MB/s, not IOPS
	Read  bool
	Fresh bool // each block is written once, where nothing was before
	// Aims: the ratios to be reached; 0 = none.
	OverQuorum, OverCeph float64
	// Ack says what an answer of a write means here, where targets differ.
	Ack string
}

const (
	ackVolatile = "Ceph: durable on three disks. quorum, roseau: written, lost if power fails everywhere before the next flush."
	ackDurable  = "durable on three disks everywhere: a fair row"
)

// Jobs are the rows of the table.
var Jobs = []Job{
	{ID: "w1", Name: "4k random write, depth 1", Args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1"}, OverQuorum: 0.9, OverCeph: 4, Ack: ackVolatile},
	{ID: "w16", Name: "4k random write, depth 16", Args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=16"}, OverQuorum: 1.3, OverCeph: 6, Ack: ackVolatile},
	{ID: "wf1", Name: "4k random write, flush each", Args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"}, OverQuorum: 0.9, OverCeph: 2.5, Ack: ackDurable},
	{ID: "wf16", Name: "4k random write, depth 16, flush every 16", Args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=16", "--fsync=16"}, OverQuorum: 1.2, OverCeph: 4, Ack: ackDurable},
	{ID: "r1", Name: "4k random read, depth 1", Args: []string{"--rw=randread", "--bs=4k", "--iodepth=1"}, Read: true, OverQuorum: 1.2, OverCeph: 1.3},
	{ID: "r16", Name: "4k random read, depth 16", Args: []string{"--rw=randread", "--bs=4k", "--iodepth=16"}, Read: true, OverQuorum: 1.4, OverCeph: 1.5},
	{ID: "fresh", Name: "1M sequential first write, depth 8", Args: []string{"--rw=write", "--bs=1M", "--iodepth=8"}, MBps: true, Fresh: true, OverQuorum: 1.1, OverCeph: 1.2, Ack: ackVolatile},
	{ID: "sw", Name: "1M sequential overwrite, depth 8", Args: []string{"--rw=write", "--bs=1M", "--iodepth=8"}, MBps: true, Ack: ackVolatile},
	{ID: "sr", Name: "1M sequential read, depth 8", Args: []string{"--rw=read", "--bs=1M", "--iodepth=8"}, MBps: true, Read: true, OverQuorum: 1.5, OverCeph: 1.2},
}

// cpuJob is the job whose CPU per I/O has aims, and they are: at most so much of
// what quorum and Ceph take.
const (
	cpuJob               = "w16"
	cpuQuorum, cpuCeph   = 0.8, 0.2
	localReadOfQemuNBD   = 0.7 // our reads against qemu-nbd on the raw file
	statTick             = 10 * time.Millisecond
	freshSettle          = time.Second // until the engine may write in place again
	settleEvery          = 200 * time.Millisecond
	settleMost           = 10 * time.Second
	fioSlack             = 5 * time.Minute
	benchLogBytes        = 1 << 30
	defaultBytes         = 512 << 20
	defaultRounds        = 5
	defaultRuntimeOfAJob = 4 * time.Second
)

// Target is something that fio can write to.
type Target struct {
	Name string
	// FioArgs say how fio reaches it: --ioengine and --filename or --uri.
	FioArgs []string
	Env     []string // of fio
	// Pids are the server processes, whose CPU counts; nil: none, the file itself.
	Pids func() []int
	// Empty makes the target as if nothing had ever been written; nil: that makes
	// no difference.
	Empty func(context.Context) error
}

// Options of a run.
type Options struct {
	SizeBytes int64         // of the data that jobs use; default 512 MiB
	Rounds    int           // default 5
	Runtime   time.Duration // of one job on one target; default 4 s
	Jobs      []Job         // default Jobs
	Targets   []string      // names; default all that are installed
	State     string        // file that keeps each figure, so that a run can be gone on with; "" = none
	Progress  io.Writer     // nil: none
}

func (o *Options) defaults() {
	if o.SizeBytes == 0 {
		o.SizeBytes = defaultBytes
	}
	if o.Rounds == 0 {
		o.Rounds = defaultRounds
	}
	if o.Runtime == 0 {
		o.Runtime = defaultRuntimeOfAJob
	}
	if o.Jobs == nil {
		o.Jobs = Jobs
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
}

// JobsByID picks jobs; unknown names are an error that lists the known ones.
func JobsByID(names []string) ([]Job, error) {
	var list []Job
	for _, n := range names {
		i := slices.IndexFunc(Jobs, func(j Job) bool { return j.ID == n })
		if i < 0 {
			var known []string
			for _, j := range Jobs {
				known = append(known, j.ID)
			}
			return nil, errs.New(errs.Invalid, "benchmark job %q: want one of %s", n, strings.Join(known, ", "))
		}
		list = append(list, Jobs[i])
	}
	return list, nil
}

// Figure is one measurement.
type Figure struct {
	Round  int     `json:"round"`
	Job    string  `json:"job"`
	Target string  `json:"target"`
	Value  float64 `json:"value"`  // IOPS or MB/s
	P99    float64 `json:"p99_us"` // of the latency
	CPU    float64 `json:"cpu_us"` // of all server processes, an I/O
}

// Result has the figures.
type Result struct {
	Options Options
	Targets []string
	Figures []Figure
}

// values lists one kind of value of a job on a target, one a round.
func (r *Result) values(job, target string, of func(*Figure) float64) []float64 {
	var v []float64
	for i := range r.Figures {
		if f := &r.Figures[i]; f.Job == job && f.Target == target {
			v = append(v, of(f))
		}
	}
	return v
}

func (r *Result) median(job, target string) float64 {
	return Median(r.values(job, target, func(f *Figure) float64 { return f.Value }))
}

// Run fills each target with data that does not compress to holes, then runs
// the rounds: for each round each job, for each job each target, starting with
// another target each round.
func Run(ctx context.Context, targets []Target, o Options) (*Result, error) {
	o.defaults()
	if _, err := exec.LookPath("fio"); err != nil {
		return nil, errs.New(errs.NotFound, "run benchmark: fio is not installed").WithHint("apt install fio")
	}
	r := &Result{Options: o}
	st, err := openState(o)
	if err != nil {
		return nil, err
	}
	defer st.close()
	for _, t := range targets {
		r.Targets = append(r.Targets, t.Name)
		fmt.Fprintf(o.Progress, "fill %s\n", t.Name)
		if _, err := fio(ctx, t, o, Job{Name: "fill", Args: []string{"--rw=write", "--bs=1M", "--iodepth=4", "--end_fsync=1"}, Fresh: true}); err != nil {
			return nil, err
		}
	}
	for round := range o.Rounds {
		for _, job := range o.Jobs {
			for k := range targets {
				t := targets[(k+round)%len(targets)]
				f, done := st.find(round, job.ID, t.Name)
				if !done {
					if f, err = measure(ctx, t, o, job); err != nil {
						return nil, err
					}
					f.Round = round
					if err := st.add(f); err != nil {
						return nil, err
					}
				}
				r.Figures = append(r.Figures, f)
				fmt.Fprintf(o.Progress, "round %d: %s: %s %.0f\n", round+1, job.Name, t.Name, f.Value)
			}
		}
	}
	return r, nil
}

// measure runs one job and looks at the CPU time of the servers, with what they
// put off until it was over: that is waited for, so that it slows no other target.
func measure(ctx context.Context, t Target, o Options, job Job) (Figure, error) {
	if job.Fresh && t.Empty != nil {
		if err := t.Empty(ctx); err != nil {
			return Figure{}, fmt.Errorf("empty %s: %w", t.Name, err)
		}
	}
	var pids []int
	if t.Pids != nil {
		pids = t.Pids()
	}
	before := cpuTime(pids)
	f, err := fio(ctx, t, o, job)
	if err != nil {
		return f.Figure, err
	}
	after, err := settle(ctx, pids)
	if err != nil {
		return f.Figure, err
	}
	if f.ios > 0 {
		f.CPU = float64((after - before).Microseconds()) / float64(f.ios)
	}
	f.Job, f.Target = job.ID, t.Name
	return f.Figure, nil
}

// settle waits until processes do nothing much, for settleMost at most, and returns
// their CPU time.
func settle(ctx context.Context, pids []int) (time.Duration, error) {
	last := cpuTime(pids)
	for range settleMost / settleEvery {
		if err := clock.Sleep(ctx, settleEvery); err != nil {
			return 0, err
		}
		now := cpuTime(pids)
		if now-last <= settleEvery/10 {
			return now, nil
		}
		last = now
	}
	return last, nil
}

// cpuTime is the CPU time that processes have used.
func cpuTime(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		var user, system int64
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(f) > 12 {
			fmt.Sscan(f[11], &user)
			fmt.Sscan(f[12], &system)
		}
		sum += time.Duration(user+system) * statTick
	}
	return sum
}

// outcome is what fio tells of one job.
type outcome struct {
	Figure
	ios     int64
	Longest time.Duration // of one I/O
}

// fio runs one job.
func fio(ctx context.Context, t Target, o Options, job Job) (outcome, error) {
	args := append([]string{"--name=bench", "--output-format=json", "--thread=1", "--norandommap", "--refill_buffers", "--randrepeat=0",
		fmt.Sprintf("--size=%d", o.SizeBytes)}, t.FioArgs...)
	if !job.Fresh {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%dms", o.Runtime.Milliseconds()))
	}
	args = append(args, job.Args...)
	ctx, cancel := context.WithTimeout(ctx, o.Runtime+fioSlack)
	defer cancel()
	cmd := exec.CommandContext(ctx, "fio", args...)
	cmd.Env = append(os.Environ(), t.Env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return outcome{}, fmt.Errorf("run fio %s on %s: %w: %s", job.Name, t.Name, err, strings.TrimSpace(stderr.String()))
	}
	return parseFio(out, job)
}

// parseFio reads fio's JSON, in front of which fio may print notes.
func parseFio(out []byte, job Job) (o outcome, err error) {
	type dir struct {
		IOPS float64 `json:"iops"`
		BW   float64 `json:"bw_bytes"`
		IOs  int64   `json:"total_ios"`
		Clat struct {
			Max float64            `json:"max"`
			P   map[string]float64 `json:"percentile"`
		} `json:"clat_ns"`
	}
	var v struct {
		Jobs []struct {
			Error int `json:"error"`
			Read  dir `json:"read"`
			Write dir `json:"write"`
		} `json:"jobs"`
	}
	start := strings.IndexByte(string(out), '{')
	if start < 0 {
		return o, errs.New(errs.Corrupt, "read fio's answer: no JSON")
	}
	// Behind the JSON some engines print notes, too.
	if err := json.NewDecoder(strings.NewReader(string(out[start:]))).Decode(&v); err != nil || len(v.Jobs) != 1 {
		return o, errs.New(errs.Corrupt, "read fio's answer: %v", err)
	}
	if e := v.Jobs[0].Error; e != 0 {
		return o, errs.New(errs.Unavailable, "fio job %s ended with error %d", job.Name, e)
	}
	d := v.Jobs[0].Write
	if job.Read {
		d = v.Jobs[0].Read
	}
	o.Longest = time.Duration(d.Clat.Max)
	o.ios, o.P99, o.Value = d.IOs, d.Clat.P["99.000000"]/1e3, d.IOPS
	if job.MBps {
		o.Value = d.BW / 1e6
	}
	return o, nil
}

// Median of the figures; 0 for none.
func Median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
