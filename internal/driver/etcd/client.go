package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/pki"
)

// Timing of clients. A connection to a dead machine is given up when what was
// sent is not acknowledged for keepAliveTimeout, so that the next request goes to
// another member; see hangUp for one that acknowledges and does not answer.
const (
	dialTimeout      = 2 * time.Second
	keepAlive        = 1 * time.Second
	keepAliveTimeout = 1 * time.Second
	idleAsked        = 2 * time.Second // by TCP: gRPC asks every 10 s at most, whatever it is told
)

// Dial makes a client of the members at endpoints, which are as Endpoint returns
// them. It returns at once and connects in the background: daemons and guards
// start while etcd is away. Requests go to any member that answers; to each there
// is one connection, by the first of its addresses that answers.
func Dial(id *pki.Identity, endpoints []string) (*clientv3.Client, error) {
	if len(endpoints) == 0 {
		return nil, errs.New(errs.Invalid, "dial etcd: no endpoints")
	}
	bo := backoff.DefaultConfig
	bo.BaseDelay, bo.MaxDelay = 100*time.Millisecond, time.Second
	cli, err := clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		TLS:                  id.EtcdTLS(),
		DialTimeout:          dialTimeout,
		DialKeepAliveTime:    keepAlive,
		DialKeepAliveTimeout: keepAliveTimeout,
		PermitWithoutStream:  true,
		Logger:               zap.NewNop(), // what matters comes back as errors
		DialOptions: append(newHangUp(id.EtcdTLS()).options(), grpc.WithTransportCredentials(anyNode{credentials.NewTLS(id.EtcdTLS())}),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: bo, MinConnectTimeout: dialTimeout})),
	})
	if err != nil {
		return nil, fmt.Errorf("dial etcd: %w", err)
	}
	return cli, nil
}

// anyNode asks for the name that every node's certificate has. The name that gRPC
// hands over is made of the endpoint, which may be several addresses; who
// answers is checked by the TLS configuration, not by address.
type anyNode struct {
	credentials.TransportCredentials
}

func (c anyNode) ClientHandshake(ctx context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.TransportCredentials.ClientHandshake(ctx, pki.AnyNodeName, conn)
}

func (c anyNode) Clone() credentials.TransportCredentials {
	return anyNode{c.TransportCredentials.Clone()}
}

// Member is one etcd member.
type Member struct {
	ID         uint64
	Name       string // "" until it started
	Node       ids.ID // the node that the name says; zero: not a node's, or not started yet
	Witness    ids.ID // the witness that the name says
	Slot       int    // 1 or 2 of the witness; 0 for others
	PeerURLs   []string
	ClientURLs []string
	Learner    bool
}

const witnessPrefix = "witness-"

// WitnessName is the name of a witness's member: "witness-<id>-<slot>".
func WitnessName(witness ids.ID, slot int) string {
	return witnessPrefix + witness.String() + "-" + strconv.Itoa(slot)
}

// named fills in what a member's name says.
func (m Member) named() Member {
	rest, ok := strings.CutPrefix(m.Name, witnessPrefix)
	if !ok {
		m.Node, _ = ids.Parse(m.Name)
		return m
	}
	if i := strings.LastIndexByte(rest, '-'); i > 0 {
		m.Witness, _ = ids.Parse(rest[:i])
		m.Slot, _ = strconv.Atoi(rest[i+1:])
	}
	return m
}

// Members lists the members as the cluster agrees on them (a linearizable
// read).
func Members(ctx context.Context, cli *clientv3.Client) ([]Member, error) {
	resp, err := cli.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list etcd members: %w", Classify(err))
	}
	return members(resp), nil
}

// LocalMembers lists the members as one of them knows them: for people who
// look, without a quorum too.
func LocalMembers(ctx context.Context, cli *clientv3.Client) ([]Member, error) {
	resp, err := cli.MemberList(ctx, clientv3.WithSerializable())
	if err != nil {
		return nil, fmt.Errorf("list etcd members: %w", Classify(err))
	}
	return members(resp), nil
}

func members(resp *clientv3.MemberListResponse) []Member {
	var out []Member
	for _, m := range resp.Members {
		out = append(out, Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, Learner: m.IsLearner}.named())
	}
	return out
}

