package etcd

import (
	"context"
	"testing"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestSurviveRemoval: the panic of a removed member is an answer, another is none.
func TestSurviveRemoval(t *testing.T) {
	ask := func(with func()) error {
		_, err := surviveUnary(t.Context(), nil, nil, func(context.Context, any) (any, error) { with(); return nil, nil })
		return err
	}
	if err := ask(func() {}); err != nil {
		t.Errorf("an answer: %v", err)
	}
	if err := ask(func() { zap.NewNop().Panic(memberGone) }); status.Code(err) != codes.Unavailable {
		t.Errorf("a removed member: %v, want Unavailable", err)
	}
	defer func() {
		if p := recover(); p != "another" {
			t.Errorf("another panic was swallowed: %v", p)
		}
	}()
	ask(func() { panic("another") })
}
