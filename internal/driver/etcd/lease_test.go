package etcd

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

// ended reports whether the channel is closed within the limit.
func ended(ch <-chan struct{}, limit time.Duration) bool {
	select {
	case <-ch:
		return true
	case <-time.After(limit):
		return false
	}
}

func keep(t *testing.T, ttl time.Duration, renew func(context.Context) error) <-chan struct{} {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	done := make(chan struct{})
	go func() {
		defer close(done)
		keepLease(ctx, ttl, renew)
	}()
	return done
}

// TestLeaseBesideASlowMember: of two members one never answers; what is asked of
// the other in its place keeps the lease.
func TestLeaseBesideASlowMember(t *testing.T) {
	var asked, renewed atomic.Int32
	enough := make(chan struct{})
	done := keep(t, time.Minute/15, func(ctx context.Context) error {
		if asked.Add(1)%2 == 1 {
			<-ctx.Done()
			return ctx.Err()
		}
		if renewed.Add(1) == 4 {
			close(enough)
		}
		return nil
	})
	if !ended(enough, 30*time.Second) {
		t.Fatalf("%d renewals in half a minute", renewed.Load())
	}
	if ended(done, 0) {
		t.Error("the lease was given up")
	}
}

func TestLeaseIsLost(t *testing.T) {
	for _, c := range []struct {
		says  string
		ttl   time.Duration
		renew func(context.Context) error
	}{
		{"by an answer", time.Second, func(context.Context) error { return errLeaseGone }},
		{"nobody answers", time.Second, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
		{"everybody fails", time.Second, func(context.Context) error { return errors.New("no leader") }},
	} {
		if !ended(keep(t, c.ttl, c.renew), 30*time.Second) {
			t.Errorf("%s: it is kept still", c.says)
		}
	}
}

// TestLeaseCountsFromTheRenewal: a renewal without an answer proves nothing after
// a TTL, although one succeeded before.
func TestLeaseCountsFromTheRenewal(t *testing.T) {
	const ttl = 2 * time.Second
	began := time.Now()
	var first atomic.Bool
	if !ended(keep(t, ttl, func(ctx context.Context) error {
		if first.CompareAndSwap(false, true) {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}), 30*time.Second) {
		t.Fatal("it is kept still")
	}
	if took := time.Since(began); took < ttl {
		t.Errorf("given up after %s, before its %s were over", took, ttl)
	}
}