// Endpoint is a member to a client of etcd: the client URL of one that has one
// address ("https://10.0.0.1:7379"), "10.0.0.1:7379,10.0.1.1:7379" of one that
// has several, best first; "" of one that has said none yet.
func (m Member) Endpoint() string {
	if len(m.ClientURLs) == 1 {
		return m.ClientURLs[0]
	}
	return strings.Join(hosts(m.ClientURLs), ",")
}

// PeerHosts returns where the other members reach it: "10.0.0.1:7380".
func (m Member) PeerHosts() []string { return hosts(m.PeerURLs) }

func hosts(urls []string) []string {
	var out []string
	for _, s := range urls {
		if u, err := url.Parse(s); err == nil {
			out = append(out, u.Host)
		}
	}
	return out
}

// Endpoints returns the endpoints of the nodes that vote, sorted: the witness
// serves nobody but in need, and learners serve nobody.
func Endpoints(members []Member) []string {
	var out []string
	for _, m := range members {
		if e := m.Endpoint(); !m.Learner && !m.Node.IsZero() && e != "" {
			out = append(out, e)
		}
	}
	slices.Sort(out)
	return out
}

// DialVoters makes a client as Dial does and keeps its endpoints those of the nodes
// that vote. done ends both.
func DialVoters(ctx context.Context, id *pki.Identity, endpoints []string) (cli *clientv3.Client, done func(), err error) {
	if cli, err = Dial(id, endpoints); err != nil {
		return nil, nil, err
	}
	ctx, unfollow := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { followEndpoints(ctx, cli) })
	return cli, func() {
		unfollow()
		wg.Wait()
		cli.Close()
	}, nil
}

// endpointsEvery is how often followEndpoints looks: voters change rarely, and
// one stale address of several does no harm.
const endpointsEvery = 15 * time.Second

// followEndpoints keeps the endpoints of a client those of the nodes that vote, until
// ctx ends. A list that cannot be read changes nothing.
func followEndpoints(ctx context.Context, cli *clientv3.Client) {
	t := time.NewTicker(endpointsEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		lctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		members, err := Members(lctx, cli)
		cancel()
		if err != nil {
			continue
		}
		have := slices.Clone(cli.Endpoints())
		slices.Sort(have)
		if now := Endpoints(members); len(now) > 0 && !slices.Equal(now, have) {
			cli.SetEndpoints(now...)
		}
	}
}

// AddLearner announces a member that will start at peerURL. A member with that
// peer URL that stands there already is left as it is.
func AddLearner(ctx context.Context, cli *clientv3.Client, peerURL string) error {
	members, err := Members(ctx, cli)
	if err != nil {
		return err
	}
	for _, m := range members {
		if slices.Contains(m.PeerURLs, peerURL) {
			return nil
		}
	}
	if _, err := cli.MemberAddAsLearner(ctx, []string{peerURL}); err != nil {
		return fmt.Errorf("add etcd member %s: %w", peerURL, Classify(err))
	}
	return nil
}

// SetPeerURLs says at which URLs a member is reached by the others.
func SetPeerURLs(ctx context.Context, cli *clientv3.Client, member uint64, urls []string) error {
	if _, err := cli.MemberUpdate(ctx, member, urls); err != nil {
		return fmt.Errorf("set peer URLs of etcd member %x: %w", member, Classify(err))
	}
	return nil
}

// Promote makes a learner a voter. A member that votes already is left as it
// is; one that has not caught up is Unavailable.
func Promote(ctx context.Context, cli *clientv3.Client, member uint64) error {
	_, err := cli.MemberPromote(ctx, member)
	switch {
	case err == nil || errors.Is(err, rpctypes.ErrMemberNotLearner):
		return nil
	case errors.Is(err, rpctypes.ErrMemberLearnerNotReady):
		return errs.New(errs.Unavailable, "promote etcd member %x: %w", member, err)
	}
	return fmt.Errorf("promote etcd member %x: %w", member, Classify(err))
}

// Remove takes a member out; one that is gone already is no error.
func Remove(ctx context.Context, cli *clientv3.Client, member uint64) error {
	_, err := cli.MemberRemove(ctx, member)
	if err == nil || errors.Is(err, rpctypes.ErrMemberNotFound) {
		return nil
	}
	return fmt.Errorf("remove etcd member %x: %w", member, Classify(err))
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
