package grpc

import (
	"context"
	"testing"

	"modeld/core/transport"
	"modeld/core/transport/transporttest"
)

var benchChunk = transport.StreamChunk{Text: " evening", Tokens: 1}

// plainChunk is a chunkBody that only encoding/json knows. The benchmarks below
// compare within one run: between runs the machine's load differs more.
type plainChunk chunkBody

func BenchmarkChunkEncode(b *testing.B) {
	var body chunkBody
	body.set(&benchChunk)
	plain := plainChunk(body)
	for _, c := range []struct {
		name string
		body any
	}{{"json", &plain}, {"own", &body}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				data, err := codec{}.Marshal(c.body)
				if err != nil {
					b.Fatal(err)
				}
				data.Free()
			}
		})
	}
}

func BenchmarkChunkDecode(b *testing.B) {
	var body chunkBody
	body.set(&benchChunk)
	data, err := codec{}.Marshal(&body)
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		body func() any
	}{
		{"json", func() any { return new(plainChunk) }},
		{"own", func() any { return new(chunkBody) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := (codec{}).Unmarshal(data, c.body()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkStream counts one chunk as one operation.
func BenchmarkStream(b *testing.B) {
	for _, nw := range networks {
		b.Run(nw.name, func(b *testing.B) {
			svc := &endless{}
			c := serve(b, nw, svc, testOwner, ServerOptions{Valid: func() error { return nil }}).client(b, testOwner)
			sess, err := c.OpenSession(b.Context(), transport.OpenSessionRequest{})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			b.ResetTimer()
			ch, err := sess.Decode(b.Context(), transport.DecodeConfig{MaxTokens: b.N})
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			for chunk := range ch {
				if chunk.Error != nil {
					b.Fatal(chunk.Error)
				}
				n++
			}
			if n != b.N {
				b.Fatalf("%d chunks, want %d", n, b.N)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "chunks/s")
		})
	}
}

func BenchmarkCall(b *testing.B) {
	for _, nw := range networks {
		b.Run(nw.name, func(b *testing.B) {
			c := serve(b, nw, transporttest.NewFullFake(nil), testOwner, ServerOptions{}).client(b, testOwner)
			for b.Loop() {
				if _, err := c.Status(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// endless is a service whose sessions stream MaxTokens chunks at once.
type endless struct{ transporttest.Fake }

type endlessSession struct{ transport.Session }

func (e *endless) OpenSession(ctx context.Context, req transport.OpenSessionRequest) (transport.Session, error) {
	sess, err := e.Fake.OpenSession(ctx, req)
	return &endlessSession{sess}, err
}

func (s *endlessSession) Decode(ctx context.Context, cfg transport.DecodeConfig) (<-chan transport.StreamChunk, error) {
	out := make(chan transport.StreamChunk, 64)
	go func() {
		defer close(out)
		for range cfg.MaxTokens {
			select {
			case out <- benchChunk:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}
