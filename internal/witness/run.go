package witness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/driver/etcd"
	"roseau/internal/model"
	"roseau/internal/nodeconf"
	"roseau/internal/pki"
	"roseau/internal/store"
	"roseau/internal/svc/member"
	"roseau/internal/svc/seat"
	"roseau/internal/svc/voters"
)

const (
	waitPoll     = time.Second
	followEvery  = time.Second
	tickEvery    = 10 * time.Second
	leadPoll     = 50 * time.Millisecond
	askLimit     = 400 * time.Millisecond
	leaveTimeout = 10 * time.Second
	opTimeout    = 5 * time.Second
	// alone is how long the witness waits for a majority without its own votes
	// before it takes the word of the nodes that answer.
	alone     = 10 * time.Second
	gcPercent = 50 // memory counts more than time here
)

// Options are what the command line gives.
type Options struct {
	Dir     string
	Version string
	Clock   clock.Clock
	Log     *slog.Logger
}

// errRemoved ends a witness that the cluster took out.
var errRemoved = errors.New("the cluster removed this witness")

// Run is the witness until ctx ends or the cluster removes it (nil both). A
// directory without a config is waited for: `roseau witness run --join-only`
// makes it.
func Run(ctx context.Context, o Options) error {
	debug.SetGCPercent(gcPercent)
	said := false
	for {
		_, err := load(o.Dir)
		if err == nil {
			break
		}
		if !errors.Is(err, errs.NotFound) {
			return err
		}
		if !said {
			o.Log.Info("in no cluster: waiting for `roseau witness run --join-only TOKEN --address IP`", "data", o.Dir)
			said = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(waitPoll):
		}
	}
	unlock, err := lockDir(o.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	conf, err := load(o.Dir)
	if err != nil {
		return err
	}
	// The start counts before anything else happens.
	conf.Count.Starts++
	if err := conf.save(o.Dir); err != nil {
		return err
	}
	err = run(ctx, o, conf)
	switch {
	case errors.Is(err, errRemoved):
		o.Log.Warn("removed from the cluster: this witness ends", "cluster", conf.ClusterName)
		return os.Rename(configFile(o.Dir), configFile(o.Dir)+".removed")
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return nil
	}
	return err
}

// witness is the running process.
type witness struct {
	o       Options
	cli     *clientv3.Client
	store   *store.Store
	probe   *etcd.Probe
	seats   [Slots]*seat.Seat
	log     *slog.Logger
	trusted chan struct{} // closed when its members may run

	mu   sync.Mutex // protects conf
	conf *Config
}

func run(ctx context.Context, o Options, conf *Config) error {
	log := o.Log.With("witness", conf.Name)
	id, err := pki.Load(filepath.Join(o.Dir, "pki"))
	if err != nil {
		return fmt.Errorf("start witness %s: %w", conf.Name, err)
	}
	if id.Peer().Witness != conf.Witness {
		return errs.New(errs.Corrupt, "start witness %s: the certificate is %s's", conf.Name, id.Peer())
	}
	cli, err := etcd.Dial(id, conf.Endpoints)
	if err != nil {
		return err
	}
	defer cli.Close()
	w := &witness{o: o, cli: cli, store: store.New(cli, o.Clock), probe: etcd.NewProbe(id), log: log, trusted: make(chan struct{}), conf: conf}
	defer w.probe.Close()
	for i := range w.seats {
		w.seats[i] = w.newSeat(id, i+1)
	}
	log.Info("witness starts", "cluster", conf.ClusterName, "starts", conf.Count.Starts, "ticks", conf.Count.Ticks)
	// An orderly end gives the votes back while the members still run: they have a
	// context of their own, which ends last.
	mctx, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	g, mctx := errgroup.WithContext(mctx)
	g.Go(func() error { return w.watchRemoval(mctx) })
	g.Go(func() error { return w.settle(mctx, id) })
	for _, s := range w.seats {
		g.Go(func() error { return w.after(mctx, s.Run) })
	}
	for _, f := range []func(context.Context) error{w.session, w.follow, w.tick, w.neverLead} {
		g.Go(func() error { return w.after(mctx, f) })
	}
	g.Go(func() error {
		select {
		case <-ctx.Done():
			w.leave(mctx)
			return context.Canceled
		case <-mctx.Done():
			return nil
		}
	})
	return g.Wait()
}

func (w *witness) newSeat(id *pki.Identity, slot int) *seat.Seat {
	c := w.conf
	ports := voters.WitnessPorts(c.Port, slot)
	return seat.New(seat.Config{
		Etcd: etcd.Config{Name: etcd.WitnessName(c.Witness, slot), Identity: id, Dir: etcdDir(w.o.Dir, slot), Addresses: []string{c.Address},
			Ports: ports, Cluster: c.Cluster, LogFile: filepath.Join(w.o.Dir, "etcd.log")},
		Peer:  etcd.URL(c.Address, ports.Peer),
		Save:  func(s nodeconf.Seat) error { return w.update(func(c *Config) { c.Seats[slot-1] = s }) },
		Clock: w.o.Clock, Log: w.log.With("slot", slot),
	}, c.Seats[slot-1])
}

// update changes the witness's file.
func (w *witness) update(change func(*Config)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := *w.conf
	change(&c)
	if err := c.save(w.o.Dir); err != nil {
		return err
	}
	*w.conf = c
	return nil
}

func (w *witness) count() Count {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conf.Count
}

// after runs f when the witness's data are trusted.
func (w *witness) after(ctx context.Context, f func(context.Context) error) error {
	select {
	case <-w.trusted:
		return f(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// watchRemoval ends the witness when the cluster says that it removed it. Only
// that record counts.
func (w *witness) watchRemoval(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w.store.Follow(ctx, member.RemovedKey(w.conf.Witness), func(kvs []store.KV) {
		if len(kvs) > 0 {
			cancel(errRemoved)
		}
	}, func(kv store.KV) {
		if kv.Value != nil {
			cancel(errRemoved)
		}
	})
	return context.Cause(ctx)
}

// session says that the witness is there.
func (w *witness) session(ctx context.Context) error {
	return w.store.KeepSession(ctx, store.Session{Node: w.conf.Witness, Started: w.o.Clock.Wall().UTC()})
}

// follow keeps endpoints and seats in line with etcd's list.
func (w *witness) follow(ctx context.Context) error {
	last := ""
	for {
		if err := w.followOnce(ctx); err != nil && ctx.Err() == nil && err.Error() != last {
			last = err.Error()
			w.log.Info("follow etcd members", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(followEvery):
		}
	}
}

func (w *witness) followOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	members, err := etcd.Members(ctx, w.cli)
	if err != nil {
		return err
	}
	have := slices.Clone(w.cli.Endpoints())
	slices.Sort(have)
	if now := etcd.Endpoints(members); len(now) > 0 && !slices.Equal(now, have) {
		w.cli.SetEndpoints(now...)
		if err := w.update(func(c *Config) { c.Endpoints = now }); err != nil {
			return err
		}
	}
	for _, s := range w.seats {
		err = errors.Join(err, s.Follow(ctx, members))
	}
	return err
}

// tick counts the witness's running: in its file first, then in etcd.
func (w *witness) tick(ctx context.Context) error {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		if err := w.update(func(c *Config) { c.Count.Ticks++ }); err != nil {
			return err
		}
		if err := w.record(ctx, nil); err != nil {
			w.log.Debug("write count", "err", err)
		}
	}
}

// record brings the count in etcd up to the file's, and makes another change
// with it (nil: none).
func (w *witness) record(ctx context.Context, change func(*voters.WitnessRecord)) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	own := w.count()
	return voters.UpdateWitness(ctx, w.store, w.conf.Witness, func(r *voters.WitnessRecord) {
		r.Starts, r.Ticks = max(r.Starts, own.Starts), max(r.Ticks, own.Ticks)
		if change != nil {
			change(r)
		}
	})
}

// neverLead hands the leadership to a node whenever a member of the witness has
// it: the managers work beside the leader.
func (w *witness) neverLead(ctx context.Context) error {
	t := time.NewTicker(leadPoll)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		for _, s := range w.seats {
			if s.Leading() {
				if err := w.handOver(ctx, s); err != nil {
					w.log.Debug("hand over", "err", err)
				}
			}
		}
	}
}

func (w *witness) handOver(ctx context.Context, s *seat.Seat) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	members, err := etcd.LocalMembers(ctx, w.cli)
	if err != nil {
		return err
	}
	members = slices.DeleteFunc(members, func(m etcd.Member) bool { return m.Node.IsZero() || m.Learner })
	var best etcd.Health
	for _, h := range w.probe.All(ctx, members, askLimit) {
		if h.Leader != 0 && h.Applied >= best.Applied {
			best = h
		}
	}
	if best.Member == 0 {
		return errs.New(errs.Unavailable, "no node that votes answers")
	}
	return s.HandOver(ctx, best.Member)
}

