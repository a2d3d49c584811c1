// Package bench measures a Roseau volume of three copies beside a plain file,
// qemu-nbd and QEMU's quorum driver, all on one disk, with the same fio jobs.
//
// Absolute figures of a shared machine mean little. The rounds are interleaved,
// so that a slow minute hits every target alike, and what counts is the ratio of
// medians to quorum: QEMU's own three-way mirror, without resync, leases or checksums.
package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/errs"
)

// Job is one fio job.
type Job struct {
	Name string
	Args []string
	MBps bool // the figure is MB/s, not IOPS
	Read bool
}

// Jobs are the rows of the table.
var Jobs = []Job{
	{Name: "4k random write, depth 1", Args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1"}},
	{Name: "4k random write, depth 16", Args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=16"}},
	{Name: "4k random write, flush each", Args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"}},
	{Name: "4k random read, depth 1", Args: []string{"--rw=randread", "--bs=4k", "--iodepth=1"}, Read: true},
	{Name: "4k random read, depth 16", Args: []string{"--rw=randread", "--bs=4k", "--iodepth=16"}, Read: true},
	{Name: "1M sequential write, depth 8", Args: []string{"--rw=write", "--bs=1M", "--iodepth=8"}, MBps: true},
	{Name: "1M sequential read, depth 8", Args: []string{"--rw=read", "--bs=1M", "--iodepth=8"}, MBps: true, Read: true},
}

// Target is something that fio can write to.
type Target struct {
	Name string
	// FioArgs say how fio reaches it: --ioengine and --filename or --uri.
	FioArgs []string
	// Bare: no server process; the file itself.
	Bare bool
}

// Options of a run.
type Options struct {
	SizeBytes int64         // of the data that jobs use; default 512 MiB
	Rounds    int           // default 3
	Runtime   time.Duration // of one job on one target; default 2 s
	Jobs      []Job         // default Jobs
	Progress  io.Writer     // nil: none
}

const defaultBytes = 512 << 20

// Result has the figures: Figures[job][target] lists one a round.
type Result struct {
	Options Options
	Targets []Target
	Figures [][][]float64
}

// Run fills each target with data that does not compress to holes, then runs
// the rounds: for each round each job, for each job each target, starting with
// another target each round.
func Run(ctx context.Context, targets []Target, o Options) (*Result, error) {
	if o.SizeBytes == 0 {
		o.SizeBytes = defaultBytes
	}
	if o.Rounds == 0 {
		o.Rounds = 3
	}
	if o.Runtime == 0 {
		o.Runtime = 2 * time.Second
	}
	if o.Jobs == nil {
		o.Jobs = Jobs
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if _, err := exec.LookPath("fio"); err != nil {
		return nil, errs.New(errs.NotFound, "run benchmark: fio is not installed").WithHint("apt install fio")
	}
	r := &Result{Options: o, Targets: targets, Figures: make([][][]float64, len(o.Jobs))}
	for i := range r.Figures {
		r.Figures[i] = make([][]float64, len(targets))
	}
	for _, t := range targets {
		fmt.Fprintf(o.Progress, "fill %s\n", t.Name)
		if _, err := fio(ctx, t, o, Job{Name: "fill", Args: []string{"--rw=write", "--bs=1M", "--iodepth=4", "--end_fsync=1"}}, true); err != nil {
			return nil, err
		}
	}
	for round := range o.Rounds {
		for j, job := range o.Jobs {
			for k := range targets {
				i := (k + round) % len(targets)
				v, err := fio(ctx, targets[i], o, job, false)
				if err != nil {
					return nil, err
				}
				r.Figures[j][i] = append(r.Figures[j][i], v)
				fmt.Fprintf(o.Progress, "round %d: %s: %s %.0f\n", round+1, job.Name, targets[i].Name, v)
			}
		}
	}
	return r, nil
}

// fio runs one job and returns its figure.
func fio(ctx context.Context, t Target, o Options, job Job, fill bool) (float64, error) {
	args := append([]string{"--name=bench", "--output-format=json", "--thread=1", "--norandommap", "--refill_buffers", "--randrepeat=0",
		fmt.Sprintf("--size=%d", o.SizeBytes)}, t.FioArgs...)
	if !fill {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%dms", o.Runtime.Milliseconds()))
	}
	args = append(args, job.Args...)
	ctx, cancel := context.WithTimeout(ctx, o.Runtime+5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "fio", args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("run fio %s on %s: %w: %s", job.Name, t.Name, err, strings.TrimSpace(stderr.String()))
	}
	return parseFio(out, job)
}

// parseFio reads fio's JSON, in front of which fio may print notes.
func parseFio(out []byte, job Job) (float64, error) {
	type dir struct {
		IOPS float64 `json:"iops"`
		BW   float64 `json:"bw_bytes"`
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
		return 0, errs.New(errs.Corrupt, "read fio's answer: no JSON")
	}
	if err := json.Unmarshal(out[start:], &v); err != nil || len(v.Jobs) != 1 {
		return 0, errs.New(errs.Corrupt, "read fio's answer: %v", err)
	}
	if e := v.Jobs[0].Error; e != 0 {
		return 0, errs.New(errs.Unavailable, "fio job %s ended with error %d", job.Name, e)
	}
	d := v.Jobs[0].Write
	if job.Read {
		d = v.Jobs[0].Read
	}
	if job.MBps {
		return d.BW / 1e6, nil
	}
	return d.IOPS, nil
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

// Table renders the medians, and in the last column the ratio of the last
// target to the one named base.
func (r *Result) Table(base string) string {
	ref := slices.IndexFunc(r.Targets, func(t Target) bool { return t.Name == base })
	last := len(r.Targets) - 1
	var b strings.Builder
	b.WriteString("| job |")
	for _, t := range r.Targets {
		b.WriteString(" " + t.Name + " |")
	}
	fmt.Fprintf(&b, " %s / %s |\n|---|%s---:|\n", r.Targets[last].Name, base, strings.Repeat("---:|", len(r.Targets)))
	for j, job := range r.Options.Jobs {
		unit := "IOPS"
		if job.MBps {
			unit = "MB/s"
		}
		fmt.Fprintf(&b, "| %s (%s) |", job.Name, unit)
		for i := range r.Targets {
			fmt.Fprintf(&b, " %.0f |", Median(r.Figures[j][i]))
		}
		ratio := 0.0
		if ref >= 0 && Median(r.Figures[j][ref]) > 0 {
			ratio = Median(r.Figures[j][last]) / Median(r.Figures[j][ref])
		}
		fmt.Fprintf(&b, " %.2f |\n", ratio)
	}
	return b.String()
}
