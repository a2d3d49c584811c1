package guard

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/nbd"
	"roseau/internal/block/volume"
)

// The fake volumes of these tests: one raw file that all guards share, one own
// record in a file under a lock, and files whose existence injects faults. It
// works across processes, as the real ones do, and knows epochs, runs and leases
// well enough for what a guard does with them.
const (
	faultLease = "lease-off" // no lease is granted or renewed
	faultEtcd  = "etcd-off"  // own cannot be read or written
	fakeLease  = 3 * time.Second
)

type fakeOwn struct {
	Epoch    uint64 `json:"epoch"`
	Inc      uint32 `json:"inc"`
	Node     ids.ID `json:"node"`
	Run      ids.ID `json:"run"`
	Nonce    ids.ID `json:"nonce"`
	Released bool   `json:"released"`
	// GrantUnixNS is when the last lease ends, in boot time.
	Grant clock.Instant `json:"grant"`
}

type fakeSet struct {
	volume.Handle // what is not faked panics
	dir           string
	cfg           volume.Config
	nonce         ids.ID
	file          *os.File
	events        chan volume.Event
	ctx           context.Context
	end           context.CancelFunc
	wg            sync.WaitGroup

	mu       sync.Mutex
	own      fakeOwn // as claimed
	serving  bool
	lease    volume.Lease
	waiting  []*nbd.Request
	inflight sync.WaitGroup
}

func openFake(dir string) volume.Opener {
	return func(ctx context.Context, cfg volume.Config) (volume.Handle, error) {
		f, err := os.OpenFile(filepath.Join(dir, "disk.raw"), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		s := &fakeSet{dir: dir, cfg: cfg, nonce: ids.New(), file: f, events: make(chan volume.Event, 64)}
		s.ctx, s.end = context.WithCancel(context.WithoutCancel(ctx))
		s.wg.Go(s.beat)
		return s, nil
	}
}

func (s *fakeSet) fault(name string) bool {
	_, err := os.Stat(filepath.Join(s.dir, name))
	return err == nil
}

// txn changes the own record under the lock, like a transaction.
func (s *fakeSet) txn(f func(*fakeOwn) bool) (fakeOwn, error) {
	l, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fakeOwn{}, err
	}
	defer l.Close()
	if err := unix.Flock(int(l.Fd()), unix.LOCK_EX); err != nil {
		return fakeOwn{}, err
	}
	var o fakeOwn
	if b, err := os.ReadFile(filepath.Join(s.dir, "own.json")); err == nil {
		if err := json.Unmarshal(b, &o); err != nil {
			return o, err
		}
	}
	if !f(&o) {
		return o, nil
	}
	b, err := json.Marshal(o)
	if err != nil {
		return o, err
	}
	tmp := filepath.Join(s.dir, "own."+s.nonce.Short()) // a killed writer leaves no half record
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return o, err
	}
	return o, os.Rename(tmp, filepath.Join(s.dir, "own.json"))
}

// beat renews the lease and notices who took over.
func (s *fakeSet) beat() {
	for clock.Sleep(s.ctx, 100*time.Millisecond) == nil {
		s.mu.Lock()
		mine, old := s.own, s.lease
		s.mu.Unlock()
		if mine.Epoch == 0 {
			continue
		}
		now := clock.System{}.Now()
		var by fakeOwn
		if !s.fault(faultLease) {
			o, err := s.txn(func(o *fakeOwn) bool {
				if o.Nonce != mine.Nonce || o.Inc != mine.Inc || o.Released {
					return false
				}
				o.Grant = now.Add(fakeLease)
				return true
			})
			if err == nil && (o.Nonce != mine.Nonce || o.Inc != mine.Inc) {
				by = o
			} else if err == nil && !o.Released {
				s.setLease(volume.Lease{Held: true, Deadline: now.Add(fakeLease)})
				continue
			}
		}
		if by.Epoch != 0 {
			s.setLease(volume.Lease{})
			s.mu.Lock()
			s.own, s.serving = fakeOwn{}, false
			s.mu.Unlock()
			e := volume.Event{Kind: volume.EventFenced, Text: "another promise"}
			e.By.Node, e.By.Run, e.By.Epoch = by.Node, by.Run, by.Epoch
			s.events <- e
			continue
		}
		if old.Held && !now.Before(old.Deadline) {
			s.setLease(volume.Lease{})
		}
	}
}

func (s *fakeSet) setLease(l volume.Lease) {
	s.mu.Lock()
	s.lease = l
	s.mu.Unlock()
	s.cfg.OnLease(l)
	s.pump()
}

// pump starts what waited, if requests may be served.
func (s *fakeSet) pump() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.serving || !s.lease.Held {
		return
	}
	for _, r := range s.waiting {
		s.inflight.Add(1)
		go s.serve(r)
	}
	s.waiting = nil
}

func (s *fakeSet) serve(r *nbd.Request) {
	defer s.inflight.Done()
	var err error
	switch r.Op {
	case nbd.OpRead:
		r.Alloc()
		_, err = s.file.ReadAt(r.Data, r.Offset)
	case nbd.OpWrite:
		_, err = s.file.WriteAt(r.Data, r.Offset)
	case nbd.OpFlush:
		err = s.file.Sync()
	case nbd.OpZero, nbd.OpTrim:
		_, err = s.file.WriteAt(make([]byte, r.Length), r.Offset)
	case nbd.OpStatus:
		r.Spans = []nbd.Span{{Length: r.Length}}
	}
	r.Done(err)
}

// fakeBackend is the block device.
type fakeBackend struct{ s *fakeSet }

func (b fakeBackend) SizeBytes() int64 {
	st, err := b.s.file.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}
