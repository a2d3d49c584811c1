package drill

import (
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/tabwriter"
	"time"
)

// headline names the figures that stand in the table, a test's most telling
// first; the report has all of them.
var headline = map[string][]string{
	"live-migration":   {"pings_sent", "pings_lost", "longest_gap_ms", "blackout_ms", "guest_gap_ms", "writes_acked", "writes_lost"},
	"busy-migration":   {"dirty_bytes_per_s", "bandwidth_bytes_per_s", "given_up_ms", "throttle_percent", "migration_ms", "blackout_ms", "writes_lost"},
	"migrations":       {"migrations", "without_loss", "ordered_pairs", "pings_sent", "pings_lost", "longest_gap_median_ms", "blackout_median_ms", "guest_gap_median_ms"},
	"node-failure":     {"detected_ms", "restarted_ms", "service_back_ms", "writes_acked", "writes_lost", "vms_run_twice"},
	"process-kill":     {"baseline_ms", "node_killed_ms", "storage_killed_ms", "guard_killed_ms", "io_errors", "writes_acked", "writes_lost"},
	"control-plane":    {"longest_stall_ms", "io_errors", "vm_pauses", "writes_acked", "writes_lost", "vms_run_twice"},
	"node-replacement": {"restarted_ms", "service_back_ms", "replaced_ms", "copies", "writes_acked", "writes_lost", "vms_run_twice"},
	"double-failure":   {"restarted_ms", "in_turn_restarted_ms", "service_back_ms", "writes_acked", "writes_lost", "vms_run_twice"},
	"isolation":        {"silent_ms", "restarted_ms", "service_back_ms", "writes_acked", "writes_lost", "vms_run_twice"},
	"freeze":           {"silent_ms", "restarted_ms", "service_back_ms", "vm_restarts", "writes_acked", "writes_lost", "vms_run_twice"},
	"drain":            {"drain_ms", "failback_ms", "vm_restarts", "pings_sent", "pings_lost", "longest_gap_ms", "writes_acked", "writes_lost"},
	"node-shutdown":    {"shutdown_ms", "failback_ms", "vm_restarts", "longest_stall_ms", "writes_acked", "writes_lost"},
	"rolling-restart":  {"took_ms", "nodes_restarted", "fewest_copies", "vm_restarts", "longest_stall_ms", "writes_acked", "writes_lost"},
	"cold-start":       {"restarted_ms", "service_back_ms", "writes_acked", "writes_lost", "vms_run_twice"},
	"packet-loss":      {"other_longest_gap_ms", "other_times_put_out", "own_longest_gap_ms", "own_times_put_out", "writes_acked", "writes_lost"},
	"copies-cut":       {"warm_away_ms", "warm_longest_write_ms", "warm_chunks_lost", "cold_service_back_ms", "writes_acked", "writes_lost"},
	"disk-failure":     {"io_errors", "longest_stall_ms", "degraded_seen", "rebuilt_bytes", "rebuild_ms", "writes_acked", "writes_lost"},
}

func (t *TestReport) headlines() string {
	names := headline[t.Name]
	var parts []string
	for _, n := range names {
		if v, ok := t.Figures[n]; ok {
			parts = append(parts, fmt.Sprintf("%s %v", n, v))
		}
	}
	return strings.Join(parts, ", ")
}

func (t *TestReport) verdict() string {
	if t.Passed {
		return "passed"
	}
	return "FAILED"
}

// WriteTable prints the table for people: test, method, result with figures.
func (r *Report) WriteTable(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "TEST\tRESULT\tFIGURES")
	for _, t := range r.Tests {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", t.Name, t.verdict(), t.headlines())
		fmt.Fprintf(tw, "\t\tmethod: %s\n", t.Method)
		for _, f := range t.Failed {
			fmt.Fprintf(tw, "\t\tmissed: %s\n", f)
		}
	}
	return tw.Flush()
}

// WriteFiles writes report.json, report.md and report.html into dir.
func (r *Report) WriteFiles(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	js, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	var html strings.Builder
	if err := page.Execute(&html, r); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "report.json"), append(js, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, "report.md"), []byte(r.markdown()), 0o644),
		os.WriteFile(filepath.Join(dir, "report.html"), []byte(html.String()), 0o644),
	)
}

