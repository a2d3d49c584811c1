package volume

import (
	"encoding/json"
	"testing"

	"roseau/internal/core/repl"
)

// FuzzRecord: what etcd holds may be from another version, or from hand: it is
// refused, or it can be used without a panic.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"epoch":3,"nonce":"01000000-0000-0000-0000-000000000001","cfg_version":7,"out":{"d1000000-0000-4000-8000-000000000001":{"base":{"epoch":2,"wseq":9},"reason":"hung"}}}`),
		[]byte(`{"size_bytes":1073741824,"copies":3,"state":"live"}`),
		[]byte(`{"disks":["d1000000-0000-4000-8000-000000000001","d2000000-0000-4000-8000-000000000001"],"map":[[0,1],[1,0]]}`))
	f.Add([]byte(`{}`), []byte(`{}`), []byte(`{"disks":[],"map":[[7]]}`))
	f.Fuzz(func(t *testing.T, own, cfg, seg []byte) {
		r := repl.VolumeRecord{}
		if decodeRecord("own", own, &r.Own) != nil || decodeRecord("cfg", cfg, &r.Cfg) != nil || decodeRecord("seg", seg, &r.Seg) != nil {
			return
		}
		if r.Supported() != nil || r.Seg.Check() != nil {
			return
		}
		for i := range r.Seg.Map {
			if len(r.ISR(i)) > len(r.Seg.Row(i)) {
				t.Fatal("more in sync than there are")
			}
		}
		for d := range r.Own.Out {
			if _, next, err := repl.Grow(r, d); err == nil && len(next.Own.Out) != len(r.Own.Out)-1 {
				t.Fatal("grow")
			}
		}
		b, err := json.Marshal(r.Own)
		if err != nil {
			t.Fatal(err)
		}
		var again repl.Own
		if err := decodeRecord("own", b, &again); err != nil {
			t.Fatal(err)
		}
	})
}
