package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/volume"
	"roseau/internal/core/repl"
	"roseau/internal/driver/etcd"
	"roseau/internal/driver/storagectl"
	"roseau/internal/model"
	"roseau/internal/nodeconf"
	"roseau/internal/pki"
	"roseau/internal/storage"
)

// StorageEnv makes the process of this binary a storage process of a Cluster:
// see RunStorage.
const StorageEnv = "ROSEAU_BENCH_STORAGE"

// Cluster is the mirror engine without nodes: an etcd member of its own, and
// three storage processes on loopback addresses, each with one file as its disk.
// The writer runs in this process. Benchmarks and the engine's tests with real
// processes use it.
type Cluster struct {
	Etcd  *clientv3.Client
	Nodes [3]ids.ID
	Disks [3]ids.ID

	dir        string
	log        *slog.Logger
	cluster    ids.ID
	identities [3]*pki.Identity
	procs      [3]*exec.Cmd
	waits      [3]chan error
	server     *etcd.Server
	net        string // first three numbers of the addresses
	disk       DiskShape
}

// DiskShape is what the disks of a Cluster are like.
type DiskShape struct {
	Bytes    int64
	LogBytes int64 // 0: chosen by the size, as storagectl.ClaimRequest has it
	// Sparse files take no room until they are written: for much space with little
	// in it, not for speed.
	Sparse bool
}

// storageDir is what RunStorage finds in the directory of a node.
type storageDir struct{ dir string }

func (d storageDir) path(name string) string { return filepath.Join(d.dir, name) }

// RunStorage is the storage process of a node of a Cluster: dir and listen
// address as in StorageEnv, "DIR ADDRESS".
func RunStorage(ctx context.Context, arg string, log *slog.Logger) (err error) {
	stop, err := Profile("storage")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	var d storageDir
	var listen string
	if _, err := fmt.Sscan(arg, &d.dir, &listen); err != nil {
		return errs.New(errs.Invalid, "run storage %q: want a directory and an address", arg)
	}
	o := storage.Options{Log: log, NodeConfig: d.path("node.json"), PKI: d.path("pki"), Config: d.path("storage.json"),
		BootID: d.path("boot-id"), Socket: d.path("s"), ControlSocket: d.path("c"), Listen: listen, Lab: true, LabDisks: d.path("disks")}
	if _, err := os.Stat(d.path(gatedName)); err == nil {
		o.Open = gated(d.path(hangName))
	}
	return storage.Run(ctx, o)
}

