package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/driver/etcd"
	"roseau/internal/model"
)

// Record is a value of one key below /s/ with the revision at which it was
// read.
type Record[V any] struct {
	Value V
	// Revision is the key's mod revision; 0: the key does not exist and Value is
	// its zero value.
	Revision int64
}

// GetRecord reads the record at key; a key that does not exist is no error.
func GetRecord[V any](ctx context.Context, s *Store, key string) (Record[V], error) {
	resp, err := s.get(ctx, key)
	if err != nil {
		return Record[V]{}, fmt.Errorf("read record %s: %w", key, err)
	}
	if len(resp.Kvs) == 0 {
		return Record[V]{}, nil
	}
	return decodeRecord[V](key, resp.Kvs[0].Value, resp.Kvs[0].ModRevision)
}

// ListRecords reads all records whose key begins with prefix.
func ListRecords[V any](ctx context.Context, s *Store, prefix string) (map[string]Record[V], error) {
	resp, err := s.get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("list records %s: %w", prefix, err)
	}
	out := make(map[string]Record[V], len(resp.Kvs))
	for _, kv := range resp.Kvs {
		r, err := decodeRecord[V](string(kv.Key), kv.Value, kv.ModRevision)
		if err != nil {
			return nil, err
		}
		out[string(kv.Key)] = r
	}
	return out, nil
}

func decodeRecord[V any](key string, data []byte, rev int64) (Record[V], error) {
	r := Record[V]{Revision: rev}
	if err := json.Unmarshal(data, &r.Value); err != nil {
		return Record[V]{}, errs.New(errs.Corrupt, "decode record %s: %w", key, err)
	}
	return r, nil
}

// Tx is one transaction: all of its changes are made if all of its conditions
// hold, or none. Methods return the Tx for chaining; an encoding error shows at
// Commit.
type Tx struct {
	ifs    []clientv3.Cmp
	ops    []clientv3.Op
	leased bool // an operation hangs on a lease
	names  []taken
	errs   error
}

// taken is a name that a transaction takes.
type taken struct {
	kind model.Kind
	name string
}

// NewTx returns an empty transaction.
func NewTx() *Tx { return &Tx{} }

// If demands that key was last changed at revision; 0: that it does not exist.
func (t *Tx) If(key string, revision int64) *Tx {
	t.ifs = append(t.ifs, clientv3.Compare(clientv3.ModRevision(key), "=", revision))
	return t
}

// Put writes v as JSON.
func (t *Tx) Put(key string, v any) *Tx { return t.PutLease(key, v, 0) }

// PutLease writes v as JSON under a lease; 0: none.
func (t *Tx) PutLease(key string, v any, lease clientv3.LeaseID) *Tx {
	data, err := json.Marshal(v)
	if err != nil {
		t.errs = errors.Join(t.errs, fmt.Errorf("encode record %s: %w", key, err))
		return t
	}
	t.leased = t.leased || lease != 0
	t.ops = append(t.ops, clientv3.OpPut(key, string(data), clientv3.WithLease(lease)))
	return t
}

// Delete removes key.
func (t *Tx) Delete(key string) *Tx {
	t.ops = append(t.ops, clientv3.OpDelete(key))
	return t
}

// TxCreate adds the creation of obj to t, as Create does it.
func TxCreate[T any, P model.Object[T]](t *Tx, s *Store, obj *T) error {
	kind, h := P(nil).Kind(), P(obj).Head()
	if err := model.CheckName(kind, h.Name); err != nil {
		return err
	}
	if h.ID.IsZero() {
		h.ID = ids.New()
	}
	if h.Created.IsZero() {
		h.Created = s.clock.Wall().UTC()
	}
	data, err := encode[T, P](obj)
	if err != nil {
		return err
	}
	key := objectKey(kind, h.ID)
	t.If(key, 0).If(nameKey(kind, h.Name), 0)
	t.names = append(t.names, taken{kind, h.Name})
	t.ops = append(t.ops, clientv3.OpPut(key, string(data)), clientv3.OpPut(nameKey(kind, h.Name), h.ID.String()))
	return nil
}

