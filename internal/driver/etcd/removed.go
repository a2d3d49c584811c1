package etcd

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// memberGone is what etcd panics with when a member that has just been removed is
// asked whether it is a learner, as each request for its status does. It stops by
// itself a moment later; until then such a request must not end the daemon.
const memberGone = "failed to find local ID in cluster members"

// survive turns that panic into an error; any other goes on.
func survive(err *error) {
	switch p := recover(); {
	case p == nil:
	case p == memberGone:
		*err = status.Error(codes.Unavailable, "this etcd member was removed")
	default:
		panic(p)
	}
}

// surviveRemoval are the server options that put survive around each request; grpc
// runs these interceptors before etcd's own, which ask the same.
func surviveRemoval() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.UnaryInterceptor(surviveUnary),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
			defer survive(&err)
			return handle(srv, ss)
		}),
	}
}

func surviveUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	defer survive(&err)
	return handle(ctx, req)
}
