package llamarunner_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"modeld/bench/barellama"
	"modeld/core/engine"
	"modeld/core/transport"
	"modeld/internal/testparts"
	"modeld/plugins/llama/llamarunner"
)

const (
	chatPrompt = "<|im_start|>user\nName three rivers of Europe.<|im_end|>\n<|im_start|>assistant\n"
	codePrompt = "func fibonacci(n int) int {\n\tif n < 2 {\n"
	longPrompt = "The library opens at nine. "
	genTokens  = 12
)

func TestGreedyEqualsTheBareLoop(t *testing.T) {
	r := open(t, settings(t), transport.Config{NumBatch: 128})
	bare, err := barellama.Open(testparts.LlamaLib(t), testparts.Model(t), barellama.Options{Threads: 1, Batch: 128})
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	for name, prompt := range map[string]string{
		"chat":  chatPrompt,
		"code":  codePrompt,
		"greek": "Η πρωτεύουσα της Ελλάδας είναι",
		"emoji": "🌍🚀 means",
		"word":  "Once",
		"long":  strings.Repeat(longPrompt, 40), // more than one batch
	} {
		t.Run(name, func(t *testing.T) {
			want, err := bare.Generate(prompt, genTokens)
			if err != nil {
				t.Fatal(err)
			}
			got := fresh(t, r, 0, tokenize(t, r, prompt), len(want.Tokens))
			if !slices.Equal(got, want.Tokens) {
				t.Errorf("tokens differ:\n got %v\nwant %v", got, want.Tokens)
			}
			if text, err := r.Detokenize(got); err != nil || text != want.Text {
				t.Errorf("text %q, %v; want %q", text, err, want.Text)
			}
		})
	}
}

func TestBatchEqualsAlone(t *testing.T) {
	for _, split := range []bool{false, true} {
		s := settings(t)
		s.KVSplit, s.KVCells = split, 8*1024
		r := open(t, s, transport.Config{NumCtx: 1024})
		prompts := []string{chatPrompt, codePrompt, longPrompt}
		var want [][]engine.Token
		for _, p := range prompts {
			want = append(want, fresh(t, r, 7, tokenize(t, r, p), genTokens))
		}
		if err := r.Truncate(7, 0); err != nil {
			t.Fatal(err)
		}
		got, pos := make([][]engine.Token, len(prompts)), make([]int, len(prompts))
		for i, p := range prompts {
			tokens := tokenize(t, r, p)
			got[i], pos[i] = []engine.Token{prefill(t, r, i, 0, tokens)}, len(tokens)
		}
		for range genTokens - 1 {
			var spans []engine.Span
			for i := range prompts {
				spans = append(spans, engine.Span{Seq: i, Pos: pos[i], Tokens: got[i][len(got[i])-1:], Logits: 1})
				pos[i]++
			}
			rows, err := r.Forward(context.Background(), spans)
			if err != nil {
				t.Fatal(err)
			}
			for i := range rows {
				got[i] = append(got[i], engine.Token(barellama.Argmax(rows[i])))
			}
		}
		for i := range prompts {
			if !slices.Equal(got[i], want[i]) {
				t.Errorf("split %v, %q:\n in batch %v\n    alone %v", split, prompts[i], got[i], want[i])
			}
		}
	}
}

func TestTruncateThenDecodeEqualsFresh(t *testing.T) {
	r := open(t, settings(t), transport.Config{NumCtx: 1024})
	tokens := tokenize(t, r, strings.Repeat(longPrompt, 6)+"Therefore")
	want := fresh(t, r, 1, tokens, genTokens)
	for _, cut := range []int{1, 17, len(tokens) - 1} {
		fresh(t, r, 0, slices.Concat(tokens[:cut], tokenize(t, r, codePrompt)), 4)
		if err := r.Truncate(0, cut); err != nil {
			t.Fatal(err)
		}
		got := decode(t, r, 0, len(tokens), prefill(t, r, 0, cut, tokens[cut:]), genTokens)
		if !slices.Equal(got, want) {
			t.Errorf("cut at %d: got %v, want %v", cut, got, want)
		}
	}
}

