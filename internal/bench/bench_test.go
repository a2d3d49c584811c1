package bench

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMedianAndTable(t *testing.T) {
	if m := Median([]float64{5, 1, 9}); m != 5 {
		t.Error(m)
	}
	if m := Median([]float64{4, 1, 9, 6}); m != 5 {
		t.Error(m)
	}
	r := sample()
	want := "| job | quorum | roseau | roseau / quorum (aim) | roseau / ceph (aim) |\n|---|---:|---:|---:|---:|\n" +
		"| 4k random write, depth 1 (IOPS) | 200 | 160 | **0.80** (0.9: missed) | - |\n"
	if got := r.Table(); got != want {
		t.Errorf("table:\n%s", got)
	}
}

func sample() *Result {
	r := &Result{Options: Options{Jobs: Jobs[:1], Rounds: 3}, Targets: []string{Quorum, Roseau}}
	for i, v := range [][2]float64{{100, 150}, {200, 160}, {300, 170}} {
		r.Figures = append(r.Figures, Figure{Round: i, Job: "w1", Target: Quorum, Value: v[0], CPU: 50}, Figure{Round: i, Job: "w1", Target: Roseau, Value: v[1], CPU: 60})
	}
	return r
}

func TestReportAndPlot(t *testing.T) {
	var page, svg strings.Builder
	r := sample()
	if err := errors.Join(r.Report(&page, "abc", "p.svg", time.Unix(0, 0)), r.Plot(&svg)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"commit abc", "| 50 | 60 |", "p.svg", "lost if power fails", "| 100-300 | 150-170 |"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page lacks %q:\n%s", want, page.String())
		}
	}
	d := xml.NewDecoder(strings.NewReader(svg.String()))
	bars := 0
	for {
		tok, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "title" {
			bars++
		}
	}
	if bars != 2 {
		t.Errorf("%d bars", bars)
	}
}

// A run that was cut off is gone on with; other settings begin again.
func TestState(t *testing.T) {
	o := Options{SizeBytes: 1, Runtime: time.Second, State: filepath.Join(t.TempDir(), "s")}
	s, err := openState(o)
	if err != nil {
		t.Fatal(err)
	}
	want := Figure{Round: 2, Job: "w1", Target: Quorum, Value: 3}
	if err := errors.Join(s.add(want), s.close()); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(o.State, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"round":3,"jo`); err != nil { // cut off here
		t.Fatal(err)
	}
	f.Close()
	if s, err = openState(o); err != nil {
		t.Fatal(err)
	}
	if got, ok := s.find(2, "w1", Quorum); !ok || got != want || len(s.have) != 1 {
		t.Errorf("%+v %v", s.have, ok)
	}
	s.close()
	if r, err := FromState(o); err != nil || len(r.Targets) != 1 || r.median("w1", Quorum) != 3 || r.Options.Rounds != 3 {
		t.Errorf("%+v %v", r, err)
	}
	o.Runtime *= 2
	if _, err := FromState(o); err == nil {
		t.Error("figures of other settings count")
	}
	if s, err = openState(o); err != nil || len(s.have) != 0 {
		t.Errorf("%+v %v", s, err)
	}
	s.close()
}

func TestNames(t *testing.T) {
	if j, err := JobsByID([]string{"sr", "w1"}); err != nil || len(j) != 2 || j[0].ID != "sr" {
		t.Error(j, err)
	}
	if _, err := JobsByID([]string{"w2"}); err == nil || !strings.Contains(err.Error(), "w1, w16") {
		t.Error(err)
	}
	if _, err := TargetNames([]string{"rbd"}); err == nil || !strings.Contains(err.Error(), "ceph") {
		t.Error(err)
	}
}

func TestParseFio(t *testing.T) {
	out := []byte("note: something\n{\"jobs\":[{\"error\":0,\"read\":{\"iops\":7,\"bw_bytes\":5000000},\"write\":{\"iops\":3}}]}")
	if v, err := parseFio(out, Job{Read: true, MBps: true}); err != nil || v.Value != 5 {
		t.Error(v, err)
	}
	if v, err := parseFio(out, Job{}); err != nil || v.Value != 3 {
		t.Error(v, err)
	}
	if _, err := parseFio([]byte(`{"jobs":[{"error":5}]}`), Job{}); err == nil {
		t.Error("a failed job has a figure")
	}
	if _, err := parseFio([]byte("fio: broken"), Job{}); err == nil {
		t.Error("no JSON has a figure")
	}
}

func TestQuorumTargets(t *testing.T) {
	for _, name := range []string{"fio", "qemu-nbd"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var s servers
	defer s.stop()
	dir := t.TempDir()
	const size = 16 << 20
	raw, err := rawTarget(dir, size)
	if err != nil {
		t.Fatal(err)
	}
	q, err := quorum(ctx, &s, dir, size)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(ctx, []Target{raw, q}, Options{SizeBytes: size, Rounds: 1, Runtime: 200 * time.Millisecond, Jobs: Jobs[2:4]})
	if err != nil {
		if strings.Contains(err.Error(), "io_uring") {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	for _, j := range r.Options.Jobs {
		for _, target := range r.Targets {
			if r.median(j.ID, target) <= 0 {
				t.Errorf("job %s on %s: nothing measured", j.ID, target)
			}
		}
	}
	if len(r.values("wf1", Quorum, func(f *Figure) float64 { return f.CPU })) != 1 {
		t.Error("no CPU time of quorum")
	}
}