// leave gives the votes back before an orderly end, if they can be spared.
func (w *witness) leave(ctx context.Context) {
	select {
	case <-w.trusted:
	default:
		return // it has no part in anything yet
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	w.log.Info("leaving: giving the votes back")
	err := w.record(ctx, func(r *voters.WitnessRecord) { r.Leaving = true })
	if err == nil {
		err = w.waitVoteless(ctx)
	}
	if err != nil {
		w.log.Warn("the votes could not be given back: the cluster counts them until it is back, or takes them when it can", "err", err)
	}
}

// waitVoteless waits until etcd's list, read with a quorum, has no member of the
// witness, and clears the seats.
func (w *witness) waitVoteless(ctx context.Context) error {
	for {
		members, err := etcd.Members(ctx, w.cli)
		if err == nil && !slices.ContainsFunc(members, w.mine) {
			for _, s := range w.seats {
				err = errors.Join(err, s.Follow(ctx, members))
			}
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (w *witness) mine(m etcd.Member) bool {
	for slot := 1; slot <= Slots; slot++ {
		if slices.Contains(m.PeerURLs, etcd.URL(w.conf.Address, voters.WitnessPorts(w.conf.Port, slot).Peer)) {
			return true
		}
	}
	return m.Witness == w.conf.Witness
}

// settle finds out whether the witness's data can be trusted, makes it forget
// them if not, and lets the rest begin.
func (w *witness) settle(ctx context.Context, id *pki.Identity) error {
	behind, err := w.judge(ctx, id)
	if err != nil {
		return err
	}
	if behind {
		w.log.Warn("the data of this witness were put back to an older state: it leaves and joins anew", "own", w.count())
		if err := w.startOver(ctx); err != nil {
			return err
		}
	}
	close(w.trusted)
	for {
		err := w.record(ctx, func(r *voters.WitnessRecord) { r.Leaving = false })
		if err == nil {
			err = w.introduce(ctx)
		}
		if err == nil {
			return nil
		}
		w.log.Debug("introduce the witness", "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(waitPoll):
		}
	}
}

// introduce marks the token of the join as used and notes the version.
func (w *witness) introduce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if _, err := store.Update(ctx, w.store, w.conf.Witness, func(o *model.Witness) error {
		o.Spec.Version = w.o.Version
		return nil
	}); err != nil {
		return err
	}
	if w.conf.Token.IsZero() {
		return nil
	}
	if _, err := store.Update(ctx, w.store, w.conf.Token, func(t *model.Token) error {
		if t.Used.IsZero() {
			t.Node, t.Used = w.conf.Witness, w.o.Clock.Wall().UTC()
		}
		return nil
	}); err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	return w.update(func(c *Config) { c.Token = ids.ID{} })
}

// judge compares the own count with the cluster's, read with a majority that
// does not need this witness; for want of one, with every node that answers.
func (w *witness) judge(ctx context.Context, id *pki.Identity) (behind bool, err error) {
	own, since := w.count(), w.o.Clock.Now()
	for {
		rctx, cancel := context.WithTimeout(ctx, opTimeout)
		r, err := store.GetRecord[voters.WitnessRecord](rctx, w.store, voters.WitnessKey(w.conf.Witness))
		cancel()
		if err == nil {
			return Behind(own, Count{r.Value.Starts, r.Value.Ticks}), nil
		}
		if w.o.Clock.Now().Sub(since) > alone {
			if seen, ok := w.hearsay(ctx, id); ok {
				w.log.Warn("no majority without this witness: it took the word of the nodes that answer", "own", own, "theirs", seen)
				return Behind(own, seen), nil
			}
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(waitPoll):
		}
	}
}

// hearsay asks each node for what its own member knows, and returns the newest
// count; ok: one answered at least.
func (w *witness) hearsay(ctx context.Context, id *pki.Identity) (newest Count, ok bool) {
	for _, e := range w.conf.Endpoints {
		r, err := w.ask(ctx, id, e)
		if err != nil {
			continue
		}
		ok = true
		newest.Starts, newest.Ticks = max(newest.Starts, r.Starts), max(newest.Ticks, r.Ticks)
	}
	return newest, ok
}

func (w *witness) ask(ctx context.Context, id *pki.Identity, endpoint string) (voters.WitnessRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	cli, err := etcd.Dial(id, []string{endpoint})
	if err != nil {
		return voters.WitnessRecord{}, err
	}
	defer cli.Close()
	r, err := store.GetRecord[voters.WitnessRecord](ctx, store.New(cli, w.o.Clock).Relaxed(), voters.WitnessKey(w.conf.Witness))
	return r.Value, err
}

// startOver has the old members removed, and clears their data. Its count then
// is the cluster's: it goes on from there.
func (w *witness) startOver(ctx context.Context) error {
	for {
		err := w.record(ctx, func(r *voters.WitnessRecord) { r.Leaving = true })
		if err == nil {
			err = w.waitVoteless(ctx)
		}
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w.log.Info("its old members are still listed", "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(waitPoll):
		}
	}
	rctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	r, err := store.GetRecord[voters.WitnessRecord](rctx, w.store, voters.WitnessKey(w.conf.Witness))
	if err != nil {
		return err
	}
	return w.update(func(c *Config) {
		c.Count = Count{max(c.Count.Starts, r.Value.Starts), max(c.Count.Ticks, r.Value.Ticks)}
	})
}
