package bench

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/block/nbd/nbdtest"
	"roseau/internal/block/volume"
	"roseau/internal/core/repl"
)

func TestMain(m *testing.M) {
	if arg := os.Getenv(StorageEnv); arg != "" {
		err := RunStorage(context.Background(), arg, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		if err != nil {
			slog.Error("storage ended", "cause", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func testCluster(t *testing.T, diskBytes int64) (*Cluster, context.Context) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes")
	}
	dir, err := os.MkdirTemp("", "rb") // short: it holds unix sockets
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	c, err := NewCluster(ctx, dir, DiskShape{Bytes: diskBytes}, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if t.Failed() {
			for i := range c.Nodes {
				b, _ := os.ReadFile(c.node(i).path("log"))
				t.Logf("storage %d:\n%s", i, tail(string(b), 3000))
			}
		}
		cancel()
		os.RemoveAll(dir)
	})
	return c, ctx
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func take(t *testing.T, ctx context.Context, cfg volume.Config) volume.Handle {
	t.Helper()
	s, err := Take(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func export(t *testing.T, s volume.Handle, vol ids.ID) string {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "nbd")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), vol, l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "nbd+unix:///" + vol.String() + "?socket=" + sock
}

func eventually(t *testing.T, what string, limit time.Duration, s volume.Handle, ok func(volume.VolumeStatus) bool) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		st := s.Status()
		if len(st.Volumes) > 0 && ok(st.Volumes[0]) {
			return
		}
		if time.Now().After(end) {
			b, _ := json.MarshalIndent(st, "", " ")
			t.Fatalf("not within %v: %s\n%s", limit, what, b)
		}
	}
}

func verifyArgs(uri, size string, more ...string) []string {
	return append([]string{"--name=v", "--ioengine=nbd", "--uri=" + uri, "--rw=randwrite", "--bsrange=4k-128k", "--blockalign=4k", "--iodepth=16",
		"--size=" + size, "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--fsync=32", "--thread=1"}, more...)
}

// randomFile makes a file that has no holes.
func randomFile(t *testing.T, n int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "src")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>12) ^ byte(i*31>>3)
	}
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	return path
}

const (
	testDisk   = 256 << 20
	testVolume = 64 << 20
)

// A volume through everything that is real: three storage processes, etcd, mTLS,
// files, and clients that nobody here wrote.
func TestVolumeOverThreeProcesses(t *testing.T) {
	c, ctx := testCluster(t, testDisk)
	vol, err := c.CreateVolume(ctx, testVolume)
	if err != nil {
		t.Fatal(err)
	}
	s := take(t, ctx, c.Writer(0, vol))
	uri := export(t, s, vol)
	nbdtest.Tool(t, "fio", verifyArgs(uri, "16M")...)
	src := randomFile(t, testVolume)
	nbdtest.Tool(t, "nbdcopy", "--flush", src, uri)
	nbdtest.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", src, uri)
	nbdtest.Tool(t, "qemu-io", "-f", "raw", uri, "-c", "discard 8M 4M", "-c", "read -P 0 8M 4M", "-c", "write -z 13M 64k", "-c", "read -P 0 13M 64k", "-c", "flush")
	if t.Failed() {
		return
	}
	if err := s.Release(ctx); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	next := take(t, ctx, c.Writer(1, vol))
	if d := time.Since(begun); d > 2*time.Second {
		t.Errorf("the take of a released volume took %v", d)
	}
	nbdtest.Tool(t, "qemu-io", "-f", "raw", export(t, next, vol), "-c", "read -P 0 8M 4M")
	if err := next.Release(ctx); err != nil {
		t.Fatal(err)
	}
	next.Close()
	oneCopy(t, ctx, c)
	swapped(t, ctx, c, vol)
}

