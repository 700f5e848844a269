package engine_test

import (
	"context"
	"fmt"
	"testing"

	"modeld/core/engine"
	"modeld/core/engine/enginetest"
	"modeld/core/transport"
)

// BenchmarkDecode is the engine's own time a token, with the fake's (which the
// bare loop shows) in it.
func BenchmarkDecode(b *testing.B) {
	const tokens = 1000
	opts := enginetest.Options{NumCtx: 2 * tokens, KVTokens: 40 * tokens, MaxSeqs: 16, NoEnd: true}
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			enginetest.Greedy(b, enginetest.NewRunner(opts), 0, []engine.Token{'a'}, tokens)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*tokens), "ns/token")
	})
	for _, sessions := range []int{1, 8} {
		b.Run(fmt.Sprintf("%d sessions", sessions), func(b *testing.B) {
			svc := engine.New(enginetest.NewBackend(opts), engine.Options{})
			defer svc.Close()
			for b.Loop() {
				var streams []<-chan transport.StreamChunk
				for i := range sessions {
					sess, err := svc.OpenSession(context.Background(), request)
					if err != nil {
						b.Fatal(err)
					}
					defer sess.Close()
					if _, err := sess.EnsurePrefix(context.Background(), transport.PrefixInput{Text: fmt.Sprint(b.N, i)}); err != nil {
						b.Fatal(err)
					}
					ch, err := sess.Decode(context.Background(), greedy(tokens))
					if err != nil {
						b.Fatal(err)
					}
					streams = append(streams, ch)
				}
				for _, ch := range streams {
					if _, _, _, err := collect(ch); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*tokens*sessions), "ns/token")
		})
	}
}
