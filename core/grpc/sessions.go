package grpc

import (
	"cmp"
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc/stats"

	"modeld/core/transport"
)

// conn is one connection. Its fields are guarded by the server's mutex.
type conn struct {
	reserved int
	sessions map[*session]struct{}
	gone     bool
}

type connKey struct{}

// connOf returns a call's connection, nil where the server is no stats handler.
func connOf(ctx context.Context) *conn {
	c, _ := ctx.Value(connKey{}).(*conn)
	return c
}

// TagConn implements stats.Handler.
func (s *Server) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return context.WithValue(ctx, connKey{}, &conn{sessions: make(map[*session]struct{})})
}

// HandleConn implements stats.Handler: sessions die with their connection.
func (s *Server) HandleConn(ctx context.Context, st stats.ConnStats) {
	if _, ended := st.(*stats.ConnEnd); !ended {
		return
	}
	c := connOf(ctx)
	if c == nil {
		return
	}
	s.mu.Lock()
	c.gone = true
	orphans := s.takeLocked(c.sessions)
	s.mu.Unlock()
	if len(orphans) > 0 {
		s.log.Info("a connection ended with open sessions", "sessions", len(orphans))
		s.closeAll(orphans, fmt.Errorf("%w: its connection has ended", transport.ErrSessionClosed))
	}
}

// TagRPC implements stats.Handler.
func (s *Server) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements stats.Handler.
func (s *Server) HandleRPC(context.Context, stats.RPCStats) {}

// session is an open session and the call that has it, if any.
type session struct {
	transport.Session
	handle string
	openID string // "" where the client gave none
	conn   *conn
	life   context.Context
	end    context.CancelCauseFunc

	mu      sync.Mutex
	running *operation
}

// operation is a call's use of a session. Its context ends with the call, with
// the session and with stop.
type operation struct {
	sess *session
	ctx  context.Context //nolint:containedctx // it lives as long as the call
	stop func()
	done chan struct{}
}

// begin takes the session for one call, which must end it. A call that overlaps
// another gets ErrModelBusy, unless the other is on its way out: then it waits.
func (s *session) begin(ctx context.Context) (*operation, error) {
	for {
		s.mu.Lock()
		if err := over(s.life); err != nil { //nolint:contextcheck // it is asked, not used
			s.mu.Unlock()
			return nil, err
		}
		running := s.running
		if running == nil {
			break
		}
		s.mu.Unlock()
		if running.ctx.Err() == nil {
			return nil, fmt.Errorf("%w: session %s is in another call", transport.ErrModelBusy, s.handle)
		}
		select {
		case <-running.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer s.mu.Unlock()
	op := &operation{sess: s, done: make(chan struct{})}
	op.ctx, op.stop = join(ctx, s.life)
	s.running = op
	return op, nil
}

// end gives the session back.
func (op *operation) end() {
	op.stop()
	op.sess.mu.Lock()
	op.sess.running = nil
	op.sess.mu.Unlock()
	close(op.done)
}

// open opens a session for a call, within the limits.
func (s *Server) open(ctx context.Context, req transport.OpenSessionRequest, openID string) (*session, error) {
	c := connOf(ctx)
	if err := s.reserve(c); err != nil {
		return nil, err
	}
	var added *session
	defer func() {
		if added == nil { // also where the service panics
			s.unreserve(c)
		}
	}()
	sess, err := s.svc.OpenSession(ctx, req)
	if err != nil {
		return nil, err
	}
	if added, err = s.add(ctx, c, sess, openID); err != nil {
		_ = sess.Close() // nobody has learnt of it
		return nil, err
	}
	return added, nil
}

func (s *Server) reserve(c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reserved >= s.opts.MaxSessions {
		return fmt.Errorf("%w: %d sessions are open, which is the limit; close some", transport.ErrModelBusy, s.reserved)
	}
	if c != nil && c.reserved >= s.opts.MaxSessionsPerConn {
		return fmt.Errorf("%w: %d sessions are open on this connection, which is the limit; close some", transport.ErrModelBusy, c.reserved)
	}
	s.reserved++
	if c != nil {
		c.reserved++
	}
	return nil
}

func (s *Server) unreserve(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unreserveLocked(c)
}

func (s *Server) unreserveLocked(c *conn) {
	s.reserved--
	if c != nil {
		c.reserved--
	}
}

// add makes a session known, unless the call that opened it is over.
func (s *Server) add(ctx context.Context, c *conn, opened transport.Session, openID string) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := cmp.Or(over(s.life), over(ctx)); err != nil { //nolint:contextcheck // they are asked, not used
		return nil, err
	}
	if c != nil && c.gone {
		return nil, context.Canceled
	}
	s.seq++
	sess := &session{Session: opened, handle: makeHandle(s.instanceID, opened, s.seq), openID: openID, conn: c}
	sess.life, sess.end = context.WithCancelCause(context.Background())
	s.sessions[sess.handle] = sess
	if c != nil {
		c.sessions[sess] = struct{}{}
	}
	return sess, nil
}

// find returns the session with a handle. One of another connection is as
// unknown as one that never was.
func (s *Server) find(ctx context.Context, handle string) (*session, error) {
	s.mu.Lock()
	sess, ok := s.sessions[handle]
	s.mu.Unlock()
	if !ok || sess.conn != connOf(ctx) {
		return nil, unknownHandle(s.instanceID, handle)
	}
	return sess, nil
}

// findOpened returns the session that was opened with openID.
func (s *Server) findOpened(ctx context.Context, openID string) (*session, error) {
	c := connOf(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c != nil {
		for sess := range c.sessions {
			if sess.openID == openID {
				return sess, nil
			}
		}
	}
	return nil, fmt.Errorf("%w: no session was opened as %q", transport.ErrSessionClosed, clip(openID))
}

// takeLocked removes sessions, which only the caller has from then on.
func (s *Server) takeLocked(some map[*session]struct{}) []*session {
	taken := make([]*session, 0, len(some))
	for sess := range some {
		if s.removeLocked(sess) {
			taken = append(taken, sess)
		}
	}
	return taken
}

func (s *Server) removeLocked(sess *session) bool {
	if s.sessions[sess.handle] != sess {
		return false
	}
	delete(s.sessions, sess.handle)
	if sess.conn != nil {
		delete(sess.conn.sessions, sess)
	}
	s.unreserveLocked(sess.conn)
	return true
}

// closeSession closes one session, if nobody else does.
func (s *Server) closeSession(sess *session) error {
	s.mu.Lock()
	mine := s.removeLocked(sess)
	s.mu.Unlock()
	if !mine {
		return nil
	}
	sess.end(transport.ErrSessionClosed)
	return sess.Close()
}

// endSessions closes every session; what runs in them ends with cause.
func (s *Server) endSessions(cause error) {
	s.mu.Lock()
	taken := make([]*session, 0, len(s.sessions))
	for _, sess := range s.sessions {
		if s.removeLocked(sess) {
			taken = append(taken, sess)
		}
	}
	s.mu.Unlock()
	s.closeAll(taken, cause)
}

// closeAll closes sessions that were taken, beside the caller.
func (s *Server) closeAll(taken []*session, cause error) {
	if len(taken) == 0 {
		return
	}
	for _, sess := range taken {
		sess.end(cause)
	}
	s.beside(func() {
		for _, sess := range taken {
			if err := s.guard("Close", sess.Close); err != nil {
				s.log.Warn("a session did not close", "session", sess.handle, "err", err)
			}
		}
	})
}