func TestShareEqualsFresh(t *testing.T) {
	for _, split := range []bool{false, true} {
		s := settings(t)
		s.KVSplit, s.KVCells = split, 8*512
		r := open(t, s, transport.Config{NumCtx: 512})
		if r.Info().Caps.Share == split {
			t.Errorf("split %v: Caps.Share is %v", split, r.Info().Caps.Share)
		}
		tokens := tokenize(t, r, strings.Repeat(longPrompt, 6)+"Therefore")
		want := fresh(t, r, 5, tokens, genTokens)
		for _, n := range []int{9, len(tokens) - 1} {
			for dst := range 2 {
				if err := r.Truncate(dst, 0); err != nil {
					t.Fatal(err)
				}
				if err := r.Share(dst, 5, n); err != nil {
					t.Fatal(err)
				}
			}
			// What one does with its copy leaves the other alone.
			if err := r.Truncate(0, 4); err != nil {
				t.Fatal(err)
			}
			prefill(t, r, 0, 4, tokenize(t, r, codePrompt))
			got := decode(t, r, 1, len(tokens), prefill(t, r, 1, n, tokens[n:]), genTokens)
			if !slices.Equal(got, want) {
				t.Errorf("split %v, %d shared: got %v, want %v", split, n, got, want)
			}
		}
		if err := r.Share(1, 5, 3); err == nil {
			t.Error("sharing into a sequence that is not empty succeeded")
		}
	}
}

func TestSharedCellsCountOnce(t *testing.T) {
	s := settings(t)
	s.KVCells = 256
	r := open(t, s, transport.Config{NumCtx: 256})
	tokens := tokenize(t, r, strings.Repeat(longPrompt, 33))[:180]
	prefill(t, r, 0, 0, tokens)
	for dst := 1; dst < 8; dst++ {
		if err := r.Share(dst, 0, 180); err != nil {
			t.Fatal(err)
		}
		prefill(t, r, dst, 180, tokens[:5])
	}
	// 180 shared cells and 7 times 5 of their own are taken, 41 are left.
	_, err := r.Forward(context.Background(), []engine.Span{{Seq: 1, Pos: 185, Tokens: tokens[:42], Logits: 1}})
	if !errors.Is(err, transport.ErrInsufficientMemory) {
		t.Fatalf("a full KV cache gave %v", err)
	}
	prefill(t, r, 1, 185, tokens[:41])
}

func TestSaveAndLoad(t *testing.T) {
	r := open(t, settings(t), transport.Config{NumCtx: 512})
	tokens := tokenize(t, r, strings.Repeat(longPrompt, 6)+"Therefore")
	want := fresh(t, r, 0, tokens, genTokens)
	for _, n := range []int{0, 11, len(tokens) - 1} {
		var state bytes.Buffer
		if err := r.Save(0, n, &state); err != nil {
			t.Fatal(err)
		}
		if err := r.Truncate(3, 0); err != nil {
			t.Fatal(err)
		}
		if err := r.Load(3, n, &state); err != nil {
			t.Fatal(err)
		}
		got := decode(t, r, 3, len(tokens), prefill(t, r, 3, n, tokens[n:]), genTokens)
		if !slices.Equal(got, want) {
			t.Errorf("%d restored: got %v, want %v", n, got, want)
		}
	}
}

func TestLoadRefusesDamagedStates(t *testing.T) {
	r := open(t, settings(t), transport.Config{NumCtx: 512})
	tokens := tokenize(t, r, longPrompt)
	prefill(t, r, 0, 0, tokens)
	var state bytes.Buffer
	if err := r.Save(0, len(tokens), &state); err != nil {
		t.Fatal(err)
	}
	good := state.Bytes()
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 0x40
		return b
	}
	tests := []struct {
		name string
		data []byte
		n    int
		says string
		is   error
	}{
		{"empty", nil, 1, "ends inside its header", nil},
		{"half a header", good[:20], 1, "ends inside its header", nil},
		{"something else", bytes.Repeat([]byte("x"), 200), 1, "not a saved state", nil},
		{"another model", flip(8), 1, "another model", transport.ErrManifestMismatch},
		{"truncated", good[:len(good)-1], 1, "the saved state ends after", nil},
		{"flipped bit", flip(len(good) / 2), 1, "checksum", nil},
		{"too many positions", good, len(tokens) + 1, "were asked for", nil},
		{"huge size", flip(8 + 32 + 4 + 4 + 7), 1, "at most", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := r.Load(2, tt.n, bytes.NewReader(tt.data))
			if err == nil || !strings.Contains(err.Error(), tt.says) || (tt.is != nil && !errors.Is(err, tt.is)) {
				t.Errorf("error %v, want one that says %q", err, tt.says)
			}
			if err := r.Truncate(2, 0); err != nil {
				t.Errorf("the sequence is not usable: %v", err)
			}
		})
	}
	if err := r.Load(2, len(tokens), bytes.NewReader(good)); err != nil {
		t.Errorf("the good state: %v", err)
	}
}