// NewCluster starts everything under dir (absolute, short: it holds unix
// sockets) and claims a disk on each node.
func NewCluster(ctx context.Context, dir string, disk DiskShape, log *slog.Logger) (*Cluster, error) {
	p := os.Getpid()
	c := &Cluster{dir: dir, log: log, disk: disk, cluster: ids.New(), net: fmt.Sprintf("127.%d.%d", 128+p>>8&63, p&255)}
	err := c.start(ctx)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	ca, err := pki.NewCA(c.cluster, time.Now())
	if err != nil {
		return err
	}
	for i := range c.Nodes {
		if err := c.makeNode(ca, i); err != nil {
			return err
		}
	}
	addr := c.net + ".9"
	c.server, err = etcd.Start(ctx, etcd.Config{Name: c.Nodes[0].String(), New: true, Identity: c.identities[0], Dir: filepath.Join(c.dir, "etcd"),
		Addresses: []string{addr}, Cluster: c.cluster, LogFile: filepath.Join(c.dir, "etcd.log")})
	if err != nil {
		return err
	}
	if c.Etcd, err = etcd.Dial(c.identities[0], []string{etcd.ClientURL(addr)}); err != nil {
		return err
	}
	for i := range c.Nodes {
		if err := c.StartStorage(ctx, i); err != nil {
			return err
		}
		if c.disk.Sparse {
			if err := sparseFile(c.node(i).path("disks/d"), c.disk.Bytes); err != nil {
				return err
			}
		}
		d, err := storagectl.New(c.node(i).path("c")).Claim(ctx, storagectl.ClaimRequest{Path: c.node(i).path("disks/d"), SizeBytes: c.disk.Bytes, WALBytes: c.disk.LogBytes})
		if err != nil {
			return err
		}
		c.Disks[i] = d.ID
		if err := errors.Join(c.put(ctx, "/s/disk/"+d.ID.String(), map[string]any{"node": c.Nodes[i]}), c.Session(ctx, i, true)); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) node(i int) storageDir { return storageDir{filepath.Join(c.dir, fmt.Sprint(i))} }

func (c *Cluster) makeNode(ca *pki.CA, i int) error {
	d := c.node(i)
	c.Nodes[i] = ids.New()
	key, csr, err := pki.NewRequest(c.Nodes[i].String())
	if err != nil {
		return err
	}
	cert, err := ca.SignNode(csr, c.Nodes[i], []net.IP{net.ParseIP(c.net + ".9")}, time.Now())
	if err != nil {
		return err
	}
	if err := (pki.Files{CA: ca.CertPEM(), Cert: cert, Key: key}).Write(d.path("pki")); err != nil {
		return err
	}
	if c.identities[i], err = pki.Load(d.path("pki")); err != nil {
		return err
	}
	if err := os.MkdirAll(d.path("disks"), 0o700); err != nil {
		return err
	}
	addr := map[model.NetworkRole][]string{model.RoleCluster: {c.ip(i)}, model.RoleStorage: {c.ip(i)}}
	b, err := json.Marshal(nodeconf.Config{Cluster: c.cluster, ClusterName: "bench", Node: c.Nodes[i], Name: fmt.Sprint("n", i), Addresses: addr,
		Endpoints: []string{etcd.ClientURL(c.net + ".9")}})
	if err != nil {
		return err
	}
	return os.WriteFile(d.path("node.json"), b, 0o600)
}

func (c *Cluster) ip(i int) string { return fmt.Sprintf("%s.%d", c.net, i+1) }

func (c *Cluster) addr(i int) string { return c.ip(i) + ":7444" }

// StartStorage starts the storage process of node i, and returns when it serves.
func (c *Cluster) StartStorage(ctx context.Context, i int) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(c.node(i).path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(exe, "bench") // the tests' own binary looks at the environment alone
	cmd.Env = append(os.Environ(), StorageEnv+"="+c.node(i).dir+" "+c.addr(i))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start storage %d: %w", i, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	c.procs[i], c.waits[i] = cmd, done
	return waitSocket(ctx, c.node(i).path("s"), done, func() string {
		b, _ := os.ReadFile(c.node(i).path("log")) // for people; best effort
		return fmt.Sprintf("storage %d: %s", i, b)
	})
}

// Pids are the storage processes.
func (c *Cluster) Pids() (list []int) {
	for _, p := range c.procs {
		if p != nil {
			list = append(list, p.Process.Pid)
		}
	}
	return list
}

// KillStorage ends the storage process of node i with SIGKILL.
func (c *Cluster) KillStorage(i int) error {
	if c.procs[i] == nil {
		return nil
	}
	err := c.procs[i].Process.Kill()
	<-c.waits[i]
	c.procs[i] = nil
	return errors.Join(err, os.Remove(c.node(i).path("s")))
}

// Session sets or ends node i's session in etcd.
func (c *Cluster) Session(ctx context.Context, i int, alive bool) error {
	key := "/s/node/" + c.Nodes[i].String() + "/alive"
	if alive {
		return c.put(ctx, key, struct{}{})
	}
	_, err := c.Etcd.Delete(ctx, key)
	return err
}

func (c *Cluster) put(ctx context.Context, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = c.Etcd.Put(ctx, key, string(b))
	return err
}

// CreateVolume writes the records of a volume with a copy on each of disks (default:
// all three).
func (c *Cluster) CreateVolume(ctx context.Context, sizeBytes int64, disks ...ids.ID) (ids.ID, error) {
	vol := ids.New()
	if len(disks) == 0 {
		disks = c.Disks[:]
	}
	seg := repl.Segments{Disks: disks}
	var row []uint16
	for i := range disks {
		row = append(row, uint16(i))
	}
	for off := int64(0); off < sizeBytes; off += repl.SegmentBytes {
		seg.Map = append(seg.Map, slices.Clone(row))
	}
	return vol, errors.Join(
		c.put(ctx, repl.Key{Kind: repl.KeyCfg, ID: vol}.Path(), repl.Cfg{SizeBytes: sizeBytes, Copies: len(disks), MinISR: 1, State: repl.VolumeLive}),
		c.put(ctx, repl.Key{Kind: repl.KeySeg, ID: vol}.Path(), seg),
		c.put(ctx, repl.Key{Kind: repl.KeyOwn, ID: vol}.Path(), repl.Own{Generation: repl.Generation{Cluster: 1, Volume: 1}}))
}

// StorageAddrs makes Cluster a volume.Directory.
func (c *Cluster) StorageAddrs(node ids.ID) []string {
	for i, n := range c.Nodes {
		if n == node {
			return []string{c.addr(i)}
		}
	}
	return nil
}

// Writer is what a writer on node i opens a volume with.
func (c *Cluster) Writer(i int, vol ids.ID) volume.Config {
	return volume.Config{Cluster: c.cluster, Generation: 1, Node: c.Nodes[i], Guard: ids.New(), Run: ids.New(), Purpose: repl.PurposeServe,
		Volumes: []ids.ID{vol}, Etcd: c.Etcd, Identity: c.identities[i], Nodes: c, StorageSocket: c.node(i).path("s"), Log: c.log}
}

// Take opens a volume and takes it once it may.
func Take(ctx context.Context, cfg volume.Config) (volume.Handle, error) {
	s, err := volume.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	for {
		p, err := s.Prepare(ctx)
		if err == nil && p.Ready {
			err = s.Take(ctx, volume.Claim{})
			if err == nil {
				return s, nil
			}
		}
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
}

// Close ends everything; the files stay.
func (c *Cluster) Close() error {
	var err error
	for i := range c.procs {
		err = errors.Join(err, c.stopStorage(i))
	}
	if c.Etcd != nil {
		c.Etcd.Close() // its streams end with the member
	}
	if c.server != nil {
		c.server.Close()
	}
	return err
}

func sparseFile(path string, sizeBytes int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(sizeBytes), f.Close())
}
