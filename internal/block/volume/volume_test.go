package volume

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/nbd/nbdtest"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

func (w *world) fakes() []*fakeStorage {
	var out []*fakeStorage
	for i := range w.nodes {
		f := &fakeStorage{node: w.nodes[i], disk: w.disks[i], blocks: map[int64]fakeBlock{}}
		f.start(w.t, w.pki.listenTLS(w.nodes[i], w.addr(i)))
		w.t.Cleanup(f.kill)
		out = append(out, f)
	}
	return out
}

func fioVerify(t *testing.T, uri, size string) {
	t.Helper()
	nbdtest.Tool(t, "fio", "--name=v", "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bsrange=4k-128k", "--blockalign=4k",
		"--iodepth=16", "--size="+size, "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--fsync=32", "--thread=1")
}

func TestServeTakeRelease(t *testing.T) {
	w := newWorld(t)
	fakes := w.fakes()
	vol := w.volume(64 << 20)
	s := w.take(w.config(0, vol))
	if l := s.Lease(); !l.Held {
		t.Errorf("no lease: %+v", l)
	}
	uri := w.export(s, vol)
	fioVerify(t, uri, "8M")
	data := bytes.Repeat([]byte("three copies of everything. "), 300000)[:8<<20]
	src := filepath.Join(t.TempDir(), "src")
	if err := os.WriteFile(src, data, 0o600); err != nil {
		t.Fatal(err)
	}
	nbdtest.Tool(t, "nbdcopy", "--flush", src, uri)
	for i, f := range fakes {
		f.mu.Lock()
		for b := range int64(len(data) / repl.BlockBytes) {
			if !bytes.Equal(f.blocks[b].data, data[b*repl.BlockBytes:(b+1)*repl.BlockBytes]) {
				t.Fatalf("copy %d differs at block %d", i, b)
			}
		}
		f.mu.Unlock()
	}
	if f := strings.Fields(nbdtest.Tool(t, "nbdinfo", "--map", uri)); len(f) != 8 || f[1] != "8388608" || f[2] != "0" || f[6] != "3" {
		t.Errorf("map: %q", f)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Release(ctx); err != nil {
		t.Fatal(err)
	}
	for i, f := range fakes {
		if f.mu.Lock(); !f.released {
			t.Errorf("copy %d is not released", i)
		}
		f.mu.Unlock()
	}
	// A released volume is taken at once, without a wait for the lease.
	begun := time.Now()
	next := w.take(w.config(1, vol))
	if d := time.Since(begun); d > 2*time.Second {
		t.Errorf("the next take took %v", d)
	}
	nbdtest.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", src, w.export(next, vol))
}

// Requests that come before the take wait for it.
func TestRequestsWaitForTake(t *testing.T) {
	w := newWorld(t)
	w.fakes()
	vol := w.volume(16 << 20)
	s := w.open(w.config(0, vol))
	uri := w.export(s, vol)
	done := make(chan string, 1)
	go func() {
		done <- nbdtest.Tool(t, "qemu-io", "-f", "raw", uri, "-c", "write -P 3 0 64k", "-c", "read -P 3 0 64k")
	}()
	w.eventually("a request waits", 10*time.Second, func() bool { return s.Status().Volumes[0].Waiting > 0 })
	select {
	case out := <-done:
		t.Fatalf("answered before the take: %s", out)
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if p, err := s.Prepare(ctx); err != nil || !p.Ready {
		t.Fatalf("%+v %v", p, err)
	}
	if err := s.Take(ctx, Claim{}); err != nil {
		t.Fatal(err)
	}
	if out := <-done; strings.Contains(out, "failed") {
		t.Fatal(out)
	}
}

// A dead member leaves the in-sync set, and its return is reported.
func TestMemberDies(t *testing.T) {
	w := newWorld(t)
	fakes := w.fakes()
	vol := w.volume(16 << 20)
	s := w.take(w.config(0, vol))
	uri := w.export(s, vol)
	nbdtest.Tool(t, "qemu-io", "-f", "raw", uri, "-c", "write -P 1 0 1M", "-c", "flush")
	fakes[2].kill()
	nbdtest.Tool(t, "qemu-io", "-f", "raw", uri, "-c", "write -P 2 0 64k", "-c", "flush", "-c", "read -P 2 0 64k", "-c", "read -P 1 64k 64k")
	w.eventually("the dead copy is out", 10*time.Second, func() bool {
		return s.Status().Volumes[0].CopiesInSync == 2
	})
	resp, err := w.etcd.Get(context.Background(), repl.Key{Kind: repl.KeyOwn, ID: vol}.Path())
	if err != nil {
		t.Fatal(err)
	}
	var own repl.Own
	if err := json.Unmarshal(resp.Kvs[0].Value, &own); err != nil || len(own.Out) != 1 {
		t.Fatalf("%v %+v", err, own)
	}
}

// Without any storage, requests wait and nothing is answered with an error; when
// it is back the same requests are answered.
func TestAllStorageStalls(t *testing.T) {
	w := newWorld(t)
	fakes := w.fakes()
	vol := w.volume(16 << 20)
	s := w.take(w.config(0, vol))
	uri := w.export(s, vol)
	for _, f := range fakes {
		f.mu.Lock()
		f.mute = true
		f.mu.Unlock()
	}
	done := make(chan string, 1)
	go func() {
		done <- nbdtest.Tool(t, "qemu-io", "-f", "raw", uri, "-c", "write -P 9 0 64k", "-c", "read -P 9 0 64k")
	}()
	w.eventually("the lease lapses", 10*time.Second, func() bool { return !s.Lease().Held })
	for _, f := range fakes {
		f.mu.Lock()
		f.mute = false
		f.mu.Unlock()
	}
	select {
	case out := <-done:
		if strings.Contains(out, "rror") || strings.Contains(out, "failed") {
			t.Fatal(out)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("not answered: %+v", s.Status())
	}
	if !s.Lease().Held {
		t.Error("the lease did not come back")
	}
}

func TestOpenRefusals(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	vol := ids.New()
	if _, err := Open(ctx, w.config(0, vol)); errs.Kind(err) != errs.NotFound {
		t.Errorf("a volume without records: %v", err)
	}
	if _, err := Open(ctx, w.config(0, vol, vol)); errs.Kind(err) != errs.Invalid {
		t.Errorf("a volume twice: %v", err)
	}
	if _, err := Open(ctx, w.config(0)); errs.Kind(err) != errs.Invalid {
		t.Errorf("no volume: %v", err)
	}
	future := w.volume(1 << 30)
	w.put(repl.Key{Kind: repl.KeyCfg, ID: future}.Path(), repl.Cfg{SizeBytes: 1 << 30, Copies: 3, MinISR: 1, State: repl.VolumeLive, Incompat: 1 << 40})
	if _, err := Open(ctx, w.config(0, future)); errs.Kind(err) != errs.Invalid || !strings.Contains(err.Error(), "0x10000000000") || errs.Hint(err) == "" {
		t.Errorf("a volume from the future: %v, hint %q", err, errs.Hint(err))
	}
}

// A storage process of another protocol, or of another generation, is not talked
// to: its copy leaves the in-sync set, and an event says why and what to do.
func TestOtherProtocolIsRefused(t *testing.T) {
	w := newWorld(t)
	fakes := w.fakes()
	fakes[2].mu.Lock()
	fakes[2].refuse = wire.VersionMismatch
	fakes[2].mu.Unlock()
	s := w.take(w.config(0, w.volume(64<<20)))
	deadline := time.After(20 * time.Second)
	for {
		select {
		case e := <-s.Events():
			if e.Kind == EventWaiting && strings.Contains(e.Text, "speaks none of the protocol versions 3 to 3") && strings.Contains(e.Text, "upgrade the node") {
				return
			}
		case <-deadline:
			t.Fatal("nobody is told")
		}
	}
}

// The only copy that answers has a torn log: an operator is told what that may cost,
// and lets the volume go on.
func TestAcceptTail(t *testing.T) {
	w := newWorld(t)
	fakes := w.fakes()
	vol := w.volume(16 << 20)
	fakes[0].torn = 3
	for i := 1; i < 3; i++ {
		fakes[i].kill()
		w.alive(i, false)
	}
	s := w.open(w.config(0, vol))
	if _, err := s.AcceptTail(vol, true); errs.Kind(err) != errs.Conflict {
		t.Errorf("nothing waits yet: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if p, err := s.Prepare(ctx); err != nil || !p.Ready {
		t.Fatalf("%+v %v", p, err)
	}
	taken := make(chan error, 1)
	go func() { taken <- s.Take(ctx, Claim{}) }()
	w.eventually("it waits for an operator", 30*time.Second, func() bool {
		tail, err := s.AcceptTail(vol, false)
		return err == nil && len(tail.Doubts) == 1 && tail.Doubts[0].Unverified == 3 && tail.Doubts[0].Disk == w.disks[0] && len(tail.Doubts[0].Missing) == 2
	})
	if _, err := s.AcceptTail(ids.New(), true); errs.Kind(err) != errs.NotFound {
		t.Errorf("another volume: %v", err)
	}
	select {
	case err := <-taken:
		t.Fatalf("taken without a word: %v", err)
	default:
	}
	if _, err := s.AcceptTail(vol, true); err != nil {
		t.Fatal(err)
	}
	if err := <-taken; err != nil {
		t.Fatal(err)
	}
}
