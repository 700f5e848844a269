package engine

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"modeld/core/transport"
)

func randomRow(rng *rand.Rand, n int) []float32 {
	row := make([]float32, n)
	for i := range row {
		row[i] = float32(rng.NormFloat64() * 4)
	}
	return row
}

func TestArgmax(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for n := 1; n < 200; n++ {
		row := randomRow(rng, n)
		if rng.IntN(2) == 0 { // ties: the first wins
			row[rng.IntN(n)], row[rng.IntN(n)] = 20, 20
		}
		if got, want := int(argmax(row)), slices.Index(row, slices.Max(row)); got != want {
			t.Fatalf("of %d logits: %d, want %d", n, got, want)
		}
	}
}

// chances is what a sampler should do, computed the plain way: all candidates
// sorted, cut, and normalised.
func chances(row []float32, s sampling) map[Token]float64 {
	order := make([]Token, len(row))
	for i := range order {
		order[i] = Token(i)
	}
	slices.SortStableFunc(order, func(a, b Token) int {
		switch {
		case row[a] > row[b]:
			return -1
		case row[a] < row[b]:
			return 1
		}
		return 0
	})
	if s.topK > 0 && s.topK < len(order) {
		order = order[:s.topK]
	}
	weight := func(t Token) float64 { return math.Exp(float64(row[t]-row[order[0]]) / s.temperature) }
	order = slices.DeleteFunc(order, func(t Token) bool { return weight(t) < s.minP })
	total := 0.0
	for _, t := range order {
		total += weight(t)
	}
	kept, out := 0.0, make(map[Token]float64)
	for _, t := range order {
		out[t] = weight(t)
		if kept += weight(t); kept >= s.topP*total {
			break
		}
	}
	for t := range out {
		out[t] /= kept
	}
	return out
}

// TestSamplerChances draws often and compares with the plain computation.
func TestSamplerChances(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const draws = 20_000
	for _, s := range []sampling{
		{temperature: 1, topP: 1},
		{temperature: 0.5, topP: 0.9},
		{temperature: 1.7, topP: 0.7, topK: 9},
		{temperature: 1, topP: 1, topK: 3},
		{temperature: 1, topP: 0},
		{temperature: 1, topP: 1, minP: 0.2},
		{temperature: 1, topP: 0.95, topK: 1000},
	} {
		row := randomRow(rng, 50)
		before := slices.Clone(row)
		want := chances(row, s)
		s.seed = rng.Uint64()
		sampler, got := newSampler(s), make(map[Token]int)
		for range draws {
			got[sampler.sample(row, nil)]++
		}
		if !slices.Equal(row, before) {
			t.Fatalf("%+v changed the logits", s)
		}
		for tok, n := range got {
			// Five standard deviations.
			p := want[tok]
			if d := math.Abs(float64(n)/draws - p); d > 5*math.Sqrt(p*(1-p)/draws)+1e-9 {
				t.Errorf("%+v: token %d came %d times in %d, its chance is %g", s, tok, n, draws, p)
			}
		}
	}
}

func TestExp32(t *testing.T) {
	for x := float32(0); x > -86; x -= 0.0137 {
		if got, want := float64(exp32(x)), math.Exp(float64(x)); math.Abs(got-want) > 1e-5*want {
			t.Fatalf("exp(%g) is %g, want %g", x, got, want)
		}
	}
	if exp32(0) != 1 || exp32(-1e9) > 1e-37 {
		t.Errorf("exp(0) is %g, exp(-1e9) %g", exp32(0), exp32(-1e9))
	}
}

func TestPenalties(t *testing.T) {
	row := []float32{4, 3, -1, 2}
	for _, c := range []struct {
		s       sampling
		context []Token
		want    []float32
	}{
		{sampling{repetition: 2}, []Token{0, 2, 0}, []float32{2, 3, -2, 2}},
		{sampling{repetition: 1, presence: 0.5}, []Token{0, 0, 3}, []float32{3.5, 3, -1, 1.5}},
		{sampling{repetition: 1, frequency: 0.5}, []Token{0, 0, 3}, []float32{3, 3, -1, 1.5}},
		{sampling{repetition: 2, penaltyWindow: 1}, []Token{0, 3}, []float32{4, 3, -1, 1}},
		{sampling{repetition: 1}, []Token{0, 1}, row},
	} {
		if got := newSampler(c.s).penalize(row, c.context); !slices.Equal(got, c.want) {
			t.Errorf("%+v after %v: %v, want %v", c.s, c.context, got, c.want)
		}
	}
}

func TestResolveSampling(t *testing.T) {
	half, zero, top := 0.5, 0.0, 0.9
	seven := 7
	model := SamplingDefaults{Temperature: &half, TopP: &top, TopK: 20}
	for name, c := range map[string]struct {
		cfg   transport.DecodeConfig
		model SamplingDefaults
		want  sampling
	}{
		"nothing said":           {transport.DecodeConfig{}, SamplingDefaults{}, sampling{temperature: DefaultTemperature, topP: 1, repetition: 1, seed: 42}},
		"the model's":            {transport.DecodeConfig{}, model, sampling{temperature: 0.5, topP: 0.9, topK: 20, repetition: 1, seed: 42}},
		"the request's wins":     {transport.DecodeConfig{TopK: 3, TopP: &half, Seed: &seven}, model, sampling{temperature: 0.5, topP: 0.5, topK: 3, repetition: 1, seed: 7}},
		"a temperature is alone": {transport.DecodeConfig{Temperature: &top}, model, sampling{temperature: 0.9, topP: 1, repetition: 1, seed: 42}},
		"greedy":                 {transport.DecodeConfig{Temperature: &zero}, model, sampling{topP: 1, repetition: 1}},
	} {
		got, err := resolveSampling(c.cfg, c.model, func() uint64 { return 42 })
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.want)
		}
	}
}

func BenchmarkSample(b *testing.B) {
	row := randomRow(rand.New(rand.NewPCG(5, 6)), 49_152)
	for name, s := range map[string]sampling{
		"greedy":      {},
		"temperature": {temperature: 0.8, topP: 1},
		"top-p":       {temperature: 0.8, topP: 0.95},
		"top-k":       {temperature: 0.8, topP: 0.95, topK: 40},
	} {
		b.Run(name, func(b *testing.B) {
			sampler := newSampler(s)
			for b.Loop() {
				sampler.sample(row, nil)
			}
		})
	}
}
