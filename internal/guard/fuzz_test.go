package guard

import (
	"os"
	"testing"

	"roseau/internal/core/vmguard"
)

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
