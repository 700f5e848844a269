package llamarunner

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/hybridgroup/yzma/pkg/llama"

	"modeld/core/engine"
	"modeld/core/transport"
)

// Backend describes and loads GGUF models. It is safe for concurrent use.
type Backend struct {
	settings Settings
	probes   *probes
}

var _ engine.Backend = (*Backend)(nil)

// New returns a Backend. Nothing native is opened before the first Describe or
// Load.
func New(s Settings) *Backend {
	s = s.withDefaults()
	return &Backend{settings: s, probes: newProbes(s.ProbeCommand)}
}

// Type is "llama".
func (b *Backend) Type() string { return "llama" }

// Describe reads the facts of a GGUF file. The weights are not loaded.
//
// Errors: ErrModelNotFound; ErrModelLoadFailed for a damaged file or unusable
// libraries; ErrBackendMismatch for a folder; ErrUnsupportedFeature.
func (b *Backend) Describe(ctx context.Context, spec engine.ModelSpec) (transport.ModelInfo, error) {
	lib, f, p, err := b.prepare(ctx, spec)
	if err != nil {
		return transport.ModelInfo{}, err
	}
	return describe(lib, f, p, spec.Config), nil
}

// Load loads a GGUF file.
//
// Errors: as for Describe; ErrInsufficientMemory with the figures.
func (b *Backend) Load(ctx context.Context, spec engine.ModelSpec) (engine.Runner, error) {
	lib, f, p, err := b.prepare(ctx, spec)
	if err != nil {
		return nil, err
	}
	if len(spec.Adapters) > 0 {
		return nil, fmt.Errorf("llama: %w: LoRA adapters (%q was asked for)", transport.ErrUnsupportedFeature, spec.Adapters[0].Name)
	}
	info := describe(lib, f, p, spec.Config)
	if info.FreeBytes > 0 && info.RequiredBytes > info.FreeBytes && !info.SupportsGPUOffload {
		return nil, fmt.Errorf("llama: %w: %s needs %d MiB (weights %d, KV of %d tokens %d, overhead %d) and %d MiB are free; lower NumCtx or kv_cells, or use a smaller model",
			transport.ErrInsufficientMemory, spec.Path, mib(info.RequiredBytes), mib(info.WeightsBytes), p.cells,
			mib(info.KVBytesPerToken*int64(p.cells)), mib(info.OverheadBytes), mib(info.FreeBytes))
	}
	if err := b.probes.check(ctx, lib.dir, f); err != nil {
		return nil, err
	}
	r, err := load(ctx, lib, f, p, spec)
	if err != nil {
		return nil, err
	}
	r.info.Model = info
	return r, nil
}

func mib(n int64) int64 { return n >> 20 }

// prepare checks the model's files, then opens the library: a wrong path gets
// its own error also where the library is missing.
func (b *Backend) prepare(ctx context.Context, spec engine.ModelSpec) (*library, *facts, plan, error) {
	f, err := readFacts(ctx, spec.Path)
	if err != nil {
		return nil, nil, plan{}, err
	}
	p, err := b.settings.plan(f, spec.Config)
	if err != nil {
		return nil, nil, plan{}, err
	}
	lib, err := openLibrary(b.settings.LibDir)
	return lib, f, p, err
}

// describe turns facts into a ModelInfo.
func describe(lib *library, f *facts, p plan, c transport.Config) transport.ModelInfo {
	info := transport.ModelInfo{
		ModelMaxContext:              f.maxCtx,
		EffectiveContext:             p.numCtx,
		HotContextTokens:             p.numCtx,
		Clamped:                      p.clamped != "",
		Reason:                       p.clamped,
		KVBytesPerToken:              p.kv.bytesPerToken(f),
		WeightsBytes:                 f.weights,
		OverheadBytes:                overhead(f, p),
		SlidingWindowAttentionTokens: f.window,
		RequestedGpuLayers:           c.NumGpuLayers,
		RuntimeName:                  "llama.cpp",
		RuntimeDigest:                lib.digest,
		RuntimeSystemInfo:            llama.PrintSystemInfo(),
		SupportsGPUOffload:           llama.SupportsGpuOffload(),
		Devices:                      lib.devices(),
		DeviceKind:                   "cpu",
	}
	info.PlannerEffectiveContext = transport.ResolvePlannerEffectiveContext(c.PlannerEffectiveContext, p.numCtx, info)
	if info.SupportsGPUOffload {
		if info.ResolvedGpuLayers = c.NumGpuLayers; c.NumGpuLayers <= 0 || c.NumGpuLayers > f.layers+1 {
			info.ResolvedGpuLayers = f.layers + 1 // the output layer counts
		}
	}
	for _, d := range info.Devices {
		if gpu := d.Type == "gpu" || d.Type == "igpu"; gpu == (info.ResolvedGpuLayers > 0) {
			info.DeviceKind, info.DeviceID, info.DeviceTotalBytes = d.Type, d.Name, d.MemoryTotal
			break
		}
	}
	info.FreeBytes, _ = engine.FreeMemory()
	info.UsableBytes = info.FreeBytes
	info.RequiredBytes = info.WeightsBytes + info.OverheadBytes + info.KVBytesPerToken*int64(p.cells)
	if info.KVBytesPerToken > 0 && info.FreeBytes > 0 {
		tokens := (info.FreeBytes - info.WeightsBytes - info.OverheadBytes) / info.KVBytesPerToken
		info.MemoryContextTokens = int(max(min(tokens, 1<<31-1), 0))
	}
	engine.DescribeTemplate(f.template, &info)
	return info
}

