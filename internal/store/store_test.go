package store_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/driver/etcd"
	"roseau/internal/driver/etcd/etcdtest"
	"roseau/internal/model"
	"roseau/internal/store"
)

func open(t *testing.T) (*store.Store, *etcdtest.Member) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts etcd")
	}
	m := etcdtest.New(t, 1)
	return store.New(m.Client, clock.System{}), m
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func newVM(name string) *model.VM {
	return &model.VM{Meta: model.Meta{Name: name}, Spec: model.VMSpec{CPUs: 1}}
}

func TestObjects(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	for _, name := range []string{"", "Web", "-a", "a_b", ids.New().String()} {
		if _, err := store.Create(ctx, s, newVM(name)); !errors.Is(err, errs.Invalid) {
			t.Errorf("create %q: %v", name, err)
		}
	}
	vm, err := store.Create(ctx, s, newVM("web"))
	if err != nil || vm.ID.IsZero() || vm.Revision == 0 || vm.Created.IsZero() {
		t.Fatalf("create: %+v, %v", vm, err)
	}
	if _, err := store.Create(ctx, s, newVM("web")); !errors.Is(err, errs.Conflict) || errs.Hint(err) == "" {
		t.Errorf("create twice: %v", err)
	}
	if _, err := store.Create(ctx, s, &model.Volume{Meta: model.Meta{Name: "web"}}); err != nil {
		t.Errorf("same name, other kind: %v", err)
	}
	for _, ref := range []string{"web", vm.ID.String()} {
		if got, err := store.Get[model.VM](ctx, s, ref); err != nil || got.ID != vm.ID || got.Revision != vm.Revision {
			t.Errorf("get %s: %+v, %v", ref, got, err)
		}
	}
	if _, err := store.Get[model.VM](ctx, s, "none"); !errors.Is(err, errs.NotFound) {
		t.Errorf("get none: %v", err)
	}
	stale := *vm
	vm, err = store.Update(ctx, s, vm.ID, func(v *model.VM) error { v.Spec.CPUs = 2; return nil })
	if err != nil || vm.Spec.CPUs != 2 || vm.Revision == stale.Revision {
		t.Fatalf("update: %+v, %v", vm, err)
	}
	same, err := store.Update(ctx, s, vm.ID, func(v *model.VM) error { v.Spec.CPUs = 2; return nil })
	if err != nil || same.Revision != vm.Revision {
		t.Errorf("an update that changes nothing wrote: %d, %d, %v", same.Revision, vm.Revision, err)
	}
	if _, err := store.Put(ctx, s, &stale); !errors.Is(err, errs.Conflict) {
		t.Errorf("put of an old revision: %v", err)
	}
	if err := store.Delete(ctx, s, &stale); !errors.Is(err, errs.Conflict) {
		t.Errorf("delete of an old revision: %v", err)
	}
	if err := store.Delete(ctx, s, vm); err != nil {
		t.Fatal(err)
	}
	if err := store.Delete(ctx, s, vm); !errors.Is(err, errs.NotFound) {
		t.Errorf("delete twice: %v", err)
	}
	if _, err := store.Create(ctx, s, newVM("web")); err != nil {
		t.Errorf("the name is free again: %v", err)
	}
}

// TestUpdatesDoNotLoseEachOther adds from several goroutines to one counter.
func TestUpdatesDoNotLoseEachOther(t *testing.T) {
	s, _ := open(t)
	vm, err := store.Create(t.Context(), s, newVM("web"))
	if err != nil {
		t.Fatal(err)
	}
	const writers, each = 3, 5
	var wg sync.WaitGroup
	for range writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range each {
				if _, err := store.Update(t.Context(), s, vm.ID, func(v *model.VM) error { v.Status.Restarts++; return nil }); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	if got, _ := store.GetID[model.VM](t.Context(), s, vm.ID); got.Status.Restarts != writers*each {
		t.Errorf("%d of %d additions", got.Status.Restarts, writers*each)
	}
}

func TestRecordsAndTransactions(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	r, err := store.GetRecord[int](ctx, s, "/s/x")
	if err != nil || r.Revision != 0 {
		t.Fatalf("no record: %+v, %v", r, err)
	}
	rev, err := s.Commit(ctx, store.NewTx().If("/s/x", 0).Put("/s/x", 1).Put("/s/y", 2))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, store.NewTx().If("/s/x", 0).Put("/s/x", 3)); !errors.Is(err, errs.Conflict) || errors.Is(err, store.ErrUnknown) {
		t.Errorf("condition that does not hold: %v", err)
	}
	if _, err := s.Commit(ctx, store.NewTx().If("/s/x", rev).Delete("/s/y").Put("/s/x", 4)); err != nil {
		t.Error(err)
	}
	all, err := store.ListRecords[int](ctx, s, "/s/")
	if err != nil || len(all) != 1 || all["/s/x"].Value != 4 {
		t.Errorf("records %v, %v", all, err)
	}
	if _, err := s.Commit(ctx, store.NewTx().Put("/s/z", func() {})); err == nil {
		t.Error("a value that cannot be encoded was stored")
	}
	if _, err := store.GetRecord[string](ctx, s, "/s/x"); !errors.Is(err, errs.Corrupt) {
		t.Errorf("record of another type: %v", err)
	}
}

