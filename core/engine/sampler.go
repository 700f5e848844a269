package engine

import (
	"fmt"
	"math"
	"math/rand/v2"

	"modeld/core/transport"
)

// DefaultTemperature is for requests that name none and models that recommend
// none.
const DefaultTemperature = 0.8

// sampling is how to pick tokens. The zero value is greedy.
type sampling struct {
	temperature float64 // 0: greedy
	topK        int     // 0: off
	topP        float64 // 1: off
	minP        float64 // 0: off
	seed        uint64

	// Penalties for tokens of the context's last penaltyWindow tokens:
	// repetition divides positive and multiplies negative logits (1: off),
	// presence is subtracted once, frequency once for each occurrence (0: off).
	repetition, presence, frequency float64
	penaltyWindow                   int
}

// resolveSampling checks cfg and fills in defaults. A request without a
// temperature leaves the sampling to the model: then the model's top-p and
// top-k count too, where the request has none.
func resolveSampling(cfg transport.DecodeConfig, model SamplingDefaults, seed func() uint64) (sampling, error) {
	s := sampling{temperature: DefaultTemperature, topK: cfg.TopK, topP: 1, repetition: 1}
	if cfg.Temperature != nil {
		s.temperature = *cfg.Temperature
	} else {
		if model.Temperature != nil {
			s.temperature = *model.Temperature
		}
		if model.TopP != nil {
			s.topP = *model.TopP
		}
		if s.topK == 0 {
			s.topK = model.TopK
		}
	}
	if cfg.TopP != nil {
		s.topP = *cfg.TopP
	}
	switch {
	case math.IsNaN(s.temperature) || math.IsInf(s.temperature, 0) || s.temperature < 0:
		return s, fmt.Errorf("decode: Temperature is %v; it must be 0 (greedy) or a positive number", s.temperature)
	case math.IsNaN(s.topP) || s.topP < 0 || s.topP > 1:
		return s, fmt.Errorf("decode: TopP is %v; it must be from 0 to 1", s.topP)
	case s.topK < 0:
		return s, fmt.Errorf("decode: TopK is %d; it must be positive, or 0 for off", s.topK)
	case cfg.MaxTokens < 0:
		return s, fmt.Errorf("decode: MaxTokens is %d; it must be positive, or 0 for no limit", cfg.MaxTokens)
	}
	if cfg.Seed != nil {
		s.seed = uint64(*cfg.Seed)
	} else if s.temperature > 0 {
		s.seed = seed()
	}
	return s, nil
}

// sampler picks the tokens of one generation. The same parameters, rows and
// context give the same tokens.
type sampler struct {
	sampling
	rng  *rand.Rand
	heap []candidate
	adj  []float32
}

type candidate struct {
	token  Token
	logit  float32
	weight float32 // its chance, relative to the best one's
}

func newSampler(p sampling) *sampler {
	// Repeatable, so no cryptographic randomness.
	return &sampler{sampling: p, rng: rand.New(rand.NewPCG(p.seed, 0x6d6f64656c64))} //nolint:gosec // see above
}

// sample picks the token after context from its logits, which it leaves as
// they are.
func (s *sampler) sample(row []float32, context []Token) Token {
	row = s.penalize(row, context)
	best := argmax(row)
	if s.temperature == 0 || s.topK == 1 {
		return best
	}
	// Far tails have no weight in any sum of float32: leaving them out of the
	// candidates changes nothing and saves the work.
	floor := row[best] - float32(tailWidth*s.temperature)
	if s.minP > 0 {
		floor = max(floor, row[best]+float32(s.temperature*math.Log(s.minP)))
	}
	s.collect(row, floor)
	return s.draw(row[best])
}

// tailWidth is the distance to the best logit, over the temperature, beyond
// which a token has less than 1e-13 of the best one's chance.
const tailWidth = 30

// penalize returns row with the penalties applied, in s's own memory.
func (s *sampler) penalize(row []float32, context []Token) []float32 {
	if (s.repetition == 1 || s.repetition == 0) && s.presence == 0 && s.frequency == 0 {
		return row
	}
	s.adj = append(s.adj[:0], row...)
	if w := s.penaltyWindow; w > 0 && len(context) > w {
		context = context[len(context)-w:]
	}
	counts := make(map[Token]int, len(context))
	for _, t := range context {
		counts[t]++
	}
	for t, n := range counts {
		l := float64(s.adj[t])
		if s.repetition > 0 && l > 0 {
			l /= s.repetition
		} else if s.repetition > 0 {
			l *= s.repetition
		}
		s.adj[t] = float32(l - s.presence - s.frequency*float64(n))
	}
	return s.adj
}

