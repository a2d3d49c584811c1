package drill

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/drill/probe"
)

func TestRecorderKeepsTheNewestOfEachSlot(t *testing.T) {
	r := newRecorder(nil, netip.AddrPort{})
	now := time.Now()
	r.watch()
	r.note(5, now.Add(10*time.Millisecond))
	r.note(5+probe.LogBlocks, now.Add(50*time.Millisecond))
	newest, total := r.ledger()
	if total != 2 || len(newest) != 1 || newest[probe.Slot(5)] != 5+probe.LogBlocks || r.last() != 5+probe.LogBlocks {
		t.Fatal(newest, total, r.last())
	}
	if g := r.watched(); g < 40*time.Millisecond || g > time.Second {
		t.Fatal("longest gap", g)
	}
}

func TestSelect(t *testing.T) {
	if all, err := Select(nil); err != nil || len(all) != 3 {
		t.Fatal(all, err)
	}
	if one, err := Select([]string{"disk-failure"}); err != nil || len(one) != 1 || one[0].Name != "disk-failure" {
		t.Fatal(one, err)
	}
	_, err := Select([]string{"x"})
	if errs.Kind(err) != errs.NotFound || !strings.Contains(errs.Hint(err), "node-failure") {
		t.Fatal(err, errs.Hint(err))
	}
}

func TestReportIsWritten(t *testing.T) {
	r := &Report{Cluster: "lab", Started: time.Unix(0, 0), Tests: []*TestReport{
		{Name: "live-migration", Passed: true, Method: "m", Figures: Figures{"pings_lost": 0, "pings_sent": 10}, Series: []Series{{Name: "rtt", X: []float64{0, 1}, Y: []float64{1, 2}}}},
		{Name: "node-failure", Method: "n", Figures: Figures{}, Failed: []string{"<late>"}},
	}}
	if r.Passed() {
		t.Fatal("a failed test passes")
	}
	var table bytes.Buffer
	if err := r.WriteTable(&table); err != nil || !strings.Contains(table.String(), "pings_lost 0") || !strings.Contains(table.String(), "missed: <late>") {
		t.Fatal(err, table.String())
	}
	dir := t.TempDir()
	if err := r.WriteFiles(dir); err != nil {
		t.Fatal(err)
	}
	js, _ := os.ReadFile(filepath.Join(dir, "report.json"))
	var back Report
	if err := json.Unmarshal(js, &back); err != nil || len(back.Tests) != 2 || back.Tests[0].Figures["pings_sent"] != 10.0 {
		t.Fatal(err, back)
	}
	html, _ := os.ReadFile(filepath.Join(dir, "report.html"))
	if !bytes.Contains(html, []byte("&lt;late&gt;")) || !bytes.Contains(html, []byte("<polyline")) {
		t.Fatal("report.html")
	}
	if (&Report{}).Passed() {
		t.Fatal("an empty report passes")
	}
}
