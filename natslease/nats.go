package natslease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// natsStore is a slot's key in a JetStream key-value bucket.
type natsStore struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	bucket   string
	key      string
	replicas int
	setup    time.Duration // bounds the setting up of a watch
}

var _ store = (*natsStore)(nil)

func newNATSStore(nc *nats.Conn, bucket, slot string, replicas int, setup time.Duration) (*natsStore, error) {
	if nc == nil {
		return nil, errors.New("natslease: no NATS connection")
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("natslease: JetStream: %w", err)
	}
	return &natsStore{nc: nc, js: js, bucket: bucket, key: key(slot), replicas: replicas, setup: setup}, nil
}

func (s *natsStore) stream() string  { return "KV_" + s.bucket }
func (s *natsStore) subject() string { return "$KV." + s.bucket + "." + s.key }

// Error codes of the JetStream API. Sentinels of the client don't cover them
// all, and one code matches several sentinels.
const (
	codeMessageNotFound   = 10037
	codeStreamNotFound    = 10059
	codeStreamMismatch    = 10060
	codeWrongLastSequence = 10071
	codeWrongLastConstant = 10164 // the same from replicated streams
)

func (s *natsStore) write(ctx context.Context, data []byte, rev uint64) (uint64, error) {
	ack, err := s.js.PublishMsg(ctx, &nats.Msg{Subject: s.subject(), Data: data},
		jetstream.WithExpectStream(s.stream()),
		jetstream.WithExpectLastSequencePerSubject(rev),
		jetstream.WithRetryAttempts(0)) // the protocol decides about retries
	if err == nil {
		return ack.Sequence, nil
	}
	if errors.Is(err, jetstream.ErrNoStreamResponse) {
		// Nobody listens: JetStream starts or elects, or the bucket is gone.
		if _, err := s.js.Stream(ctx, s.stream()); errors.Is(s.classify(err), ErrBucketGone) {
			return 0, s.classify(err)
		}
		return 0, fmt.Errorf("%w: %w", errNotApplied, err)
	}
	return 0, s.classify(err)
}

// classify says what an error of the client or the server means here.
func (s *natsStore) classify(err error) error {
	if err == nil {
		return nil
	}
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		switch api.ErrorCode {
		case codeWrongLastSequence, codeWrongLastConstant:
			return fmt.Errorf("%w: %w", errConflict, err)
		case codeStreamNotFound:
			return fmt.Errorf("%w: %s: %w", ErrBucketGone, s.bucket, err)
		case codeStreamMismatch:
			return fmt.Errorf("%w: %s: another stream has its subjects: %w", ErrBucketConfig, s.bucket, err)
		}
		if api.Code >= 400 && api.Code < 500 {
			return fmt.Errorf("%w: %w", errNotApplied, err) // refused
		}
		return fmt.Errorf("%w: %w", errUnknown, err)
	}
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrBucketNotFound):
		return fmt.Errorf("%w: %s: %w", ErrBucketGone, s.bucket, err)
	case errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrConnectionClosed),
		errors.Is(err, nats.ErrConnectionDraining), errors.Is(err, nats.ErrNoResponders),
		errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%w: %w", errNotApplied, err)
	}
	if denied := s.denied(); denied != nil {
		return denied
	}
	return fmt.Errorf("%w: %w", errUnknown, err)
}

// denied returns an ErrDenied if the server's last complaint was about one of
// our subjects. It never answers a forbidden publish: the request times out,
// and the complaint is found on the connection only.
func (s *natsStore) denied() error {
	last := s.nc.LastError()
	if !errors.Is(last, nats.ErrPermissionViolation) {
		return nil
	}
	text := last.Error()
	if strings.Contains(text, s.subject()) || strings.Contains(text, s.stream()) || strings.Contains(text, "_INBOX.") {
		return fmt.Errorf("%w: %w: let this user publish to %s and $JS.API.STREAM.*.%s, and use a key-value watch",
			ErrDenied, last, s.subject(), s.stream())
	}
	return nil
}