// collect gathers the candidates of at least floor into s.heap: all, or the
// topK best as a min-heap.
func (s *sampler) collect(row []float32, floor float32) {
	s.heap = s.heap[:0]
	k := s.topK
	if k <= 0 || k >= len(row) {
		for t, l := range row {
			if l >= floor {
				s.heap = append(s.heap, candidate{token: Token(t), logit: l})
			}
		}
		return
	}
	for t, l := range row {
		if l < floor {
			continue
		}
		if len(s.heap) < k {
			s.heap = append(s.heap, candidate{token: Token(t), logit: l})
			if len(s.heap) == k {
				heapify(s.heap, worse)
				floor = max(floor, s.heap[0].logit)
			}
			continue
		}
		if c := (candidate{token: Token(t), logit: l}); worse(s.heap[0], c) {
			s.heap[0] = c
			siftDown(s.heap, 0, worse)
			floor = s.heap[0].logit
		}
	}
}

// draw picks one of s.heap by its chance, after cutting it to topP.
func (s *sampler) draw(best float32) Token {
	inv, total := float32(1/s.temperature), 0.0
	for i := range s.heap {
		c := &s.heap[i]
		c.weight = exp32((c.logit - best) * inv)
		total += float64(c.weight)
	}
	if s.topP >= 1 {
		return pick(s.heap, s.rng.Float64()*total)
	}
	// All that weigh less than this weigh together less than what topP leaves
	// out: the best ones that make up topP are among the others.
	least := float32((1 - s.topP) * total / float64(len(s.heap)))
	n := 0
	for _, c := range s.heap {
		if c.weight >= least {
			s.heap[n] = c
			n++
		}
	}
	s.heap = s.heap[:n]
	// Take the best ones until they hold topP of the whole; few do.
	heapify(s.heap, better)
	kept := 0.0
	for n > 0 {
		n--
		s.heap[0], s.heap[n] = s.heap[n], s.heap[0]
		siftDown(s.heap[:n], 0, better)
		if kept += float64(s.heap[n].weight); kept >= s.topP*total {
			break
		}
	}
	return pick(s.heap[n:], s.rng.Float64()*kept)
}

// pick returns the candidate at u of their summed weights.
func pick(candidates []candidate, u float64) Token {
	for _, c := range candidates {
		if u -= float64(c.weight); u < 0 {
			return c.token
		}
	}
	return candidates[len(candidates)-1].token
}

// exp32 is e^x for x from -87 to 0, to seven digits: 2 to the whole and, by its
// series, to the rest of x/ln 2.
func exp32(x float32) float32 {
	y := max(x*math.Log2E, -126)
	whole := int32(y - 0.5) // y is not positive: the nearest integer
	f := (y - float32(whole)) * math.Ln2
	p := 1 + f*(1+f*(1.0/2+f*(1.0/6+f*(1.0/24+f*(1.0/120+f*(1.0/720))))))
	return p * math.Float32frombits(uint32(whole+127)<<23)
}

// better and worse order candidates; among equals the lower token is better.
func better(a, b candidate) bool {
	return a.logit > b.logit || a.logit == b.logit && a.token < b.token
}

func worse(a, b candidate) bool { return better(b, a) }

func heapify(h []candidate, first func(a, b candidate) bool) {
	for i := len(h)/2 - 1; i >= 0; i-- {
		siftDown(h, i, first)
	}
}

func siftDown(h []candidate, i int, first func(a, b candidate) bool) {
	for {
		c := 2*i + 1
		if c >= len(h) {
			return
		}
		if c+1 < len(h) && first(h[c+1], h[c]) {
			c++
		}
		if !first(h[c], h[i]) {
			return
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}

// argmax returns the index of the greatest value, the first among equals. It
// looks for blocks with a new maximum before it looks inside them: four
// independent maxima a block keep the processor's pipeline full.
func argmax(row []float32) Token {
	best, at := float32(math.Inf(-1)), 0
	i := 0
	for ; i+16 <= len(row); i += 16 {
		b := row[i : i+16 : i+16]
		m0, m1, m2, m3 := b[0], b[1], b[2], b[3]
		for j := 4; j < 16; j += 4 {
			if b[j] > m0 {
				m0 = b[j]
			}
			if b[j+1] > m1 {
				m1 = b[j+1]
			}
			if b[j+2] > m2 {
				m2 = b[j+2]
			}
			if b[j+3] > m3 {
				m3 = b[j+3]
			}
		}
		if m0 > best || m1 > best || m2 > best || m3 > best {
			for j, v := range b {
				if v > best {
					best, at = v, i+j
				}
			}
		}
	}
	for ; i < len(row); i++ {
		if row[i] > best {
			best, at = row[i], i
		}
	}
	return Token(at)
}
