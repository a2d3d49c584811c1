package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/pki"
)

// Timing of clients. A connection to a dead machine is given up after
// keepAlive+keepAliveTimeout, so that the next request goes to another member.
const (
	dialTimeout      = 2 * time.Second
	keepAlive        = 1 * time.Second
	keepAliveTimeout = 1 * time.Second
)

// Dial makes a client of the members at endpoints ("https://10.0.0.1:7379"). It
// returns at once and connects in the background: daemons and guards start
// while etcd is away. Requests go to any member that answers.
func Dial(id *pki.Identity, endpoints []string) (*clientv3.Client, error) {
	if len(endpoints) == 0 {
		return nil, errs.New(errs.Invalid, "dial etcd: no endpoints")
	}
	bo := backoff.DefaultConfig
	bo.BaseDelay, bo.MaxDelay = 100*time.Millisecond, time.Second
	cli, err := clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		TLS:                  id.ClientTLS(ids.ID{}),
		DialTimeout:          dialTimeout,
		DialKeepAliveTime:    keepAlive,
		DialKeepAliveTimeout: keepAliveTimeout,
		PermitWithoutStream:  true,
		Logger:               zap.NewNop(), // what matters comes back as errors
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: bo, MinConnectTimeout: dialTimeout}),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("dial etcd: %w", err)
	}
	return cli, nil
}

// Member is one etcd member.
type Member struct {
	ID         uint64
	Node       ids.ID // its name; zero if the name is no id (not started yet)
	PeerURLs   []string
	ClientURLs []string
	Learner    bool
}

// Members lists the members as the cluster agrees on them (a linearizable
// read).
func Members(ctx context.Context, cli *clientv3.Client) ([]Member, error) {
	resp, err := cli.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list etcd members: %w", Classify(err))
	}
	var out []Member
	for _, m := range resp.Members {
		node, _ := ids.Parse(m.Name) // "" until it started: stays zero
		out = append(out, Member{ID: m.ID, Node: node, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, Learner: m.IsLearner})
	}
	return out, nil
}

// AddLearner announces a member that will start at peerURL. It may be repeated:
// a member with that peer URL is returned as it is. StrictReconfigCheck makes
// etcd answer "unhealthy cluster" until all members were connected for 5 s, and
// there may be one learner at a time: both are waited for until ctx ends.
func AddLearner(ctx context.Context, cli *clientv3.Client, peerURL string) (Member, error) {
	for {
		members, err := Members(ctx, cli)
		if err != nil {
			return Member{}, err
		}
		for _, m := range members {
			for _, u := range m.PeerURLs {
				if u == peerURL {
					return m, nil
				}
			}
		}
		resp, err := cli.MemberAddAsLearner(ctx, []string{peerURL})
		if err == nil {
			return Member{ID: resp.Member.ID, PeerURLs: resp.Member.PeerURLs, Learner: true}, nil
		}
		if err := retryMember(ctx, "add etcd member "+peerURL, err); err != nil {
			return Member{}, err
		}
	}
}

// Promote makes a learner a voter once it has caught up, and waits for that
// until ctx ends. A member that votes already is left as it is.
func Promote(ctx context.Context, cli *clientv3.Client, member uint64) error {
	for {
		_, err := cli.MemberPromote(ctx, member)
		if err == nil || errors.Is(err, rpctypes.ErrMemberNotLearner) {
			return nil
		}
		if err := retryMember(ctx, fmt.Sprintf("promote etcd member %x", member), err); err != nil {
			return err
		}
	}
}

// Remove takes a member out; one that is gone already is no error.
func Remove(ctx context.Context, cli *clientv3.Client, member uint64) error {
	for {
		_, err := cli.MemberRemove(ctx, member)
		if err == nil || errors.Is(err, rpctypes.ErrMemberNotFound) {
			return nil
		}
		if err := retryMember(ctx, fmt.Sprintf("remove etcd member %x", member), err); err != nil {
			return err
		}
	}
}

// retryMember waits a moment if a change of members failed for a reason that
// passes by itself, and returns the error otherwise.
func retryMember(ctx context.Context, what string, err error) error {
	passing := errors.Is(err, rpctypes.ErrUnhealthy) || errors.Is(err, rpctypes.ErrTooManyLearners) ||
		errors.Is(err, rpctypes.ErrMemberLearnerNotReady) || errs.Kind(Classify(err)) == errs.Unavailable
	if !passing {
		return fmt.Errorf("%s: %w", what, Classify(err))
	}
	t := time.NewTimer(300 * time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, Classify(err))
	case <-t.C:
		return nil
	}
}

// ErrUnknown marks an error after which a change may or may not have been made:
// read again before the next step.
var ErrUnknown = errors.New("outcome unknown")

// unknown makes an error match ErrUnknown without saying so: people read what
// happened, programs ask errors.Is.
type unknown struct{ error }

func (u unknown) Is(target error) bool { return target == ErrUnknown }
func (u unknown) Unwrap() error        { return u.error }

var (
	errNoAnswer = unknown{errors.New("no answer from etcd in time")}
	errNoLeader = unknown{errors.New("etcd has no leader")}
)

// noQuorumHint is what an operator must know first.
const noQuorumHint = "no quorum: changes are refused until most voters are back; running VMs are not affected (see `roseau cluster status`)"

// Classify gives an error of the etcd client a kind. Errors that leave the
// outcome of a change open also match ErrUnknown.
func Classify(err error) error {
	if err == nil || errs.Kind(err) != nil {
		return err
	}
	switch {
	case errors.Is(err, context.Canceled):
		return errs.New(errs.Unavailable, "%w", unknown{err})
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, rpctypes.ErrTimeout),
		errors.Is(err, rpctypes.ErrTimeoutDueToLeaderFail), errors.Is(err, rpctypes.ErrTimeoutDueToConnectionLost),
		errors.Is(err, rpctypes.ErrTimeoutWaitAppliedIndex):
		return errs.New(errs.Unavailable, "%w", errNoAnswer).WithHint(noQuorumHint)
	case errors.Is(err, rpctypes.ErrNoLeader), errors.Is(err, rpctypes.ErrNotCapable), errors.Is(err, rpctypes.ErrLeaderChanged):
		return errs.New(errs.Unavailable, "%w", errNoLeader).WithHint(noQuorumHint)
	case status.Code(err) == codes.Unknown:
		// A member that is being stopped or removed fails from the inside and has
		// no code for it ("raft: stopped"): another one knows.
		return errs.New(errs.Unavailable, "%w", unknown{err}).WithHint("a voter is stopping or being removed: try again")
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		return errs.New(errs.Invalid, "%w", err)
	case errors.Is(err, rpctypes.ErrNoSpace):
		return errs.New(errs.Exhausted, "%w", err).WithHint("etcd's database is full: see docs/operate")
	case errors.Is(err, rpctypes.ErrTooManyRequests), errors.Is(err, rpctypes.ErrStopped), errors.Is(err, rpctypes.ErrUnhealthy):
		return errs.New(errs.Unavailable, "%w", err)
	}
	var ee rpctypes.EtcdError
	code := codes.Unknown
	if errors.As(err, &ee) {
		code = ee.Code()
	} else if s, ok := status.FromError(err); ok {
		code = s.Code()
	}
	switch code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Aborted, codes.Internal:
		return errs.New(errs.Unavailable, "etcd: %w", unknown{err}).WithHint(noQuorumHint)
	case codes.ResourceExhausted:
		return errs.New(errs.Exhausted, "etcd: %w", err)
	case codes.PermissionDenied, codes.Unauthenticated:
		return errs.New(errs.Denied, "etcd: %w", err)
	}
	return err
}
