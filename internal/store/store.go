// Package store keeps the objects of package model in etcd: one key an object,
// JSON values, optimistic concurrency by revision, names unique within a kind.
//
//	/o/<kind>/<id>          the object
//	/n/<kind>/<name>        its id; written in the same transaction
//	/o/events/<time>-<id>   events (package svc/event)
//	/s/...                  records that decide safety; see Record and Tx
//
// Reads are linearizable, so what a reconciler decides on is what the cluster
// agreed on; Relaxed gives a store whose reads fall back to the local member's
// state when there is no quorum, for people who look. Every error has a kind;
// one after which a change may or may not have been made matches ErrUnknown.
package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/driver/etcd"
	"roseau/internal/model"
)

// ErrUnknown marks an error after which a change may or may not have been made:
// read again before the next step.
var ErrUnknown = etcd.ErrUnknown

// opTimeout bounds one request to etcd when the caller's context has no earlier
// deadline: longer than an election (0.9 s), shorter than a person's patience.
const opTimeout = 3 * time.Second

// relaxedTimeout is how long a relaxed read waits for a quorum before it takes
// what a member has.
const relaxedTimeout = 1500 * time.Millisecond

// Store is a typed view of etcd. It is safe for concurrent use.
type Store struct {
	cli     *clientv3.Client
	clock   clock.Clock
	relaxed bool
}

// New returns a store over cli, which stays the caller's.
func New(cli *clientv3.Client, clk clock.Clock) *Store { return &Store{cli: cli, clock: clk} }

// Client returns the etcd client below, for leases and elections.
func (s *Store) Client() *clientv3.Client { return s.cli }

// Relaxed returns a store whose reads may be old when there is no quorum. Never
// decide on them.
func (s *Store) Relaxed() *Store {
	c := *s
	c.relaxed = true
	return &c
}

func objectKey(kind model.Kind, id ids.ID) string {
	return "/o/" + string(kind) + "/" + id.String()
}

func nameKey(kind model.Kind, name string) string { return "/n/" + string(kind) + "/" + name }

// get is the one place that reads.
func (s *Store) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	limit := opTimeout
	if s.relaxed {
		limit = relaxedTimeout
	}
	rctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	resp, err := s.cli.Get(rctx, key, opts...)
	if err == nil {
		return resp, nil
	}
	err = etcd.Classify(err)
	if !s.relaxed || ctx.Err() != nil || !errors.Is(err, errs.Unavailable) {
		return nil, err
	}
	rctx, cancel = context.WithTimeout(ctx, relaxedTimeout)
	defer cancel()
	resp, serr := s.cli.Get(rctx, key, append(opts, clientv3.WithSerializable())...)
	if serr != nil {
		return nil, err // the first error says why
	}
	return resp, nil
}

// Get reads an object by name or id.
func Get[T any, P model.Object[T]](ctx context.Context, s *Store, ref string) (*T, error) {
	kind := P(nil).Kind()
	if id, err := ids.Parse(ref); err == nil {
		return GetID[T, P](ctx, s, id)
	}
	resp, err := s.get(ctx, nameKey(kind, ref))
	if err != nil {
		return nil, fmt.Errorf("read %s %s: %w", kind.Singular(), ref, err)
	}
	if len(resp.Kvs) == 0 {
		return nil, errs.New(errs.NotFound, "read %s %s: not found", kind.Singular(), ref).
			WithHint("`roseau %s list` shows what there is", kind.Singular())
	}
	id, err := ids.Parse(string(resp.Kvs[0].Value))
	if err != nil {
		return nil, errs.New(errs.Corrupt, "read %s %s: name index: %w", kind.Singular(), ref, err)
	}
	return GetID[T, P](ctx, s, id)
}

// GetID reads an object by id.
func GetID[T any, P model.Object[T]](ctx context.Context, s *Store, id ids.ID) (*T, error) {
	kind := P(nil).Kind()
	resp, err := s.get(ctx, objectKey(kind, id))
	if err != nil {
		return nil, fmt.Errorf("read %s %s: %w", kind.Singular(), id, err)
	}
	if len(resp.Kvs) == 0 {
		return nil, errs.New(errs.NotFound, "read %s %s: not found", kind.Singular(), id)
	}
	return decode[T, P](resp.Kvs[0].Value, resp.Kvs[0].ModRevision)
}

