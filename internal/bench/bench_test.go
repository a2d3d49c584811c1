package bench

import (
	"context"
	"os/exec"
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
	r := &Result{Options: Options{Jobs: Jobs[:1]}, Targets: []Target{{Name: "quorum"}, {Name: "roseau"}}, Figures: [][][]float64{{{100, 200, 300}, {150, 160, 170}}}}
	want := "| job | quorum | roseau | roseau / quorum |\n|---|---:|---:|---:|\n| 4k random write, depth 1 (IOPS) | 200 | 160 | 0.80 |\n"
	if got := r.Table("quorum"); got != want {
		t.Errorf("table:\n%s", got)
	}
}

func TestParseFio(t *testing.T) {
	out := []byte("note: something\n{\"jobs\":[{\"error\":0,\"read\":{\"iops\":7,\"bw_bytes\":5000000},\"write\":{\"iops\":3}}]}")
	if v, err := parseFio(out, Job{Read: true, MBps: true}); err != nil || v != 5 {
		t.Error(v, err)
	}
	if v, err := parseFio(out, Job{}); err != nil || v != 3 {
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
	for j := range r.Figures {
		for i := range r.Targets {
			if Median(r.Figures[j][i]) <= 0 {
				t.Errorf("job %d on %s: nothing measured", j, r.Targets[i].Name)
			}
		}
	}
}