func TestForwardRefuses(t *testing.T) {
	r := open(t, settings(t), transport.Config{NumCtx: 256, NumBatch: 64})
	prefill(t, r, 0, 0, []engine.Token{1, 2, 3})
	long := make([]engine.Token, 65)
	tests := []struct {
		name  string
		spans []engine.Span
		says  string
	}{
		{"unknown sequence", []engine.Span{{Seq: 8, Tokens: []engine.Token{1}}}, "sequence 8 of 8"},
		{"negative sequence", []engine.Span{{Seq: -1, Tokens: []engine.Token{1}}}, "sequence -1"},
		{"sequence twice", []engine.Span{{Seq: 1, Tokens: []engine.Token{1}}, {Seq: 1, Tokens: []engine.Token{1}}}, "twice"},
		{"gap", []engine.Span{{Seq: 0, Pos: 5, Tokens: []engine.Token{1}}}, "position 5, but sequence 0 has 3"},
		{"unknown token", []engine.Span{{Seq: 1, Tokens: []engine.Token{49152}}}, "not in the vocabulary of 49152"},
		{"negative token", []engine.Span{{Seq: 1, Tokens: []engine.Token{-1}}}, "token -1"},
		{"too many rows", []engine.Span{{Seq: 1, Tokens: []engine.Token{1}, Logits: 2}}, "2 rows of logits"},
		{"too many tokens", []engine.Span{{Seq: 1, Tokens: long}}, "more than 64 tokens"},
		{"beyond the context", []engine.Span{{Seq: 1, Tokens: make([]engine.Token, 257)}}, "context"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := r.Forward(context.Background(), tt.spans); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want one that says %q", err, tt.says)
			}
		})
	}
	if rows, err := r.Forward(context.Background(), nil); err != nil || rows != nil {
		t.Errorf("no spans: %v %v", rows, err)
	}
	// Nothing of the above has touched the KV.
	if rows, err := r.Forward(context.Background(), []engine.Span{{Seq: 0, Pos: 3, Tokens: []engine.Token{4, 5, 6}, Logits: 2}}); err != nil || len(rows) != 2 || len(rows[0]) != 49152 {
		t.Errorf("a good span: %d rows, %v", len(rows), err)
	}
}

