package grpc

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"modeld/core/transport"
)

// HealthStatus is what a server says of itself. Ready means that it owns the
// slot and can take work.
type HealthStatus struct {
	InstanceID string
	Ready      bool
	Backend    string
}

// ClientOptions are a client's limits; zero values are the defaults.
type ClientOptions struct {
	// ExplainTimeout bounds ExplainContext, which has no context: 5 seconds.
	ExplainTimeout time.Duration
	// CloseTimeout bounds a session's Close: 10 seconds.
	CloseTimeout time.Duration
}

// Client calls a server. It is a transport.Service, ModelController and
// NodeAdmin, and safe for concurrent use. The errors of its calls are those of
// the service on the other side; on top of them status.Code tells how a call
// failed on its way, codes.Unavailable for example.
type Client struct {
	cc    grpc.ClientConnInterface
	owner string
	opts  ClientOptions
	close func() error

	life context.Context // ends with Close
	end  context.CancelFunc

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup // streams
}

var (
	_ transport.Service         = (*Client)(nil)
	_ transport.ModelController = (*Client)(nil)
	_ transport.NodeAdmin       = (*Client)(nil)
)

// DialLeader returns a client of the server at endpoint ("HOST:PORT",
// "unix:PATH" or a gRPC target with "://"), which must be expectedOwner; ""
// means that the server checks no fence. It connects with the first call. The
// connection is in the clear unless opts say otherwise.
func DialLeader(endpoint, expectedOwner string, opts ...grpc.DialOption) (*Client, error) {
	return DialWithOptions(endpoint, expectedOwner, ClientOptions{}, opts...)
}

// DialWithOptions is DialLeader with options.
func DialWithOptions(endpoint, expectedOwner string, o ClientOptions, opts ...grpc.DialOption) (*Client, error) {
	if endpoint == "" {
		return nil, errors.New("dial: the endpoint is empty; give HOST:PORT or unix:PATH")
	}
	target := endpoint
	if !strings.HasPrefix(endpoint, "unix:") && !strings.Contains(endpoint, "://") {
		target = "passthrough:///" + endpoint
	}
	cc, err := grpc.NewClient(target, slices.Concat(DialOptions(), []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		// Sessions die with their connection, so an idle one must stay.
		grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
	}, opts)...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", endpoint, err)
	}
	c := newClient(cc, expectedOwner, o)
	c.close = cc.Close
	return c, nil
}

// NewClientConn returns a client over a connection that stays the caller's:
// Close ends the client's streams and leaves it open.
func NewClientConn(cc grpc.ClientConnInterface, expectedOwner string) *Client {
	return newClient(cc, expectedOwner, ClientOptions{})
}

func newClient(cc grpc.ClientConnInterface, owner string, o ClientOptions) *Client {
	if o.ExplainTimeout <= 0 {
		o.ExplainTimeout = 5 * time.Second
	}
	if o.CloseTimeout <= 0 {
		o.CloseTimeout = 10 * time.Second
	}
	c := &Client{cc: cc, owner: owner, opts: o, close: func() error { return nil }}
	c.life, c.end = context.WithCancel(context.Background())
	return c
}

// Close ends every stream and closes the connection, if it is the client's own.
func (c *Client) Close() error {
	c.mu.Lock()
	first := !c.closed
	c.closed = true
	c.mu.Unlock()
	c.end()
	c.wg.Wait()
	if !first {
		return nil
	}
	return c.close()
}

var errClientClosed = errors.New("the client is closed")

// start runs f beside the caller; Close waits for it.
func (c *Client) start(f func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errClientClosed
	}
	c.wg.Go(f)
	return nil
}

// callOptions go with every call: the codec is never the connection's default,
// since others may share the connection.
var callOptions = []grpc.CallOption{
	grpc.CallContentSubtype(CodecName),
	grpc.MaxCallRecvMsgSize(maxMessageBytes),
	grpc.MaxCallSendMsgSize(maxMessageBytes),
	grpc.StaticMethod(),
}

// fenced puts the owner into the metadata of a call.
func (c *Client) fenced(ctx context.Context) context.Context {
	if c.owner == "" {
		return ctx
	}
	md, _ := metadata.FromOutgoingContext(ctx) // a copy
	if md == nil {
		md = make(metadata.MD, 1)
	}
	md.Set(ownerKey, c.owner)
	return metadata.NewOutgoingContext(ctx, md)
}

func (c *Client) call(ctx context.Context, method string, req, reply any) error {
	return fromStatus(c.cc.Invoke(c.fenced(ctx), "/"+serviceName+"/"+method, req, reply, callOptions...))
}

