package bench

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"
)

// unit of a job's figures.
func (j *Job) unit() string {
	if j.MBps {
		return "MB/s"
	}
	return "IOPS"
}

// ratio of two targets' medians; 0 if one is missing.
func (r *Result) ratio(job, a, b string) float64 {
	if m := r.median(job, b); m > 0 {
		return r.median(job, a) / m
	}
	return 0
}

// verdict compares a ratio with its aim.
func verdict(ratio, aim float64, atMost bool) string {
	switch {
	case ratio == 0:
		return "-"
	case aim == 0:
		return fmt.Sprintf("%.2f", ratio)
	case atMost && ratio <= aim, !atMost && ratio >= aim:
		return fmt.Sprintf("%.2f (%.1f: reached)", ratio, aim)
	}
	return fmt.Sprintf("**%.2f** (%.1f: missed)", ratio, aim)
}

// Table renders the medians, and the ratios of Roseau to quorum and to Ceph.
func (r *Result) Table() string {
	var b strings.Builder
	b.WriteString("| job |")
	for _, t := range r.Targets {
		b.WriteString(" " + t + " |")
	}
	b.WriteString(" roseau / quorum (aim) | roseau / ceph (aim) |\n|---|" + strings.Repeat("---:|", len(r.Targets)+2) + "\n")
	for i := range r.Options.Jobs {
		job := &r.Options.Jobs[i]
		fmt.Fprintf(&b, "| %s (%s) |", job.Name, job.unit())
		for _, t := range r.Targets {
			fmt.Fprintf(&b, " %.0f |", r.median(job.ID, t))
		}
		fmt.Fprintf(&b, " %s | %s |\n", verdict(r.ratio(job.ID, Roseau, Quorum), job.OverQuorum, false), verdict(r.ratio(job.ID, Roseau, Ceph), job.OverCeph, false))
	}
	return b.String()
}

// table renders a cell for each job and target.
func (r *Result) table(cell func(job, target string) string) string {
	var b strings.Builder
	b.WriteString("| job |")
	for _, t := range r.Targets {
		b.WriteString(" " + t + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---:|", len(r.Targets)) + "\n")
	for _, job := range r.Options.Jobs {
		fmt.Fprintf(&b, "| %s |", job.Name)
		for _, t := range r.Targets {
			b.WriteString(" " + cell(job.ID, t) + " |")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// tableOf renders the medians of another kind of value.
func (r *Result) tableOf(of func(*Figure) float64) string {
	return r.table(func(job, target string) string {
		if v := Median(r.values(job, target, of)); v > 0 {
			return fmt.Sprintf("%.0f", v)
		}
		return "-"
	})
}

func (r *Result) spread() string {
	return r.table(func(job, target string) string {
		low, high := 0.0, 0.0
		for i, v := range r.values(job, target, func(f *Figure) float64 { return f.Value }) {
			if i == 0 {
				low, high = v, v
			}
			low, high = min(low, v), max(high, v)
		}
		return fmt.Sprintf("%.0f-%.0f", low, high)
	})
}

// Report writes the result as a page; plot is the file name of the plot beside.
func (r *Result) Report(w io.Writer, commit, plot string, now time.Time) error {
	var b strings.Builder
	o := &r.Options
	fmt.Fprintf(&b, "# Benchmarks\n\n%s, commit %s, %s, %d CPUs. Made by `make bench`; nothing here is written by hand but the last section.\n\n",
		now.UTC().Format("2006-01-02 15:04 MST"), commit, runtime.Version(), runtime.NumCPU())
	fmt.Fprintf(&b, "All targets on one disk, %d MiB of data, jobs of %v, medians of %d interleaved rounds. Compare ratios; absolute figures are this machine's.\n\n", o.SizeBytes>>20, o.Runtime, o.Rounds)
	b.WriteString("- quorum: QEMU's quorum driver over three qemu-nbd on unix sockets: three copies, without leases, checksums, logs or resync.\n")
	if r.has(Ceph) {
		b.WriteString("- ceph: RBD of three copies, one monitor and three OSDs on loopback, without encryption on the wire (`bench/ceph.sh`).\n")
	}
	b.WriteString("- roseau: a volume of three copies on three storage processes, one over a unix socket, two over mutual TLS on loopback.\n")
	b.WriteString("- The disk is shared: three copies cost three writes of it, a Roseau overwrite six (log and place; a block that is written again before a checkpoint goes to its place once), a first write of 16 KiB or more three. A Roseau disk has a log of 1 GiB here, as one of 64 GiB would.\n")
	b.WriteString("- A job ends when its servers rest: what they put off (checkpoints) counts in their CPU, and slows no other target.\n\n")
	b.WriteString(r.Table())
	fmt.Fprintf(&b, "\n![each row relative to quorum](%s)\n\n## What an acknowledgement means\n\n", plot)
	for _, job := range o.Jobs {
		if job.Ack != "" {
			fmt.Fprintf(&b, "- %s: %s\n", job.Name, job.Ack)
		}
	}
	b.WriteString("\nThe raw file and qemu-nbd keep one copy. A first write finds preallocated zeros in files, an image without objects in Ceph and a discarded volume in Roseau.\n")
	b.WriteString("\n## CPU of all server processes, microseconds an I/O\n\n")
	b.WriteString(r.tableOf(func(f *Figure) float64 { return f.CPU }))
	cpu := func(t string) float64 { return Median(r.values(cpuJob, t, func(f *Figure) float64 { return f.CPU })) }
	for _, x := range []struct {
		target string
		aim    float64
	}{{Quorum, cpuQuorum}, {Ceph, cpuCeph}} {
		if c := cpu(x.target); c > 0 {
			fmt.Fprintf(&b, "\nA 4 KiB write at depth 16: roseau / %s %s.\n", x.target, verdict(cpu(Roseau)/c, x.aim, true))
		}
	}
	b.WriteString("\nRoseau's includes the cluster state store that runs beside the writer here. The clients are not counted.\n\n## 99th percentile of latency, microseconds\n\n")
	b.WriteString(r.tableOf(func(f *Figure) float64 { return f.P99 }))
	b.WriteString("\n## Lowest and highest round\n\n")
	b.WriteString(r.spread())
	b.WriteString("\n## Local reads\n\n")
	for _, id := range []string{"r1", "r16", "sr"} {
		if q := r.ratio(id, Roseau, QemuNBD); q > 0 {
			fmt.Fprintf(&b, "- %s: roseau / qemu-nbd on the raw file %s\n", id, verdict(q, localReadOfQemuNBD, false))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