func TestForwardEndsWithItsContext(t *testing.T) {
	r := open(t, settings(t), transport.Config{NumCtx: 1024})
	tokens := tokenize(t, r, strings.Repeat(longPrompt, 90))[:512]
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.Forward(ctx, []engine.Span{{Seq: 0, Tokens: tokens}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.Forward(ctx, []engine.Span{{Seq: 0, Tokens: tokens}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ended within a batch: %v", err)
	}
	// The sequence is as before and the runner goes on.
	prefill(t, r, 0, 0, tokens[:10])
}

func TestTokenize(t *testing.T) {
	r := open(t, settings(t), transport.Config{NumCtx: 256})
	tests := []struct {
		text string
		want []engine.Token
	}{
		{"", nil},
		{"<|im_start|>user\n<|im_end|>", []engine.Token{1, 4093, 198, 2}},
		{"hello world", []engine.Token{28120, 905}},
	}
	for _, tt := range tests {
		if got := tokenize(t, r, tt.text); !slices.Equal(got, tt.want) {
			t.Errorf("Tokenize(%q) = %v, want %v", tt.text, got, tt.want)
		}
	}
	if got, _ := r.Tokenize("hello", true); len(got) != 2 || got[0] != 1 {
		t.Errorf("with BOS: %v", got)
	}
	if got, _ := r.Tokenize("<|im_start|>hello", true); len(got) != 2 || got[0] != 1 {
		t.Errorf("with BOS there already: %v", got)
	}
	for _, text := range []string{
		"null \x00 byte", "cut \xf0\x9f\x8c", "\xff\xfe", "lone \xed\xa0\x80 surrogate", "é 汉字 🌍 עברית",
		strings.Repeat("a", 1<<20), strings.Repeat(" ", 1<<17), strings.Repeat("7", 1<<17), strings.Repeat("é", 1<<17),
	} {
		tokens := tokenize(t, r, text)
		got, err := r.Detokenize(tokens)
		if want := strings.ToValidUTF8(text, "\uFFFD"); err != nil || got != want {
			t.Errorf("%.20q and back is %.20q, %v", text, got, err)
		}
	}
	if got, err := r.Detokenize([]engine.Token{1, 28120, 2, 0}); err != nil || got != "hello" {
		t.Errorf("special tokens: %q, %v", got, err)
	}
	if _, err := r.Detokenize([]engine.Token{49152}); err == nil {
		t.Error("an unknown token has a text")
	}
}

func TestInfo(t *testing.T) {
	info := open(t, settings(t), transport.Config{}).Info()
	if info.VocabSize != 49152 || info.NumCtx != 8192 || info.KVTokens != 8192 || info.MaxSeqs != 8 || info.MaxBatch != 512 {
		t.Errorf("sizes: %+v", info)
	}
	if info.BOSText != "<|im_start|>" || info.EOSText != "<|im_end|>" || info.AddBOS {
		t.Errorf("BOS %q, EOS %q, add BOS %v", info.BOSText, info.EOSText, info.AddBOS)
	}
	if !slices.Equal(info.EOG, []engine.Token{0, 2, 4}) {
		t.Errorf("EOG %v", info.EOG)
	}
	if want := (engine.Caps{Truncate: true, Share: true, Save: true}); info.Caps != want {
		t.Errorf("caps %+v", info.Caps)
	}
	if !strings.Contains(info.ChatTemplate, "<|im_start|>") || !strings.HasPrefix(info.Digest, "sampled-sha256:") {
		t.Errorf("template %q, digest %q", info.ChatTemplate, info.Digest)
	}
}

func TestEmbed(t *testing.T) {
	r := open(t, settings(t), transport.Config{})
	e := r.(engine.Embedder)
	texts := []string{"A cat sits on the mat.", "A kitten is sitting on a rug.", "Interest rates rose by half a percent.", strings.Repeat(longPrompt, 90)}
	var inputs [][]engine.Token
	for _, text := range texts {
		inputs = append(inputs, tokenize(t, r, text))
	}
	got, err := e.Embed(context.Background(), inputs)
	if err != nil {
		t.Fatal(err)
	}
	dot := func(a, b []float32) (sum float64) {
		for i := range a {
			sum += float64(a[i]) * float64(b[i])
		}
		return sum
	}
	for i, v := range got {
		if n := dot(v, v); len(v) != 576 || math.Abs(n-1) > 1e-4 {
			t.Errorf("embedding %d: %d numbers of length %f", i, len(v), n)
		}
	}
	if near, far := dot(got[0], got[1]), dot(got[0], got[2]); near <= far {
		t.Errorf("similar sentences are at %f, different ones at %f", near, far)
	}
	again, err := e.Embed(context.Background(), inputs[:1])
	if err != nil || dot(again[0], got[0]) < 0.9999 {
		t.Errorf("the same text again: %v", err)
	}
	if _, err := e.Embed(context.Background(), [][]engine.Token{make([]engine.Token, 8193)}); !errors.Is(err, transport.ErrContextOverflow) {
		t.Errorf("too long a text: %v", err)
	}
	if _, err := e.Embed(context.Background(), [][]engine.Token{nil}); err == nil {
		t.Error("an empty text has an embedding")
	}
}

// BenchmarkDecode compares the Runner's greedy loop with the bare one, turn by
// turn in the same process. The metrics are medians.
func BenchmarkDecode(b *testing.B) {
	const n = 128
	r := open(b, llamarunner.Settings{LibDir: testparts.LlamaLib(b)}, transport.Config{})
	bare, err := barellama.Open(testparts.LlamaLib(b), testparts.Model(b), barellama.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer bare.Close()
	tokens := tokenize(b, r, codePrompt)
	var bareRates, rates, ratios []float64
	for b.Loop() {
		res, err := bare.Generate(codePrompt, n)
		if err != nil {
			b.Fatal(err)
		}
		if err := r.Truncate(0, 0); err != nil {
			b.Fatal(err)
		}
		next := prefill(b, r, 0, 0, tokens)
		start := time.Now()
		decode(b, r, 0, len(tokens), next, len(res.Tokens))
		rate := float64(len(res.Tokens)-1) / time.Since(start).Seconds()
		bareRates, rates, ratios = append(bareRates, res.TokensPerSecond()), append(rates, rate), append(ratios, rate/res.TokensPerSecond())
	}
	b.ReportMetric(median(bareRates), "bare-tok/s")
	b.ReportMetric(median(rates), "runner-tok/s")
	b.ReportMetric(median(ratios), "ratio")
}

// BenchmarkStreams is the rate of all streams together, with one pool of cells
// and with a share for each sequence.
func BenchmarkStreams(b *testing.B) {
	for _, split := range []bool{false, true} {
		for _, streams := range []int{1, 4, 8} {
			b.Run(fmt.Sprintf("split=%v/streams=%d", split, streams), func(b *testing.B) {
				r := open(b, llamarunner.Settings{LibDir: testparts.LlamaLib(b), KVSplit: split, KVCells: 8192}, transport.Config{NumCtx: 1024})
				tokens := tokenize(b, r, strings.Repeat(longPrompt, 20))
				spans := make([]engine.Span, streams)
				for i := range spans {
					next := prefill(b, r, i, 0, tokens)
					spans[i] = engine.Span{Seq: i, Pos: len(tokens), Tokens: []engine.Token{next}, Logits: 1}
				}
				for b.Loop() {
					rows, err := r.Forward(context.Background(), spans)
					if err != nil {
						b.Fatal(err)
					}
					for i := range rows {
						spans[i].Tokens[0] = engine.Token(barellama.Argmax(rows[i]))
						spans[i].Pos++
					}
				}
				b.ReportMetric(float64(b.N*streams)/b.Elapsed().Seconds(), "tok/s")
			})
		}
	}
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