// ownerOf is the owner that a request's body repeats.
func (c *Client) ownerOf(f transport.Fence) string {
	if f.OwnerInstanceID != "" {
		return f.OwnerInstanceID
	}
	return c.owner
}

// Health asks the server who and how it is. It is not fenced.
func (c *Client) Health(ctx context.Context) (HealthStatus, error) {
	var b healthBody
	err := c.cc.Invoke(ctx, "/"+serviceName+"/Health", &empty{}, &b, callOptions...)
	return HealthStatus(b), fromStatus(err)
}

// OpenSession opens a session. It is lost when the connection is.
func (c *Client) OpenSession(ctx context.Context, req transport.OpenSessionRequest) (transport.Session, error) {
	body := newModelBody(c.ownerOf(req.Fence), req)
	body.OpenID = rand.Text()
	var b handleBody
	if err := c.call(ctx, "OpenSession", body, &b); err != nil {
		if ctx.Err() != nil {
			c.closeUnseen(body.OpenID) //nolint:contextcheck // ctx has ended
		}
		return nil, err
	}
	return c.newSession(b.Handle), nil
}

// closeUnseen closes a session that may have been opened just when its caller
// gave up: its handle is lost. It comes after the cancellation on the same
// connection, so that either the server has a session to close or never will.
func (c *Client) closeUnseen(openID string) {
	_ = c.start(func() { // a client that is closed has closed its sessions
		ctx, cancel := context.WithTimeout(c.life, c.opts.CloseTimeout)
		defer cancel()
		_ = c.call(ctx, "CloseSession", &closeBody{OpenID: openID}, &empty{})
	})
}

// Describe returns facts about a model.
func (c *Client) Describe(ctx context.Context, req transport.OpenSessionRequest) (transport.ModelInfo, error) {
	var info transport.ModelInfo
	err := c.call(ctx, "Describe", newModelBody(c.ownerOf(req.Fence), req), &info)
	return info, err
}

// Embed returns a text's embedding.
func (c *Client) Embed(ctx context.Context, req transport.EmbedRequest) (transport.EmbedResult, error) {
	if err := checkText("text", req.Text); err != nil {
		return transport.EmbedResult{}, err
	}
	var res transport.EmbedResult
	err := c.call(ctx, "Embed", &embedBody{
		OwnerInstanceID: c.ownerOf(req.Fence),
		ModelName:       req.ModelName, Type: req.Type, Digest: req.Digest, Path: req.Path,
		Config: req.Config, Text: req.Text,
	}, &res)
	return res, err
}

// Status reports the server's slot.
func (c *Client) Status(ctx context.Context) (transport.DaemonStatus, error) {
	var st transport.DaemonStatus
	err := c.call(ctx, "Status", &ownerBody{OwnerInstanceID: c.owner}, &st)
	return st, err
}

// LoadModel makes a model the active one.
func (c *Client) LoadModel(ctx context.Context, req transport.LoadModelRequest) (transport.ActiveModel, error) {
	var active transport.ActiveModel
	err := c.call(ctx, "LoadModel", &loadBody{
		OwnerInstanceID: c.ownerOf(req.Fence),
		ModelName:       req.ModelName, Type: req.Type, Digest: req.Digest, Path: req.Path,
		Config: req.Config, Adapters: req.Adapters, ExpectedGeneration: req.ExpectedGeneration,
	}, &active)
	return active, err
}

// UnloadModel empties the slot.
func (c *Client) UnloadModel(ctx context.Context, req transport.UnloadModelRequest) error {
	return c.call(ctx, "UnloadModel", &unloadBody{
		OwnerInstanceID:    c.ownerOf(req.Fence),
		ExpectedGeneration: req.ExpectedGeneration,
	}, &empty{})
}

// ListModels lists the models in the server's store.
func (c *Client) ListModels(ctx context.Context) ([]transport.NodeModel, error) {
	var b modelsBody
	err := c.call(ctx, "ListModels", &ownerBody{OwnerInstanceID: c.owner}, &b)
	return b.Models, err
}

// RemoveModel removes a model from the server's store.
func (c *Client) RemoveModel(ctx context.Context, name string) error {
	return c.call(ctx, "RemoveModel", &removeBody{OwnerInstanceID: c.owner, Name: name}, &empty{})
}

// DiskStats reports the space of the server's store.
func (c *Client) DiskStats(ctx context.Context) (transport.NodeDiskStats, error) {
	var st transport.NodeDiskStats
	err := c.call(ctx, "DiskStats", &ownerBody{OwnerInstanceID: c.owner}, &st)
	return st, err
}

// unavailable reports whether a call failed because the connection did.
func unavailable(err error) bool { return status.Code(err) == codes.Unavailable }
