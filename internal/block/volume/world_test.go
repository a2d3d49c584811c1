package volume

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
	"roseau/internal/driver/etcd"
	"roseau/internal/pki"
)

// world is a cluster without nodes: one etcd member, a certificate authority,
// and three storage addresses on loopback addresses of its own.
type world struct {
	t       *testing.T
	cluster ids.ID
	pki     *testPKI
	etcd    *clientv3.Client
	net     string // the first three numbers of the loopback addresses
	nodes   []ids.ID
	disks   []ids.ID
	ids     []*pki.Identity
	log     *slog.Logger
}

const storagePort = "7444"

func newWorld(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("needs etcd")
	}
	p := os.Getpid()
	w := &world{t: t, cluster: ids.New(), pki: newPKI(t), net: fmt.Sprintf("127.%d.%d", 64+p>>8&63, p&255)}
	w.log = slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		w.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	for range 3 {
		node := ids.New()
		_, id := w.pki.dir(node, net.ParseIP(w.net+".9")) // gRPC wants the address in etcd's certificate
		w.nodes, w.disks, w.ids = append(w.nodes, node), append(w.disks, ids.New()), append(w.ids, id)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	addr := w.net + ".9"
	srv, err := etcd.Start(ctx, etcd.Config{Name: w.nodes[0].String(), New: true, Identity: w.ids[0], Dir: filepath.Join(t.TempDir(), "etcd"),
		Addresses: []string{addr}, Cluster: w.cluster, LogFile: filepath.Join(t.TempDir(), "etcd.log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	if w.etcd, err = etcd.Dial(w.ids[0], []string{etcd.ClientURL(addr)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.etcd.Close() })
	for i := range w.nodes {
		w.put(diskKey(w.disks[i]), map[string]any{"node": w.nodes[i]})
		w.alive(i, true)
	}
	return w
}

func (w *world) put(key string, v any) {
	w.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := w.etcd.Put(ctx, key, string(b)); err != nil {
		w.t.Fatal(err)
	}
}

// alive sets or ends the session of node i.
func (w *world) alive(i int, yes bool) {
	w.t.Helper()
	key := nodePrefix + w.nodes[i].String() + aliveName
	if yes {
		w.put(key, struct{}{})
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := w.etcd.Delete(ctx, key); err != nil {
		w.t.Fatal(err)
	}
}

// volume creates the records of a volume with a copy on every disk.
func (w *world) volume(sizeBytes int64) ids.ID {
	w.t.Helper()
	vol := ids.New()
	seg := repl.Segments{Disks: w.disks}
	for off := int64(0); off < sizeBytes; off += repl.SegmentBytes {
		seg.Map = append(seg.Map, []uint16{0, 1, 2})
	}
	w.put(repl.Key{Kind: repl.KeyCfg, ID: vol}.Path(), repl.Cfg{SizeBytes: sizeBytes, Copies: 3, MinISR: 1, State: repl.VolumeLive})
	w.put(repl.Key{Kind: repl.KeySeg, ID: vol}.Path(), seg)
	w.put(repl.Key{Kind: repl.KeyOwn, ID: vol}.Path(), repl.Own{Generation: repl.Generation{Cluster: 1, Volume: 1}})
	return vol
}

// addr is where node i's storage listens.
func (w *world) addr(i int) string { return fmt.Sprintf("%s.%d:%s", w.net, i+1, storagePort) }

// StorageAddrs makes world a Directory.
func (w *world) StorageAddrs(node ids.ID) []string {
	for i, n := range w.nodes {
		if n == node {
			return []string{w.addr(i)}
		}
	}
	return nil
}

// config is what a writer on node i opens vols with.
func (w *world) config(i int, vols ...ids.ID) Config {
	return Config{Cluster: w.cluster, Generation: 1, Node: w.nodes[i], Guard: ids.New(), Run: ids.New(), Purpose: repl.PurposeServe,
		Volumes: vols, Etcd: w.etcd, Identity: w.ids[i], Nodes: w, StorageSocket: "-", Log: w.log}
}

// open opens and takes vols as a writer on node i.
func (w *world) take(cfg Config) *Set {
	w.t.Helper()
	s := w.open(cfg)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		p, err := s.Prepare(ctx)
		if err != nil {
			w.t.Fatalf("prepare: %v (last: %+v)", err, s.Status())
		}
		if p.Ready {
			break
		}
	}
	if err := s.Take(ctx, Claim{}); err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) open(cfg Config) *Set {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	h, err := Open(ctx, cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { h.Close() })
	return h.(*Set)
}

// export serves a volume on a unix socket and returns its URI.
func (w *world) export(s *Set, vol ids.ID) string {
	w.t.Helper()
	sock := filepath.Join(w.t.TempDir(), "nbd")
	l, err := net.Listen("unix", sock)
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), vol, l) }()
	w.t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	return "nbd+unix:///" + vol.String() + "?socket=" + sock
}

// eventually waits until ok holds.
func (w *world) eventually(what string, limit time.Duration, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("not within %v: %s", limit, what)
		}
	}
}