// A mute is an etcd whose next answer to a change does not arrive; made tells
// whether the change is.
type mute struct {
	clientv3.KV
	made  bool
	armed bool
}

func (m *mute) Txn(ctx context.Context) clientv3.Txn { return &mutedTxn{Txn: m.KV.Txn(ctx), m: m} }

type mutedTxn struct {
	clientv3.Txn
	m *mute
}

func (t *mutedTxn) If(cs ...clientv3.Cmp) clientv3.Txn {
	t.Txn = t.Txn.If(cs...)
	return t
}

func (t *mutedTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	t.Txn = t.Txn.Then(ops...)
	return t
}

func (t *mutedTxn) Commit() (*clientv3.TxnResponse, error) {
	if !t.m.armed {
		return t.Txn.Commit()
	}
	t.m.armed = false
	if t.m.made {
		if _, err := t.Txn.Commit(); err != nil {
			return nil, err
		}
	}
	return nil, status.Error(codes.Unavailable, "error reading from server: EOF")
}

// TestUnknownOutcome: a change whose answer is lost is looked for; only one that
// cannot be seen is of unknown outcome.
func TestUnknownOutcome(t *testing.T) {
	s, m := open(t)
	ctx := t.Context()
	mu := &mute{KV: m.Client.KV}
	m.Client.KV = mu
	lost := func(made bool, tx *store.Tx) (int64, error) {
		mu.made, mu.armed = made, true
		return s.Commit(ctx, tx)
	}
	rev, err := lost(true, store.NewTx().If("/s/x", 0).Put("/s/x", 1).Put("/s/y", 2))
	if err != nil {
		t.Fatalf("a change that was made: %v", err)
	}
	if r, err := store.GetRecord[int](ctx, s, "/s/x"); err != nil || r.Revision != rev {
		t.Errorf("made at %d, the record says %d (%v)", rev, r.Revision, err)
	}
	if _, err := lost(false, store.NewTx().If("/s/x", rev).Put("/s/x", 3)); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("a change that was not made: %v", err)
	}
	if _, err := lost(true, store.NewTx().If("/s/x", 0).Put("/s/x", 4)); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("a change whose condition does not hold: %v", err)
	}
	if _, err := s.Commit(ctx, store.NewTx().Put("/s/y", 5)); err != nil {
		t.Fatal(err)
	}
	if _, err := lost(false, store.NewTx().Put("/s/x", 1).Put("/s/y", 5)); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("values that are there, of two changes: %v", err)
	}
	if _, err := lost(false, store.NewTx().Put("/s/x", 1).Delete("/s/y")); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("half of a change is there: %v", err)
	}
	if _, err := lost(true, store.NewTx().If("/s/x", rev).Delete("/s/x").Delete("/s/y")); err != nil {
		t.Errorf("a deletion that was made: %v", err)
	}
	lease, err := m.Client.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lost(true, store.NewTx().PutLease("/s/l", 1, lease.ID)); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("a change under a lease: %v", err)
	}
	vm, err := store.Create(ctx, s, newVM("web"))
	if err != nil {
		t.Fatal(err)
	}
	mu.made, mu.armed = true, true
	if _, err := store.Update(ctx, s, vm.ID, func(v *model.VM) error { v.Spec.CPUs = 3; return nil }); err != nil {
		t.Errorf("an update that was made: %v", err)
	}
}

