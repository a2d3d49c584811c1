package etcd

import (
	"context"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/pki"
)

// Health is how one member is.
type Health struct {
	Member  uint64
	Leader  uint64 // that it follows; 0: none
	Applied uint64 // index of what it has applied
	Learner bool
	Version string
}

// Probe asks single members how they are, over connections that it keeps: a
// handshake a question would be most of the work. Its methods may be called at
// once.
type Probe struct {
	id    *pki.Identity
	mu    sync.Mutex // protects conns
	conns map[string]*clientv3.Client
}

// NewProbe returns a probe without connections.
func NewProbe(id *pki.Identity) *Probe {
	return &Probe{id: id, conns: map[string]*clientv3.Client{}}
}

// Ask asks the member at one endpoint.
func (p *Probe) Ask(ctx context.Context, endpoint string) (Health, error) {
	cli, err := p.client(endpoint)
	if err != nil {
		return Health{}, err
	}
	st, err := pb.NewMaintenanceClient(cli.ActiveConnection()).Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return Health{}, fmt.Errorf("ask etcd member at %s: %w", endpoint, Classify(err))
	}
	return Health{Member: st.Header.MemberId, Leader: st.Leader, Applied: st.RaftAppliedIndex, Learner: st.IsLearner, Version: st.Version}, nil
}

func (p *Probe) client(endpoint string) (*clientv3.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.conns[endpoint]; c != nil {
		return c, nil
	}
	c, err := Dial(p.id, []string{endpoint})
	if err == nil {
		p.conns[endpoint] = c
	}
	return c, err
}

// All asks all members at once, each for at most limit. Those that do not answer
// are absent.
func (p *Probe) All(ctx context.Context, members []Member, limit time.Duration) map[uint64]Health {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var mu sync.Mutex // protects out
	out := map[uint64]Health{}
	var wg sync.WaitGroup
	keep := map[string]bool{}
	for _, m := range members {
		e := m.Endpoint()
		if e == "" {
			continue
		}
		keep[e] = true
		wg.Go(func() {
			h, err := p.Ask(ctx, e)
			if err != nil || h.Member != m.ID {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[m.ID] = h
		})
	}
	wg.Wait()
	p.drop(keep)
	return out
}

// drop closes connections to members that are no more.
func (p *Probe) drop(keep map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for e, c := range p.conns {
		if !keep[e] {
			c.Close()
			delete(p.conns, e)
		}
	}
}

// Close ends all connections.
func (p *Probe) Close() { p.drop(nil) }
