package llamarunner

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"modeld/core/transport"
)

// Defaults of Settings.
const (
	DefaultMaxSeqs     = 8
	DefaultBatchTokens = 512
	DefaultContext     = 8192
)

// cellMultiple is what llama.cpp rounds KV cells up to.
const cellMultiple = 256

// Settings are the backend's own settings, the same for every model. Zero
// fields take the stated defaults.
type Settings struct {
	// LibDir holds libllama.so, libggml.so, libggml-base.so and the CPU or GPU
	// backends. Default: ../lib/llama, seen from the executable's folder.
	LibDir string `json:"lib_dir"`
	// Threads is the number of compute threads. Default: the cores that this
	// process may use, by its affinity and its cgroup's CPU quota.
	Threads int `json:"threads"`
	// MaxSeqs is the number of KV sequences. Default: 8.
	MaxSeqs int `json:"max_seqs"`
	// KVCells is the size of the KV cache in tokens, for all sequences
	// together. Default: the context of one session.
	KVCells int `json:"kv_cells"`
	// KVSplit gives each sequence its own equal share of the KV cells. That
	// computes a little faster, but prefixes are copied instead of shared
	// and no sequence can use more than its share. KVCells is then the
	// total, by default MaxSeqs contexts.
	KVSplit bool `json:"kv_split"`
	// BatchTokens is the most tokens in one forward pass. Default: 512.
	BatchTokens int `json:"batch_tokens"`

	// ProbeCommand is the command line of a process that calls ProbeMain with
	// the arguments appended to it. Without it models are not probed.
	ProbeCommand []string `json:"-"`
}

// Validate says which setting can't be.
func (s Settings) Validate() error {
	for _, f := range []struct {
		name string
		n    int
	}{{"threads", s.Threads}, {"max_seqs", s.MaxSeqs}, {"kv_cells", s.KVCells}, {"batch_tokens", s.BatchTokens}} {
		if f.n < 0 {
			return fmt.Errorf("llama: %s is %d; it must be positive, or 0 for the default", f.name, f.n)
		}
	}
	return nil
}

func (s Settings) withDefaults() Settings {
	if s.LibDir == "" {
		s.LibDir = defaultLibDir()
	}
	if s.Threads == 0 {
		// The Go runtime counts affinity and the cgroup's quota.
		s.Threads = runtime.GOMAXPROCS(0)
	}
	if s.MaxSeqs == 0 {
		s.MaxSeqs = DefaultMaxSeqs
	}
	if s.BatchTokens == 0 {
		s.BatchTokens = DefaultBatchTokens
	}
	return s
}

func defaultLibDir() string {
	exe, err := os.Executable()
	if err != nil {
		return filepath.Join("lib", "llama")
	}
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		exe = real
	}
	return filepath.Join(filepath.Dir(exe), "..", "lib", "llama")
}

// plan is how one model is loaded: settings and the request's config, resolved.
type plan struct {
	numCtx  int // positions of one sequence
	cells   int // KV cells of all sequences
	seqs    int
	batch   int
	threads int
	split   bool
	kv      kvType
	clamped string // why numCtx is less than asked, "" if it is not
}

func (s Settings) plan(f *facts, c transport.Config) (plan, error) {
	for _, v := range []struct {
		name string
		n    int
	}{{"NumCtx", c.NumCtx}, {"NumBatch", c.NumBatch}, {"NumThreads", c.NumThreads}} {
		if v.n < 0 {
			return plan{}, fmt.Errorf("llama: %s is %d; it must be positive, or 0 for the default", v.name, v.n)
		}
	}
	kv, err := parseKVType(c.KVCacheType)
	if err != nil {
		return plan{}, err
	}
	if err := kv.fits(f); err != nil {
		return plan{}, err
	}
	p := plan{numCtx: c.NumCtx, seqs: s.MaxSeqs, batch: s.BatchTokens, threads: s.Threads, split: s.KVSplit, kv: kv}
	if c.NumBatch > 0 {
		p.batch = c.NumBatch
	}
	if c.NumThreads > 0 {
		p.threads = c.NumThreads
	}
	if p.numCtx == 0 {
		p.numCtx = DefaultContext
		if f.maxCtx > 0 {
			p.numCtx = min(p.numCtx, f.maxCtx)
		}
	}
	if f.maxCtx > 0 && p.numCtx > f.maxCtx {
		p.clamped = fmt.Sprintf("the context of %d tokens asked for is beyond the model's %d", p.numCtx, f.maxCtx)
		p.numCtx = f.maxCtx
	}
	p.sizeCells(s)
	p.batch = min(p.batch, p.numCtx)
	return p, nil
}

// sizeCells resolves the KV cells, which may lower the context further.
func (p *plan) sizeCells(s Settings) {
	per := roundUp(p.numCtx, cellMultiple)
	p.cells = per
	if p.split {
		p.cells = per * p.seqs
	}
	if s.KVCells == 0 {
		return
	}
	p.cells = roundUp(s.KVCells, cellMultiple)
	room := p.cells
	if p.split {
		per = max(p.cells/p.seqs/cellMultiple, 1) * cellMultiple
		p.cells = per * p.seqs
		room = per
	}
	if p.numCtx > room {
		p.clamped = fmt.Sprintf("the context of %d tokens is beyond the %d KV cells that kv_cells leaves a sequence", p.numCtx, room)
		p.numCtx = room
	}
}

func roundUp(n, multiple int) int { return (n + multiple - 1) / multiple * multiple }