// List reads all objects of a kind, sorted by name, then id.
func List[T any, P model.Object[T]](ctx context.Context, s *Store) ([]*T, error) {
	kind := P(nil).Kind()
	resp, err := s.get(ctx, "/o/"+string(kind)+"/", clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", kind, err)
	}
	out := make([]*T, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		o, err := decode[T, P](kv.Value, kv.ModRevision)
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	slices.SortFunc(out, byName[T, P])
	return out, nil
}

func byName[T any, P model.Object[T]](a, b *T) int {
	x, y := P(a).Head(), P(b).Head()
	return cmp.Or(cmp.Compare(x.Name, y.Name), x.ID.Compare(y.ID))
}

// Create stores a new object. A zero ID is drawn, Created is set; the name must
// be free. The object returned is obj with its revision.
func Create[T any, P model.Object[T]](ctx context.Context, s *Store, obj *T) (*T, error) {
	tx := NewTx()
	if err := TxCreate[T, P](tx, s, obj); err != nil {
		return nil, err
	}
	h := P(obj).Head()
	rev, err := s.Commit(ctx, tx)
	if err != nil {
		kind := P(nil).Kind().Singular()
		if errors.Is(err, errs.Conflict) {
			return nil, errs.New(errs.Conflict, "create %s %s: the name is taken", kind, h.Name).
				WithHint("choose another name, or delete it: `roseau %s list`", kind)
		}
		return nil, fmt.Errorf("create %s %s: %w", kind, h.Name, err)
	}
	h.Revision = rev
	return obj, nil
}

// maxUpdates bounds the attempts of Update; each one lost against a change by
// somebody else, which therefore went on.
const maxUpdates = 20

// Update reads the object, lets mutate change it and stores it if nobody else
// changed it meanwhile; else it starts again. mutate must not have effects
// outside the object; its error ends the update. Names and ids do not change. A
// mutate that changes nothing writes nothing.
//
// If an outcome is unknown, the error matches ErrUnknown.
func Update[T any, P model.Object[T]](ctx context.Context, s *Store, id ids.ID, mutate func(*T) error) (*T, error) {
	kind := P(nil).Kind().Singular()
	for range maxUpdates {
		obj, err := GetID[T, P](ctx, s, id)
		if err != nil {
			return nil, err
		}
		before, err := encode[T, P](obj)
		if err != nil {
			return nil, err
		}
		if err := mutate(obj); err != nil {
			return nil, err
		}
		after, err := encode[T, P](obj)
		if err != nil {
			return nil, err
		}
		if string(before) == string(after) {
			return obj, nil
		}
		obj, err = Put[T, P](ctx, s, obj)
		if err == nil || !errors.Is(err, errs.Conflict) {
			return obj, err
		}
	}
	return nil, errs.New(errs.Conflict, "update %s %s: changed by others %d times in a row", kind, id, maxUpdates)
}

// Put stores obj if its Revision is still the newest; Conflict otherwise.
func Put[T any, P model.Object[T]](ctx context.Context, s *Store, obj *T) (*T, error) {
	tx := NewTx()
	if err := TxPut[T, P](tx, obj); err != nil {
		return nil, err
	}
	rev, err := s.Commit(ctx, tx)
	h := P(obj).Head()
	if err != nil {
		return nil, fmt.Errorf("update %s %s: %w", P(nil).Kind().Singular(), h.Name, err)
	}
	h.Revision = rev
	return obj, nil
}

// Delete removes the object if its Revision is still the newest; Conflict
// otherwise. An object that is gone already is NotFound.
func Delete[T any, P model.Object[T]](ctx context.Context, s *Store, obj *T) error {
	tx := NewTx()
	TxDelete[T, P](tx, obj)
	h := P(obj).Head()
	if _, err := s.Commit(ctx, tx); err != nil {
		if errors.Is(err, errs.Conflict) {
			if _, gerr := GetID[T, P](ctx, s, h.ID); errors.Is(gerr, errs.NotFound) {
				return gerr
			}
		}
		return fmt.Errorf("delete %s %s: %w", P(nil).Kind().Singular(), h.Name, err)
	}
	return nil
}

func encode[T any, P model.Object[T]](obj *T) ([]byte, error) {
	c := *obj
	P(&c).Head().Revision = 0 // etcd knows it better
	data, err := json.Marshal(&c)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", P(nil).Kind().Singular(), err)
	}
	return data, nil
}

func decode[T any, P model.Object[T]](data []byte, rev int64) (*T, error) {
	obj := new(T)
	if err := json.Unmarshal(data, obj); err != nil {
		return nil, errs.New(errs.Corrupt, "decode %s: %w", P(nil).Kind().Singular(), err)
	}
	P(obj).Head().Revision = rev
	return obj, nil
}
