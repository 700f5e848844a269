package enginetest_test

import (
	"context"
	"strings"
	"testing"

	"modeld/core/engine"
	"modeld/core/engine/enginetest"
)

// TestFake checks the suite's own fake with the suite.
func TestFake(t *testing.T) {
	for name, caps := range map[string]engine.Caps{
		"every capability": {Truncate: true, Share: true, Save: true},
		"none":             {},
		"whole sharing":    {Share: true, Save: true},
	} {
		t.Run(name, func(t *testing.T) {
			enginetest.RunRunner(t, func(*testing.T) engine.Runner {
				// The suite itself tries what the contract forbids, and wants
				// an error.
				return enginetest.NewRunner(enginetest.Options{Caps: &caps, AddBOS: true, Misuse: func(string) {}})
			})
		})
	}
}

// TestMisuse checks that the fake notices wrong books.
func TestMisuse(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(*enginetest.Runner)
		want string
	}{
		"wrong position": {func(r *enginetest.Runner) { spans(r, engine.Span{Seq: 0, Pos: 1, Tokens: []engine.Token{1}}) }, "position 1"},
		"twice in a batch": {func(r *enginetest.Runner) {
			spans(r, engine.Span{Tokens: []engine.Token{1}}, engine.Span{Pos: 1, Tokens: []engine.Token{1}})
		}, "two spans"},
		"too large a batch": {func(r *enginetest.Runner) { spans(r, engine.Span{Tokens: make([]engine.Token, 9)}) }, "batch of 8"},
		"beyond the KV": {func(r *enginetest.Runner) {
			for seq := range 3 {
				spans(r, engine.Span{Seq: seq, Tokens: make([]engine.Token, 8)})
			}
		}, "KV of 20"},
		"share into a full one": {func(r *enginetest.Runner) {
			spans(r, engine.Span{Tokens: make([]engine.Token, 2)}, engine.Span{Seq: 1, Tokens: make([]engine.Token, 2)})
			_ = r.Share(1, 0, 1)
		}, "Share"},
		"truncate upwards": {func(r *enginetest.Runner) { _ = r.Truncate(0, 3) }, "Truncate"},
		"use after Close": {func(r *enginetest.Runner) {
			_ = r.Close()
			_ = r.Truncate(0, 0)
		}, "after Close"},
	} {
		t.Run(name, func(t *testing.T) {
			var said []string
			c.do(enginetest.NewRunner(enginetest.Options{
				NumCtx: 16, KVTokens: 20, MaxBatch: 8, Misuse: func(s string) { said = append(said, s) },
			}))
			if len(said) != 1 || !strings.Contains(said[0], c.want) {
				t.Errorf("the fake said %q, want one line about %q", said, c.want)
			}
		})
	}
}

func spans(r *enginetest.Runner, batch ...engine.Span) { _, _ = r.Forward(context.Background(), batch) }