// read asks the stream's leader: a get by the key-value API may be answered
// by a replica that is behind.
func (s *natsStore) read(ctx context.Context) (snapshot, error) {
	stream, err := s.js.Stream(ctx, s.stream())
	if err != nil {
		return snapshot{}, s.classify(err)
	}
	info := stream.CachedInfo()
	if err := checkBucket(info.Config); err != nil {
		return snapshot{}, fmt.Errorf("%w: %s: %w", ErrBucketConfig, s.bucket, err)
	}
	req, err := json.Marshal(map[string]string{"last_by_subj": s.subject()})
	if err != nil {
		return snapshot{}, err
	}
	reply, err := s.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+s.stream(), req)
	if err != nil {
		return snapshot{}, s.classify(err)
	}
	snap, err := parseMsgGet(reply.Data)
	if err != nil {
		return snapshot{}, s.classify(err)
	}
	snap.created = info.Created
	snap.untouched = snap.kind == absent && info.State.LastSeq == 0
	return snap, nil
}

// checkBucket refuses a bucket that may forget a record by itself.
func checkBucket(c jetstream.StreamConfig) error {
	switch {
	case c.MaxAge != 0:
		return fmt.Errorf("it has a TTL of %s, which would delete the record of a live owner: remove the TTL", c.MaxAge)
	case c.Discard != jetstream.DiscardNew:
		return errors.New("it discards old records when it is full: it must discard new ones")
	case c.Mirror != nil || len(c.Sources) > 0:
		return errors.New("it is a mirror or has sources: use the original bucket")
	}
	return nil
}

// parseMsgGet reads the answer to a STREAM.MSG.GET request.
func parseMsgGet(data []byte) (snapshot, error) {
	var resp struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Seq  uint64 `json:"seq"`
			Hdrs []byte `json:"hdrs"`
			Data []byte `json:"data"`
		} `json:"message"`
	}
	if err := json.Unmarshal(data, &resp); err != nil {
		return snapshot{}, fmt.Errorf("natslease: answer to STREAM.MSG.GET: %w", err)
	}
	switch {
	case resp.Error != nil && resp.Error.ErrorCode == codeMessageNotFound:
		return snapshot{kind: absent}, nil
	case resp.Error != nil:
		return snapshot{}, resp.Error
	case resp.Message == nil || resp.Message.Seq == 0:
		return snapshot{}, errors.New("natslease: answer to STREAM.MSG.GET holds no message")
	}
	marker := false
	if len(resp.Message.Hdrs) > 0 {
		hdr, err := nats.DecodeHeadersMsg(resp.Message.Hdrs)
		if err != nil {
			return snapshot{}, fmt.Errorf("natslease: headers in the answer to STREAM.MSG.GET: %w", err)
		}
		marker = hdr.Get("KV-Operation") != "" || hdr.Get(jetstream.MarkerReasonHeader) != ""
	}
	return fromValue(resp.Message.Seq, resp.Message.Data, marker), nil
}

// errReconnected ends a watch: after a reconnect a consumer may stay silent
// for some 20 s before the client notices that the server forgot it.
var errReconnected = errors.New("the connection was lost and found")

func (s *natsStore) watch(ctx context.Context, put func(snapshot)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	status := s.nc.StatusChanged(nats.CONNECTED)
	defer s.nc.RemoveStatusListener(status)

	// The watch lives as long as the context that it is made with, so only
	// the making is timed.
	tooLong := time.AfterFunc(s.setup, cancel)
	kv, err := s.js.KeyValue(ctx, s.bucket)
	if err != nil {
		return s.classify(err)
	}
	w, err := kv.Watch(ctx, s.key)
	if err != nil {
		return s.classify(err)
	}
	defer stopWatch(w)
	if !tooLong.Stop() {
		return context.DeadlineExceeded
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-status:
			return errReconnected
		case e, ok := <-w.Updates():
			if !ok {
				return errors.New("natslease: the watch ended")
			}
			if e != nil { // nil: the initial value has been delivered
				put(fromValue(e.Revision(), e.Value(), e.Operation() != jetstream.KeyValuePut))
			}
		}
	}
}

// stopWatch stops w and takes what it still wants to deliver: until then its
// delivery may be blocked.
func stopWatch(w jetstream.KeyWatcher) {
	_ = w.Stop()
	timeout := time.NewTimer(time.Second)
	defer timeout.Stop()
	for {
		select {
		case _, ok := <-w.Updates():
			if !ok {
				return
			}
		case <-timeout.C:
			return
		}
	}
}

func (s *natsStore) create(ctx context.Context) error {
	_, err := s.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket:       s.bucket,
		Description:  "who owns which slot; records are never deleted",
		History:      1,
		Storage:      jetstream.FileStorage,
		Replicas:     s.replicas,
		MaxValueSize: MaxRecordBytes,
	})
	if errors.Is(err, jetstream.ErrBucketExists) {
		return nil
	}
	return s.classify(err)
}
