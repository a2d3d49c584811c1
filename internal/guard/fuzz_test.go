package guard

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"os"
	"testing"

	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
	"roseau/internal/core/vmguard"
	"roseau/internal/driver/ctlsock"
	"roseau/internal/driver/guardctl"
	"roseau/internal/driver/volumectl"
)

// controlBodies makes each kind of body that the control socket takes.
var controlBodies = []func() any{
	func() any { return &guardctl.StopRequest{} },
	func() any { return &guardctl.MigrateRequest{} },
	func() any { return &guardctl.ReplaceDiskRequest{} },
	func() any { return &repl.SnapshotOrder{} },
	func() any { return &volumectl.ScrubRequest{} },
	func() any { return &empty{} },
}

// FuzzControlBody: what a client sends to the control socket is refused, or says
// the same when it is sent on.
func FuzzControlBody(f *testing.F) {
	id := ids.ID{1, 2, 3}
	for i, m := range []any{
		guardctl.StopRequest{Force: true, Timeout: 7e9},
		guardctl.MigrateRequest{Target: id, TargetName: "srv2", Addresses: []string{"10.0.0.2", "fd00::2"}, Port: 4711, Why: "drain", DowntimeLimit: 5e7, MaxBandwidth: 1 << 30},
		guardctl.ReplaceDiskRequest{Volume: id, Old: ids.ID{4}, New: ids.ID{5}, Segments: []uint32{0, 7}, Live: true},
		repl.SnapshotOrder{Volume: id, Snapshot: repl.Snapshot{Name: "nightly"}},
		volumectl.ScrubRequest{Volume: id, Action: volumectl.ScrubShow},
		empty{},
	} {
		b, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(byte(i), b)
	}
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		decode := func(b []byte) (any, error) {
			v := controlBodies[int(kind)%len(controlBodies)]()
			return v, ctlsock.Decode(httptest.NewRecorder(), httptest.NewRequest("POST", "/x", bytes.NewReader(b)), "x", v)
		}
		v, err := decode(body)
		if err != nil {
			return
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decode(b)
		if err != nil {
			t.Fatalf("%s is refused, and was made of what was taken: %v", b, err)
		}
		if c, _ := json.Marshal(again); !bytes.Equal(b, c) {
			t.Fatalf("%s became %s", b, c)
		}
	})
}

// FuzzRunFile: run.json may be torn, old or from hand. A successor takes it or
// leaves it; it never panics over it.
func FuzzRunFile(f *testing.F) {
	f.Add([]byte(`{"pid":7,"start":9,"saved":{"run":"10000000-0000-4000-8000-000000000001","migration":{"stage":"streaming","peer":{"node":"20000000-0000-4000-8000-000000000001"},"epoch":5}}}`))
	f.Add([]byte(`{"saved":{"run":"10000000-0000-4000-8000-000000000001","incoming":true}}`))
	f.Add([]byte(`{"saved":`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		x := files{dir}
		if err := os.WriteFile(x.record(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, ok := x.readRecord()
		if !ok {
			return
		}
		c := vmguard.New(r.Saved.Run)
		for _, e := range []vmguard.Event{vmguard.Adopt{Saved: r.Saved}, vmguard.VolumesOpened{}, vmguard.Taken{Epoch: 3}, vmguard.QMPUp{Status: "running"}, vmguard.Tick{}} {
			c.Step(1, e)
		}
	})
}