// overhead estimates llama.cpp's compute buffer: a row of logits and some
// activations for each token of a batch, and a mask over the KV cells.
func overhead(f *facts, p plan) int64 {
	perToken := int64(f.vocab)*4 + int64(f.embd)*4*8 + int64(p.cells)*4
	return int64(p.batch)*perToken + 16<<20
}

// load makes the native model and context. Native loads go one at a time, so
// that the errors that llama.cpp logs belong to the right one.
func load(ctx context.Context, lib *library, f *facts, p plan, spec engine.ModelSpec) (*Runner, error) {
	process.Lock()
	defer process.Unlock()
	lib.log.takeErrors()
	r := &Runner{lib: lib, facts: f, plan: p}
	fail := func(what string) error {
		r.free()
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("llama: loading %s: %w", spec.Path, err)
		}
		why := lib.log.takeErrors()
		if why == "" {
			why = "llama.cpp gave no reason"
		}
		return fmt.Errorf("llama: %w: %s of %s: %s", transport.ErrModelLoadFailed, what, spec.Path, why)
	}
	params, keep, err := modelParams(spec.Config)
	if err != nil {
		return nil, err
	}
	id, forget := lib.cancel.watch(ctx)
	defer forget()
	params.ProgressCallback, params.ProgressCallbackUserData = lib.cancel.progress, id
	r.model, err = llama.ModelLoadFromFile(f.paths[0], params)
	runtime.KeepAlive(keep)
	if err != nil || r.model == 0 {
		return nil, fail("the weights")
	}
	if r.ctx, err = llama.InitFromModel(r.model, contextParams(p, spec.Config)); err != nil {
		return nil, fail("the context")
	}
	if err := r.init(spec); err != nil {
		r.free()
		return nil, fmt.Errorf("llama: %w: %s: %w", transport.ErrModelLoadFailed, spec.Path, err)
	}
	return r, nil
}

// modelParams returns the parameters and what must live until the load ends.
func modelParams(c transport.Config) (llama.ModelParams, any, error) {
	params := llama.ModelDefaultParams()
	if c.NumGpuLayers > 0 {
		params.NGpuLayers = int32(min(c.NumGpuLayers, 1<<30))
	} // else the default: all that fit
	var split []float32
	if len(c.TensorSplit) > 0 {
		n := int(llama.MaxDevices())
		if len(c.TensorSplit) > n {
			return params, nil, fmt.Errorf("llama: %w: TensorSplit has %d shares for at most %d devices", transport.ErrUnsupportedFeature, len(c.TensorSplit), n)
		}
		split = make([]float32, n)
		copy(split, c.TensorSplit)
		params.TensorSplit = &split[0]
	}
	return params, split, nil
}

func contextParams(p plan, c transport.Config) llama.ContextParams {
	cp := llama.ContextDefaultParams()
	cp.NCtx = uint32(p.cells)
	cp.NBatch = uint32(p.batch)
	cp.NUbatch = uint32(p.batch)
	cp.NSeqMax = uint32(p.seqs)
	cp.NThreads = int32(p.threads)
	cp.NThreadsBatch = int32(p.threads)
	cp.TypeK, cp.TypeV = p.kv.ggml, p.kv.ggml
	cp.KVUnified = 1
	if p.split {
		cp.KVUnified = 0
	}
	// The whole window stays, so that any tail can be dropped.
	cp.SwaFull = 1
	cp.FlashAttentionType = llama.FlashAttentionTypeAuto
	if c.FlashAttn || p.kv.quantized() {
		cp.FlashAttentionType = llama.FlashAttentionTypeEnabled
	}
	return cp
}

var errNoVocab = errors.New("the model has no vocabulary")
