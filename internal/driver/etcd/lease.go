package etcd

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/base/errs"
)

// Timing of renewals.
const (
	renewParts = 4 // renewals in a TTL
	hedgeAfter = 200 * time.Millisecond
)

// errLeaseGone is the answer to the renewal of a lease that is over.
var errLeaseGone = errors.New("the lease is over")

// KeepLease renews a lease until ctx ends, and closes the channel when it is lost
// or ctx ended. Unlike clientv3's KeepAlive, which has one stream to one
// member, it does not wait for a member that is slow: only the leader renews, and
// a follower that must first find out which of the leader's networks is cut takes
// longer than a short lease stands. A renewal without an answer is followed by
// one at the next member after hedgeAfter.
func KeepLease(ctx context.Context, cli *clientv3.Client, id clientv3.LeaseID, ttl time.Duration) <-chan struct{} {
	lost := make(chan struct{})
	go func() {
		defer close(lost)
		keepLease(ctx, ttl, func(ctx context.Context) error { return renew(ctx, cli, id) })
	}()
	return lost
}

// keepLease returns when the lease is over: by an answer, or because no renewal
// that was sent within the last ttl is known to have succeeded.
func keepLease(ctx context.Context, ttl time.Duration, renew func(context.Context) error) {
	t := time.NewTicker(ttl / renewParts)
	defer t.Stop()
	for renewed := time.Now(); ; {
		rctx, cancel := context.WithDeadline(ctx, renewed.Add(ttl))
		sent, err := hedged(rctx, renew)
		cancel()
		switch {
		case err == nil:
			renewed = sent
		case ctx.Err() != nil, errors.Is(err, errLeaseGone), time.Since(renewed) >= ttl:
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// hedged makes attempts, one more each hedgeAfter, until one succeeds, says that
// the lease is over, or ctx ends. It returns when the attempt that succeeded was
// begun.
func hedged(ctx context.Context, try func(context.Context) error) (time.Time, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		began time.Time
		err   error
	}
	results := make(chan result)
	begin := func() {
		began := time.Now()
		go func() {
			err := try(ctx)
			select {
			case results <- result{began, err}:
			case <-ctx.Done():
			}
		}()
	}
	begin()
	t := time.NewTicker(hedgeAfter)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		case r := <-results:
			if r.err == nil || errors.Is(r.err, errLeaseGone) {
				return r.began, r.err
			}
		case <-t.C:
			begin()
		}
	}
}

// renew asks one member, the next of the client's round, once.
func renew(ctx context.Context, cli *clientv3.Client, id clientv3.LeaseID) error {
	stream, err := pb.NewLeaseClient(cli.ActiveConnection()).LeaseKeepAlive(ctx)
	if err != nil {
		return Classify(err)
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil {
		return Classify(err)
	}
	a, err := stream.Recv()
	if err != nil {
		return Classify(err)
	}
	if a.TTL <= 0 {
		return errs.New(errs.NotFound, "%w", errLeaseGone)
	}
	return stream.CloseSend()
}