// TxPut adds the update of obj to t, on condition of its Revision.
func TxPut[T any, P model.Object[T]](t *Tx, obj *T) error {
	h := P(obj).Head()
	data, err := encode[T, P](obj)
	if err != nil {
		return err
	}
	key := objectKey(P(nil).Kind(), h.ID)
	t.If(key, h.Revision)
	t.ops = append(t.ops, clientv3.OpPut(key, string(data)))
	return nil
}

// TxDelete adds the removal of obj to t, on condition of its Revision.
func TxDelete[T any, P model.Object[T]](t *Tx, obj *T) {
	kind, h := P(nil).Kind(), P(obj).Head()
	t.If(objectKey(kind, h.ID), h.Revision)
	t.Delete(objectKey(kind, h.ID)).Delete(nameKey(kind, h.Name))
}

// Commit runs the transaction and returns the revision at which it was made. A
// condition that does not hold is Conflict.
//
// A member that goes away with a request may have made it: what it wrote is then
// read back, and a transaction that was made is no error. If that cannot be seen
// (it may still be on its way, or was written over), the error is Unavailable and
// matches ErrUnknown.
func (s *Store) Commit(ctx context.Context, t *Tx) (int64, error) {
	if t.errs != nil {
		return 0, t.errs
	}
	cctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	resp, err := s.cli.Txn(cctx).If(t.ifs...).Then(t.ops...).Commit()
	if err != nil {
		err = etcd.Classify(err)
		if errors.Is(err, ErrUnknown) {
			if rev := s.made(ctx, t); rev > 0 {
				return rev, nil
			}
		}
		return 0, err
	}
	if !resp.Succeeded {
		return 0, errs.New(errs.Conflict, "changed meanwhile")
	}
	return resp.Header.Revision, nil
}

// maxTransacts bounds how often a transaction is made anew.
const maxTransacts = 10

// Transact commits what build adds to an empty transaction and returns the revision
// at which it was made. While others change what it is conditioned on, build is asked
// again: it reads what it decides on itself, and has no other effects. Its error ends
// the attempts and is returned as it is; so does a name that is taken (Conflict). what
// ("create pool p1") begins Transact's own errors.
func (s *Store) Transact(ctx context.Context, what string, build func(*Tx) error) (int64, error) {
	for range maxTransacts {
		t := NewTx()
		if err := build(t); err != nil {
			return 0, err
		}
		rev, err := s.Commit(ctx, t)
		if err == nil {
			return rev, nil
		}
		if errors.Is(err, errs.Conflict) {
			err = s.free(ctx, t.names)
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w", what, err)
		}
	}
	return 0, errs.New(errs.Conflict, "%s: changed by others %d times in a row", what, maxTransacts).WithHint("try again")
}

// free refuses names that others have.
func (s *Store) free(ctx context.Context, names []taken) error {
	for _, n := range names {
		r, err := s.cli.Get(ctx, nameKey(n.kind, n.name))
		if err != nil {
			return etcd.Classify(err)
		}
		if len(r.Kvs) > 0 {
			return errs.New(errs.Conflict, "the name is taken").WithHint("another %s is called %s", n.kind.Singular(), n.name)
		}
	}
	return nil
}

// madeTimeout bounds the look for a transaction of unknown outcome.
const madeTimeout = time.Second

// made returns the revision at which t was made for sure, or 0: each key that it
// wrote has the value that it wrote, all from one revision, and each key that it
// deleted is gone. Whoever else wrote just that wanted the same, but for leases,
// which are their owner's: such a transaction is never found.
func (s *Store) made(ctx context.Context, t *Tx) (rev int64) {
	if t.leased {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, madeTimeout)
	defer cancel()
	var gets []clientv3.Op
	for _, op := range t.ops {
		gets = append(gets, clientv3.OpGet(string(op.KeyBytes())))
	}
	resp, err := s.cli.Txn(ctx).Then(gets...).Commit()
	if err != nil {
		return 0
	}
	for i, op := range t.ops {
		kvs := resp.Responses[i].GetResponseRange().Kvs
		switch {
		case op.IsDelete() && len(kvs) > 0, op.IsPut() && len(kvs) == 0:
			return 0
		case op.IsDelete():
			continue
		case rev != 0 && kvs[0].ModRevision != rev, !bytes.Equal(kvs[0].Value, op.ValueBytes()):
			return 0
		}
		rev = kvs[0].ModRevision
	}
	if rev == 0 { // deletions alone
		rev = resp.Header.Revision
	}
	return rev
}