func (b fakeBackend) ReadOnly() bool { return false }
func (b fakeBackend) Submit(rs []*nbd.Request) {
	b.s.mu.Lock()
	b.s.waiting = append(b.s.waiting, rs...)
	b.s.mu.Unlock()
	b.s.pump()
}

func (s *fakeSet) Serve(ctx context.Context, vol ids.ID, l net.Listener) error {
	return nbd.NewServer(nil, nbd.Export{Name: vol.String(), Backend: fakeBackend{s}}).Serve(ctx, l)
}

func (s *fakeSet) Prepare(ctx context.Context) (volume.Prepared, error) {
	o, err := s.txn(func(*fakeOwn) bool { return false })
	left := o.Grant.Sub(clock.System{}.Now())
	p := volume.Prepared{Reachable: true, Ready: o.Released || o.Epoch == 0 || left <= 0, Retry: left, Live: left > 0}
	if !p.Ready {
		p.Text = "the present writer lives"
	}
	return p, err
}

func (s *fakeSet) Claim(ctx context.Context, c volume.Claim) (volume.Outcome, error) {
	if s.fault(faultEtcd) {
		clock.Sleep(ctx, c.Timeout)
		return volume.Unknown, nil
	}
	var cause error
	o, err := s.txn(func(o *fakeOwn) bool {
		switch {
		case !c.ExpectRun.IsZero() && o.Run != c.ExpectRun:
			cause = errs.New(errs.Fenced, "own names another run")
		case c.ExpectEpoch != 0 && o.Epoch != c.ExpectEpoch:
			cause = errs.New(errs.Conflict, "own has epoch %d", o.Epoch)
		}
		if cause != nil {
			return false
		}
		grant := o.Grant
		if o.Released {
			grant = 0
		}
		*o = fakeOwn{Epoch: o.Epoch + 1, Node: s.cfg.Node, Run: s.cfg.Run, Nonce: s.nonce, Grant: grant}
		return true
	})
	if err != nil || cause != nil {
		return volume.NotMade, errors.Join(err, cause)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own = o
	return volume.Made, nil
}

func (s *fakeSet) Activate(ctx context.Context) error {
	s.mu.Lock()
	s.serving = true
	s.mu.Unlock()
	s.setLease(volume.Lease{Held: true, Deadline: clock.System{}.Now().Add(fakeLease)})
	return nil
}

func (s *fakeSet) Take(ctx context.Context, c volume.Claim) error {
	if o, err := s.Claim(ctx, c); o != volume.Made {
		return errors.Join(errs.Unavailable, err)
	}
	return s.Activate(ctx)
}

func (s *fakeSet) Reopen(ctx context.Context, p volume.Predecessor) error {
	var cause error
	o, err := s.txn(func(o *fakeOwn) bool {
		if o.Run != s.cfg.Run || o.Nonce != p.Nonce {
			cause = errs.New(errs.Fenced, "own names another run or epoch")
			return false
		}
		o.Inc++
		return true
	})
	if err := errors.Join(err, cause); err != nil {
		return err
	}
	s.mu.Lock()
	s.own = o
	s.mu.Unlock()
	return s.Activate(ctx)
}

func (s *fakeSet) Reclaim(ctx context.Context, c volume.Claim) (volume.Outcome, error) {
	s.mu.Lock()
	c.ExpectEpoch = s.own.Epoch
	s.mu.Unlock()
	s.nonce = ids.New()
	o, err := s.Claim(ctx, c)
	if o == volume.Made {
		err = s.Activate(ctx)
	}
	return o, err
}

func (s *fakeSet) Owner(ctx context.Context) (volume.Owner, error) {
	if s.fault(faultEtcd) {
		<-ctx.Done()
		return volume.Owner{}, errs.New(errs.Unavailable, "read own: %w", ctx.Err())
	}
	o, err := s.txn(func(*fakeOwn) bool { return false })
	return volume.Owner{Epoch: o.Epoch, Inc: o.Inc, Node: o.Node, Run: o.Run, Nonce: o.Nonce, Mine: o.Nonce == s.nonce}, err
}

func (s *fakeSet) Stall(ctx context.Context) error {
	s.mu.Lock()
	s.serving = false
	s.mu.Unlock()
	s.inflight.Wait()
	return s.file.Sync()
}

func (s *fakeSet) Resume() error {
	s.mu.Lock()
	s.serving = true
	s.mu.Unlock()
	s.pump()
	return nil
}

func (s *fakeSet) Release(ctx context.Context) error {
	s.mu.Lock()
	mine := s.own
	s.serving = false
	s.mu.Unlock()
	s.inflight.Wait()
	_, err := s.txn(func(o *fakeOwn) bool {
		if o.Nonce == mine.Nonce {
			o.Released = true
			return true
		}
		o.Grant = 0 // the old epoch's grant is over at once
		return true
	})
	return errors.Join(err, s.file.Sync())
}

func (s *fakeSet) Lease() volume.Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lease
}

func (s *fakeSet) Status() volume.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := volume.Status{Epoch: s.own.Epoch, Run: s.own.Run, Lease: s.lease.Held}
	for _, v := range s.cfg.Volumes {
		st.Volumes = append(st.Volumes, volume.VolumeStatus{Volume: v, Epoch: s.own.Epoch, Nonce: s.own.Nonce, Inc: s.own.Inc,
			Copies: 3, CopiesInSync: 3, Healthy: true})
	}
	return st
}

func (s *fakeSet) Ping(context.Context) error { return nil }

func (s *fakeSet) Events() <-chan volume.Event { return s.events }

func (s *fakeSet) Close() error {
	s.end()
	s.wg.Wait()
	return nil // the file stays open for requests under way; the process is a test's
}
