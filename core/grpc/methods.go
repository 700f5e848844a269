package grpc

import (
	"context"
	"fmt"
	"runtime/debug"

	"google.golang.org/grpc"
)

// serviceDesc is the method table.
var serviceDesc = grpc.ServiceDesc{
	ServiceName: serviceName,
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{
		unfenced("Health", (*Server).health),
		unary("Status", (*Server).status),
		unary("LoadModel", (*Server).loadModel),
		unary("UnloadModel", (*Server).unloadModel),
		unary("OpenSession", (*Server).openSession),
		unary("Describe", (*Server).describe),
		unary("Embed", (*Server).embed),
		unary("EnsurePrefix", (*Server).ensurePrefix),
		unary("PrefillSuffix", (*Server).prefillSuffix),
		unary("ExplainContext", (*Server).explainContext),
		unary("Snapshot", (*Server).snapshot),
		unary("Restore", (*Server).restore),
		unary("CloseSession", (*Server).closeSessionCall),
		unary("ListModels", (*Server).listModels),
		unary("RemoveModel", (*Server).removeModel),
		unary("DiskStats", (*Server).diskStats),
	},
	Streams: []grpc.StreamDesc{
		{StreamName: "Decode", ServerStreams: true, Handler: streamed("Decode", (*Server).decode)},
		{StreamName: "PushModel", ClientStreams: true, Handler: streamed("PushModel", (*Server).pushModel)},
	},
}

// unfenced describes a method that anybody may call at any time.
func unfenced[Req, Reply any](name string, method func(*Server, context.Context, *Req) (*Reply, error)) grpc.MethodDesc {
	return describe(name, func(*Server, context.Context) error { return nil }, method)
}

// unary describes a method behind the fence. The ownership check stands before
// it and before its reply; its context ends with the server's life.
func unary[Req, Reply any](name string, method func(*Server, context.Context, *Req) (*Reply, error)) grpc.MethodDesc {
	return describe(name, (*Server).accept, func(s *Server, ctx context.Context, req *Req) (*Reply, error) {
		ctx, release := join(ctx, s.life)
		defer release()
		reply, err := method(s, ctx, req)
		if err != nil {
			return nil, because(s.life, err) //nolint:contextcheck // it is asked, not used
		}
		if err := s.check(); err != nil {
			return nil, err
		}
		return reply, nil
	})
}

// describe makes a method's table entry. What accept refuses isn't even decoded.
func describe[Req, Reply any](name string, accept func(*Server, context.Context) error,
	method func(*Server, context.Context, *Req) (*Reply, error),
) grpc.MethodDesc {
	info := grpc.UnaryServerInfo{FullMethod: "/" + serviceName + "/" + name}
	handler := func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		s := srv.(*Server)
		if err := accept(s, ctx); err != nil {
			return nil, toStatus(err)
		}
		req := new(Req)
		if err := decode(req); err != nil {
			return nil, err // gRPC has told the client already
		}
		call := func(ctx context.Context, req any) (any, error) {
			var reply *Reply
			err := s.guard(name, func() (err error) {
				reply, err = method(s, ctx, req.(*Req))
				return err
			})
			if err != nil {
				return nil, toStatus(err)
			}
			return reply, nil
		}
		if intercept == nil {
			return call(ctx, req)
		}
		info := info
		info.Server = srv
		return intercept(ctx, req, &info, call)
	}
	return grpc.MethodDesc{MethodName: name, Handler: handler}
}

// streamed makes a stream's handler of a method behind the fence.
func streamed(name string, method func(*Server, grpc.ServerStream) error) grpc.StreamHandler {
	return func(srv any, stream grpc.ServerStream) error {
		s := srv.(*Server)
		return toStatus(s.guard(name, func() error {
			if err := s.accept(stream.Context()); err != nil {
				return err
			}
			return method(s, stream)
		}))
	}
}

// guard turns a panic of the service into an error: a bug in a backend must not
// end the process that others use.
func (s *Server) guard(method string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("a call panicked", "method", method, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = fmt.Errorf("%s panicked: %v", method, p)
		}
	}()
	return f()
}
