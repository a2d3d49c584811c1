package volume

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// Timing of etcd. A transaction that is not answered in time is unknown, not
// failed; a read is simply repeated.
const (
	txnTimeout   = 2 * time.Second
	readTimeout  = 2 * time.Second
	retryDelay   = 100 * time.Millisecond
	cachePatient = 1 * time.Second // before a cached record stands in for etcd
)

// diskRecord is the part of /s/disk/<uuid> that is needed here.
type diskRecord struct {
	Node ids.ID `json:"node"`
}

func diskKey(disk ids.ID) string { return "/s/disk/" + disk.String() }

// records reads the records of the set: own, cfg, seg and placement at one
// revision, then where the disks are (which never changes for a disk that is in
// use).
func (s *Set) records(ctx context.Context) (repl.Records, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	out := repl.Records{VM: s.cfg.VM}
	var ops []clientv3.Op
	for _, v := range s.cfg.Volumes {
		for _, kind := range []repl.KeyKind{repl.KeyOwn, repl.KeyCfg, repl.KeySeg} {
			ops = append(ops, clientv3.OpGet(repl.Key{Kind: kind, ID: v}.Path()))
		}
	}
	if !s.cfg.VM.IsZero() {
		ops = append(ops, clientv3.OpGet(repl.Key{Kind: repl.KeyPlacement, ID: s.cfg.VM}.Path()))
	}
	resp, err := s.cfg.Etcd.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return out, fmt.Errorf("read records: %w", err)
	}
	get := func(i int, into any) (rev int64, err error) {
		kvs := resp.Responses[i].GetResponseRange().Kvs
		if len(kvs) == 0 {
			return 0, nil
		}
		return kvs[0].ModRevision, decodeRecord(string(kvs[0].Key), kvs[0].Value, into)
	}
	for i, v := range s.cfg.Volumes {
		r := repl.VolumeRecord{ID: v}
		var e1, e2, e3 error
		r.OwnRev, e1 = get(3*i, &r.Own)
		r.CfgRev, e2 = get(3*i+1, &r.Cfg)
		r.SegRev, e3 = get(3*i+2, &r.Seg)
		if err := errors.Join(e1, e2, e3); err != nil {
			return out, err
		}
		if r.OwnRev == 0 || r.CfgRev == 0 || r.SegRev == 0 {
			return out, errs.New(errs.NotFound, "read records of volume %s: it does not exist", v)
		}
		if err := errors.Join(r.Supported(), r.Seg.Check()); err != nil {
			return out, fmt.Errorf("read records of volume %s: %w", v, err)
		}
		out.Volumes = append(out.Volumes, r)
	}
	if !s.cfg.VM.IsZero() {
		if out.PlacementRev, err = get(len(ops)-1, &out.Placement); err != nil {
			return out, err
		}
	}
	if out.Parents, err = s.parents(ctx, out.Volumes); err != nil {
		return out, err
	}
	out.Disks, err = s.diskNodes(ctx, slices.Concat(out.Volumes, out.Parents))
	return out, err
}

// parents reads the records of the volumes that clones of the set read. What is not
// there is left out: the clone's own data can be served without.
func (s *Set) parents(ctx context.Context, vols []repl.VolumeRecord) ([]repl.VolumeRecord, error) {
	var out []repl.VolumeRecord
	for _, v := range vols {
		id := v.Cfg.Parent.Volume
		if id.IsZero() || slices.ContainsFunc(out, func(p repl.VolumeRecord) bool { return p.ID == id }) {
			continue
		}
		var ops []clientv3.Op
		for _, kind := range []repl.KeyKind{repl.KeyOwn, repl.KeyCfg, repl.KeySeg} {
			ops = append(ops, clientv3.OpGet(repl.Key{Kind: kind, ID: id}.Path()))
		}
		resp, err := s.cfg.Etcd.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			return nil, fmt.Errorf("read records of parent %s: %w", id, err)
		}
		p := repl.VolumeRecord{ID: id}
		for i, into := range []struct {
			rev *int64
			v   any
		}{{&p.OwnRev, &p.Own}, {&p.CfgRev, &p.Cfg}, {&p.SegRev, &p.Seg}} {
			for _, kv := range resp.Responses[i].GetResponseRange().Kvs {
				*into.rev = kv.ModRevision
				if err := decodeRecord(string(kv.Key), kv.Value, into.v); err != nil {
					return nil, err
				}
			}
		}
		if p.OwnRev == 0 || p.CfgRev == 0 || p.SegRev == 0 || p.Seg.Check() != nil {
			s.log.Error("the parent of a clone has no records", "vol", v.ID, "parent", id)
			continue
		}
		out = append(out, p)
	}
	return out, nil
}