// TestTransact: a transaction is made anew while others change what it is conditioned
// on, and ends at a name that is taken, at its own refusal, and at last.
func TestTransact(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	vm, err := store.Create(ctx, s, newVM("web"))
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	meddle := func(times int) func(*store.Tx) error {
		asked = 0
		return func(tx *store.Tx) error {
			v, err := store.GetID[model.VM](ctx, s, vm.ID)
			if err != nil {
				return err
			}
			if asked++; asked <= times {
				if _, err := store.Update(ctx, s, vm.ID, func(v *model.VM) error { v.Spec.CPUs++; return nil }); err != nil {
					return err
				}
			}
			v.Spec.Priority = asked
			return store.TxPut(tx, v)
		}
	}
	rev, err := s.Transact(ctx, "set vm web", meddle(3))
	if err != nil || asked != 4 {
		t.Fatalf("%v after %d attempts, want 4", err, asked)
	}
	if v, err := store.GetID[model.VM](ctx, s, vm.ID); err != nil || v.Revision != rev || v.Spec.Priority != 4 || v.Spec.CPUs != vm.Spec.CPUs+3 {
		t.Errorf("%+v (%v), want the changes of both", v, err)
	}
	if _, err := s.Transact(ctx, "set vm web", meddle(1000)); !errors.Is(err, errs.Conflict) || asked > 100 {
		t.Errorf("%v after %d attempts, want a conflict soon", err, asked)
	}
	asked = 0
	_, err = s.Transact(ctx, "create vm web", func(tx *store.Tx) error { asked++; return store.TxCreate(tx, s, newVM("web")) })
	if !errors.Is(err, errs.Conflict) || asked != 1 || !strings.Contains(err.Error(), "create vm web: the name is taken") {
		t.Errorf("a name that is taken: %v after %d attempts", err, asked)
	}
	no := errors.New("no")
	if _, err := s.Transact(ctx, "x", func(*store.Tx) error { return no }); err != no {
		t.Errorf("its own refusal: %v", err)
	}
}

// TestEtcdAway: changes and strict reads say why, with an outcome that is marked
// unknown; caches and sessions keep what they had and catch up.
func TestEtcdAway(t *testing.T) {
	s, m := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	cache, sessions := store.NewCache[model.VM](s), store.NewSessions(s)
	node := ids.New()
	for _, run := range []func(context.Context) error{cache.Run, sessions.Run, func(ctx context.Context) error {
		return s.KeepSession(ctx, store.Session{Node: node})
	}} {
		wg.Add(1)
		go func() { defer wg.Done(); run(ctx) }()
	}
	vm, err := store.Create(ctx, s, newVM("web"))
	if err != nil {
		t.Fatal(err)
	}
	until(t, "seen by cache and sessions", func() bool { return cache.Get(vm.ID) != nil && sessions.Alive(node) })
	m.Server.Close()
	if _, err := s.Commit(ctx, store.NewTx().Put("/s/x", 1)); !errors.Is(err, errs.Unavailable) || !errors.Is(err, store.ErrUnknown) || errs.Hint(err) == "" {
		t.Errorf("change while etcd is away: %v (hint %q)", err, errs.Hint(err))
	}
	if _, err := store.Get[model.VM](ctx, s, "web"); !errors.Is(err, errs.Unavailable) {
		t.Errorf("read while etcd is away: %v", err)
	}
	if cache.ByName("web") == nil || !sessions.Alive(node) {
		t.Error("losing etcd emptied a cache")
	}
	again, err := etcd.Start(ctx, m.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	until(t, "a change is seen again", func() bool {
		store.Update(ctx, s, vm.ID, func(v *model.VM) error { v.Spec.CPUs = 7; return nil })
		v := cache.ByName("web")
		return v != nil && v.Spec.CPUs == 7 && sessions.Alive(node)
	})
	if err := store.Delete(ctx, s, cache.Get(vm.ID)); err != nil {
		t.Fatal(err)
	}
	until(t, "the deletion is seen", func() bool { return cache.Get(vm.ID) == nil })
}

// TestOneOffice: of two candidates one works, and the other follows it.
func TestOneOffice(t *testing.T) {
	s, _ := open(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	working := make(chan int, 2)
	stops := make([]context.CancelFunc, 2)
	for i := range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		stops[i] = cancel
		defer cancel()
		wg.Add(1)
		go func() {
			defer wg.Done()
			s.Elect(ctx, "test", ids.New(), func(ctx context.Context) error {
				working <- i
				<-ctx.Done()
				return ctx.Err()
			})
		}()
	}
	first := <-working
	select {
	case other := <-working:
		t.Fatalf("%d and %d hold the office", first, other)
	case <-time.After(300 * time.Millisecond):
	}
	stops[first]()
	select {
	case second := <-working:
		if second == first {
			t.Fatal("the one that stopped works again")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nobody followed")
	}
}