func (r *Report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Drill of cluster %s\n\nStarted %s, version %s, load average %s.\n\n", r.Cluster, r.Started.Format(time.RFC3339), r.Version, r.Load)
	b.WriteString("| test | method | result |\n|---|---|---|\n")
	for _, t := range r.Tests {
		fmt.Fprintf(&b, "| %s | %s | **%s** %s |\n", t.Name, t.Method, t.verdict(), t.headlines())
	}
	for _, t := range r.Tests {
		fmt.Fprintf(&b, "\n## %s\n\n", t.Name)
		for _, f := range t.Failed {
			fmt.Fprintf(&b, "- missed: %s\n", f)
		}
		for _, f := range t.FigureList() {
			fmt.Fprintf(&b, "- %s: %v\n", f.Name, f.Value)
		}
		b.WriteString("\n```\n" + strings.Join(t.Log, "\n") + "\n```\n")
	}
	return b.String()
}

// Figure is one measured value.
type Figure struct {
	Name  string
	Value any
}

// FigureList returns the figures in the order of their names.
func (t *TestReport) FigureList() []Figure {
	var out []Figure
	for n, v := range t.Figures {
		out = append(out, Figure{n, v})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Plot is a series as the report draws it.
type Plot struct {
	Name         string
	Points       string // of an SVG polyline
	XLast, YMost float64
}

const plotWidth, plotHeight = 720.0, 160.0

// Plots returns the test's series as SVG polylines.
func (t *TestReport) Plots() []Plot {
	var out []Plot
	for _, s := range t.Series {
		if len(s.X) == 0 {
			continue
		}
		p := Plot{Name: s.Name, XLast: s.X[len(s.X)-1]}
		for _, y := range s.Y {
			p.YMost = math.Max(p.YMost, y)
		}
		var b strings.Builder
		for i := range s.X {
			x := s.X[i] / math.Max(p.XLast, 1e-9) * plotWidth
			y := plotHeight - s.Y[i]/math.Max(p.YMost, 1e-9)*(plotHeight-8)
			fmt.Fprintf(&b, "%.1f,%.1f ", x, y)
		}
		p.Points = b.String()
		out = append(out, p)
	}
	return out
}

var page = template.Must(template.New("report").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Drill of cluster {{.Cluster}}</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d2b24}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #cdd8d1;padding:.35rem .6rem;text-align:left;vertical-align:top}
.ok{color:#1b7a43;font-weight:600}.bad{color:#b3261e;font-weight:600}pre{background:#f3f6f4;padding:.8rem;overflow:auto}
svg{background:#f3f6f4;width:100%;height:auto}polyline{fill:none;stroke:#1b7a43;stroke-width:1.2}figcaption{color:#55635b}
</style></head><body>
<h1>Drill of cluster {{.Cluster}}</h1>
<p>Started {{.Started.Format "2006-01-02 15:04:05 MST"}}, version {{.Version}}, load average {{.Load}}.</p>
<table><tr><th>test</th><th>method</th><th>result</th></tr>
{{range .Tests}}<tr><td><a href="#{{.Name}}">{{.Name}}</a></td><td>{{.Method}}</td><td class="{{if .Passed}}ok{{else}}bad{{end}}">{{if .Passed}}passed{{else}}FAILED{{end}}</td></tr>
{{end}}</table>
{{range .Tests}}<h2 id="{{.Name}}">{{.Name}}</h2>
{{range .Failed}}<p class="bad">missed: {{.}}</p>{{end}}
<table>{{range .FigureList}}<tr><td>{{.Name}}</td><td>{{.Value}}</td></tr>{{end}}</table>
{{range .Plots}}<figure><svg viewBox="0 0 720 160" role="img" aria-label="{{.Name}}"><polyline points="{{.Points}}"/></svg>
<figcaption>{{.Name}}: 0 to {{printf "%.1f" .XLast}} s across, 0 to {{printf "%.1f" .YMost}} up</figcaption></figure>{{end}}
<pre>{{range .Log}}{{.}}
{{end}}</pre>{{end}}
</body></html>
`))

// LoadAverage is the machine's, for the reader who wonders about a figure.
func LoadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	f := strings.Fields(string(b))
	if len(f) < 3 {
		return "unknown"
	}
	return strings.Join(f[:3], " ")
}