func decodeRecord(key string, b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(into); err != nil {
		return errs.New(errs.Corrupt, "read record %s: %w", key, err)
	}
	return nil
}

func (s *Set) diskNodes(ctx context.Context, vols []repl.VolumeRecord) ([]repl.DiskNode, error) {
	var disks []ids.ID
	for _, v := range vols {
		disks = append(disks, v.Seg.Disks...)
	}
	slices.SortFunc(disks, ids.ID.Compare)
	disks = slices.Compact(disks)
	var out []repl.DiskNode
	for chunk := range slices.Chunk(disks, 100) { // etcd takes 128 operations
		var ops []clientv3.Op
		for _, d := range chunk {
			ops = append(ops, clientv3.OpGet(diskKey(d)))
		}
		resp, err := s.cfg.Etcd.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			return nil, fmt.Errorf("read disks: %w", err)
		}
		for i, d := range chunk {
			kvs := resp.Responses[i].GetResponseRange().Kvs
			if len(kvs) == 0 {
				return nil, errs.New(errs.NotFound, "read disk %s: a volume names it and it has no record", d)
			}
			var rec diskRecord
			if err := decodeRecord(diskKey(d), kvs[0].Value, &rec); err != nil {
				return nil, err
			}
			out = append(out, repl.DiskNode{Disk: d, Node: rec.Node})
		}
	}
	return out, nil
}

// commit sends one transaction and says what is known of it.
func (s *Set) commit(ctx context.Context, t repl.Txn) (repl.Outcome, int64) {
	ctx, cancel := context.WithTimeout(ctx, txnTimeout)
	defer cancel()
	var cmps []clientv3.Cmp
	for _, c := range t.Compares {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(c.Key.Path()), "=", c.Rev))
	}
	var puts []clientv3.Op
	for _, p := range t.Puts {
		var v any
		switch p.Key.Kind {
		case repl.KeyOwn:
			v = p.Own
		case repl.KeyCfg:
			v = p.Cfg
		case repl.KeySeg:
			v = p.Seg
		case repl.KeyPlacement:
			v = p.Placement
		}
		b, err := json.Marshal(v)
		if err != nil {
			panic(fmt.Sprintf("volume: encode %s: %v", p.Key.Path(), err)) // plain structs cannot fail
		}
		puts = append(puts, clientv3.OpPut(p.Key.Path(), string(b)))
	}
	resp, err := s.cfg.Etcd.Txn(ctx).If(cmps...).Then(puts...).Commit()
	switch {
	case err != nil:
		s.log.Debug("transaction outcome unknown", "cause", err)
		return repl.OutcomeUnknown, 0
	case !resp.Succeeded:
		return repl.OutcomeConflict, 0
	}
	return repl.OutcomeCommitted, resp.Header.Revision
}

// loadCache reads what a predecessor on this node kept.
func (s *Set) loadCache() (repl.Records, bool) {
	var r repl.Records
	if s.cfg.Cache == "" {
		return r, false
	}
	b, err := os.ReadFile(s.cfg.Cache)
	if err != nil || json.Unmarshal(b, &r) != nil || len(r.Volumes) != len(s.cfg.Volumes) || r.VM != s.cfg.VM {
		return repl.Records{}, false
	}
	for i, v := range s.cfg.Volumes {
		if r.Volumes[i].ID != v || r.Volumes[i].Seg.Check() != nil || r.Volumes[i].Supported() != nil {
			return repl.Records{}, false
		}
	}
	return r, true
}

// storeCache replaces the cache; /run is a tmpfs, so there is nothing to sync.
// A cache that is lost or old costs a wait for etcd, never safety: the promises
// of the members decide.
func (s *Set) storeCache(r repl.Records) {
	b, err := json.Marshal(r)
	if err == nil {
		tmp := s.cfg.Cache + ".new"
		if err = os.WriteFile(tmp, b, 0o600); err == nil {
			err = os.Rename(tmp, s.cfg.Cache)
		}
	}
	if err != nil {
		s.log.Warn("records not cached", "path", filepath.Base(s.cfg.Cache), "cause", err)
	}
}