// oneCopy: a volume of one copy waits for its storage process, and loses nothing with
// it, flushed or not.
func oneCopy(t *testing.T, ctx context.Context, c *Cluster) {
	t.Helper()
	vol, err := c.CreateVolume(ctx, testVolume, c.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	s := take(t, ctx, c.Writer(1, vol))
	uri := export(t, s, vol)
	nbdtest.Tool(t, "qemu-io", "-f", "raw", uri, "-c", "write -P 3 0 4M", "-c", "flush", "-c", "write -P 4 1M 1M")
	if err := c.KillStorage(0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nobody answers", 20*time.Second, s, func(v volume.VolumeStatus) bool { return !v.Disks[0].Connected })
	done := make(chan string, 1)
	go func() { done <- nbdtest.Tool(t, "qemu-io", "-f", "raw", uri, "-c", "write -P 5 2M 1M", "-c", "flush") }()
	eventually(t, "a write waits", 20*time.Second, s, func(v volume.VolumeStatus) bool { return v.Waiting > 0 })
	if err := c.StartStorage(ctx, 0); err != nil {
		t.Fatal(err)
	}
	select {
	case out := <-done:
		if strings.Contains(out, "rror") || strings.Contains(out, "failed") {
			t.Fatal(out)
		}
	case <-ctx.Done():
		t.Fatal("the write is never answered")
	}
	nbdtest.Tool(t, "qemu-io", "-f", "raw", uri, "-c", "read -P 3 0 1M", "-c", "read -P 4 1M 1M", "-c", "read -P 5 2M 1M", "-c", "read -P 3 3M 1M")
	if err := s.Release(ctx); err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// swapped: two nodes that live have each other's disks. Both refuse, which is no lost
// link, and the volume is served by its third copy; put back, they have all again.
func swapped(t *testing.T, ctx context.Context, c *Cluster, vol ids.ID) {
	t.Helper()
	swap := func() {
		t.Helper()
		a, b, tmp := c.node(0).path("disks/d"), c.node(1).path("disks/d"), c.node(0).path("disks.tmp")
		if err := errors.Join(c.KillStorage(0), c.KillStorage(1), os.Rename(a, tmp), os.Rename(b, a), os.Rename(tmp, b),
			c.StartStorage(ctx, 0), c.StartStorage(ctx, 1)); err != nil {
			t.Fatal(err)
		}
	}
	swap()
	s := take(t, ctx, c.Writer(2, vol))
	uri := export(t, s, vol)
	eventually(t, "served by the third copy", 30*time.Second, s, func(v volume.VolumeStatus) bool { return v.CopiesInSync == 1 })
	nbdtest.Tool(t, "qemu-io", "-f", "raw", uri, "-c", "read -P 0 8M 4M", "-c", "write -P 7 16M 1M", "-c", "flush", "-c", "read -P 7 16M 1M")
	swap()
	eventually(t, "healthy again", 40*time.Second, s, func(v volume.VolumeStatus) bool { return v.Healthy && v.CopiesInSync == 3 })
	if err := s.Release(ctx); err != nil {
		t.Fatal(err)
	}
	s.Close()
	back := take(t, ctx, c.Writer(0, vol)) // it reads what was put back
	nbdtest.Tool(t, "qemu-io", "-f", "raw", export(t, back, vol), "-c", "read -P 7 16M 1M", "-c", "read -P 0 8M 4M")
}

// One storage process dies under load and comes back: degraded, resync, healthy,
// and the copy that returned carries everything.
func TestStorageProcessDies(t *testing.T) {
	c, ctx := testCluster(t, testDisk)
	vol, err := c.CreateVolume(ctx, testVolume)
	if err != nil {
		t.Fatal(err)
	}
	s := take(t, ctx, c.Writer(0, vol))
	uri := export(t, s, vol)
	done := make(chan struct{})
	go func() {
		defer close(done)
		nbdtest.Tool(t, "fio", verifyArgs(uri, "16M", "--rate_iops=300")...)
	}()
	eventually(t, "fio writes", 20*time.Second, s, func(v volume.VolumeStatus) bool { return v.Writes > 40 })
	if err := c.KillStorage(2); err != nil {
		t.Fatal(err)
	}
	eventually(t, "degraded", 10*time.Second, s, func(v volume.VolumeStatus) bool { return v.CopiesInSync == 2 && !v.Healthy })
	at := s.Status().Volumes[0].Writes
	eventually(t, "writes go on", 20*time.Second, s, func(v volume.VolumeStatus) bool { return v.Writes > at+20 })
	if err := c.StartStorage(ctx, 2); err != nil {
		t.Fatal(err)
	}
	eventually(t, "healthy again", 40*time.Second, s, func(v volume.VolumeStatus) bool { return v.Healthy && v.CopiesInSync == 3 })
	<-done
	if t.Failed() {
		return
	}
	src := randomFile(t, testVolume)
	nbdtest.Tool(t, "nbdcopy", "--flush", src, uri)
	if err := s.Release(ctx); err != nil {
		t.Fatal(err)
	}
	s.Close()
	// The copy that was away serves the reads now.
	next := take(t, ctx, c.Writer(2, vol))
	uri = export(t, next, vol)
	nbdtest.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", src, uri)
	// It is away again, and this time the others do not return before an operator
	// gives up what only they have.
	if err := c.KillStorage(1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "degraded again", 10*time.Second, next, func(v volume.VolumeStatus) bool { return v.CopiesInSync == 2 })
	nbdtest.Tool(t, "nbdcopy", "--flush", invertedFile(t, src), uri)
	if err := next.Release(ctx); err != nil {
		t.Fatal(err)
	}
	next.Close()
	force(t, ctx, c, vol, src)
}

// force: the copies on nodes 0 and 2 are gone; that on node 1, which is as old as
// want, becomes the truth. They return, and are left alone.
func force(t *testing.T, ctx context.Context, c *Cluster, vol ids.ID, want string) {
	t.Helper()
	for _, i := range []int{0, 2} {
		if err := errors.Join(c.KillStorage(i), c.Session(ctx, i, false)); err != nil {
			t.Fatal(err)
		}
	}
	rec := repl.VolumeRecord{ID: vol}
	for kind, into := range map[repl.KeyKind]any{repl.KeyOwn: &rec.Own, repl.KeyCfg: &rec.Cfg, repl.KeySeg: &rec.Seg} {
		ans, err := c.Etcd.Get(ctx, repl.Key{Kind: kind, ID: vol}.Path())
		if err != nil || len(ans.Kvs) != 1 {
			t.Fatal(ans, err)
		}
		if err := json.Unmarshal(ans.Kvs[0].Value, into); err != nil {
			t.Fatal(err)
		}
	}
	losses, err := repl.Losses(rec, func(d ids.ID) bool { return d == c.Disks[1] }, nil)
	if err != nil || len(losses) != 1 || losses[0].Out.Since == 0 {
		t.Fatalf("%+v, %v", losses, err)
	}
	_, forced, err := repl.Force(repl.Records{Volumes: []repl.VolumeRecord{rec}}, losses)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.put(ctx, repl.Key{Kind: repl.KeyOwn, ID: vol}.Path(), forced.Own), c.put(ctx, repl.Key{Kind: repl.KeyCfg, ID: vol}.Path(), forced.Cfg)); err != nil {
		t.Fatal(err)
	}
	if err := c.StartStorage(ctx, 1); err != nil {
		t.Fatal(err)
	}
	s := take(t, ctx, c.Writer(1, vol))
	uri := export(t, s, vol)
	nbdtest.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", want, uri)
	for _, i := range []int{0, 2} {
		if err := errors.Join(c.StartStorage(ctx, i), c.Session(ctx, i, true)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the others were asked and refused", 30*time.Second, s, func(v volume.VolumeStatus) bool {
		n := 0
		for _, d := range v.Disks {
			if d.Foreign {
				n++
			}
		}
		return n == 2 && v.CopiesInSync == 1
	})
	nbdtest.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", want, uri)
}

// invertedFile makes a file of which no block is that of path.
func invertedFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] = ^b[i]
	}
	out := filepath.Join(t.TempDir(), "inverted")
	if err := os.WriteFile(out, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

// The writer dies without a release: the next one waits out the lease and finds
// everything that was acknowledged; so does one with two copies.
func TestWriterDies(t *testing.T) {
	c, ctx := testCluster(t, testDisk)
	vol, err := c.CreateVolume(ctx, testVolume)
	if err != nil {
		t.Fatal(err)
	}
	src := randomFile(t, testVolume)
	s := take(t, ctx, c.Writer(0, vol))
	nbdtest.Tool(t, "nbdcopy", "--flush", src, export(t, s, vol))
	s.Close() // no release

	begun := time.Now()
	second := take(t, ctx, c.Writer(1, vol))
	if d := time.Since(begun); d > 5*time.Second {
		t.Errorf("takeover took %v", d)
	} else {
		t.Logf("takeover took %v", d)
	}
	nbdtest.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", src, export(t, second, vol))
	second.Close()

	// Node 1 is lost altogether: its session ends, its storage is gone.
	if err := c.KillStorage(1); err != nil {
		t.Fatal(err)
	}
	if err := c.Session(ctx, 1, false); err != nil {
		t.Fatal(err)
	}
	begun = time.Now()
	third := take(t, ctx, c.Writer(2, vol))
	if d := time.Since(begun); d > 6*time.Second {
		t.Errorf("takeover without a member took %v", d)
	} else {
		t.Logf("takeover without a member took %v", d)
	}
	uri := export(t, third, vol)
	nbdtest.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", src, uri)
	eventually(t, "the lost copy is out", 5*time.Second, third, func(v volume.VolumeStatus) bool { return v.CopiesInSync == 2 })
	resp, err := c.Etcd.Get(ctx, repl.Key{Kind: repl.KeyOwn, ID: vol}.Path())
	if err != nil {
		t.Fatal(err)
	}
	var own repl.Own
	if err := json.Unmarshal(resp.Kvs[0].Value, &own); err != nil || len(own.Out) != 1 || own.Epoch != 3 {
		t.Errorf("own: %v %+v", err, own)
	}
}
