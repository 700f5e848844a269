package ovrunner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"modeld/core/engine"
	"modeld/core/transport"
)

// Backend loads models with OpenVINO.
type Backend struct{ settings Settings }

var _ engine.Backend = (*Backend)(nil)

// New returns a Backend. Nothing native is opened before the first call.
func New(s Settings) *Backend { return &Backend{settings: s.withDefaults()} }

// Type is "openvino".
func (b *Backend) Type() string { return "openvino" }

// Describe reads the model's folder and asks the runtime for its devices.
func (b *Backend) Describe(ctx context.Context, spec engine.ModelSpec) (transport.ModelInfo, error) {
	if err := ctx.Err(); err != nil {
		return transport.ModelInfo{}, err
	}
	f, err := readFacts(spec.Path)
	if err != nil {
		return transport.ModelInfo{}, err
	}
	lib, err := openLibrary(b.settings.LibDir)
	if err != nil {
		return transport.ModelInfo{}, fmt.Errorf("%w: %w", transport.ErrModelLoadFailed, err)
	}
	return b.describe(f, lib, spec.Config)
}

func (b *Backend) describe(f *facts, lib *library, c transport.Config) (transport.ModelInfo, error) {
	info := transport.ModelInfo{
		ModelMaxContext: f.maxCtx,
		WeightsBytes:    f.weights,
		DeviceKind:      strings.ToLower(b.settings.Device),
		DeviceID:        b.settings.Device,
		RuntimeName:     "OpenVINO",
		RuntimeDigest:   lib.version,
	}
	info.EffectiveContext, info.Clamped, info.Reason = effectiveContext(c.NumCtx, f.maxCtx)
	info.PlannerEffectiveContext = transport.ResolvePlannerEffectiveContext(c.PlannerEffectiveContext, info.EffectiveContext, info)
	info.FreeBytes, _ = engine.FreeMemory()
	info.UsableBytes = info.FreeBytes
	info.RuntimeSystemInfo = fmt.Sprintf("device %s, KV cache %s", b.settings.Device, b.kvPrecision(c))
	engine.DescribeTemplate(f.template, &info)
	devices, err := lib.deviceList()
	for i, d := range devices {
		kind, _, _ := strings.Cut(d[0], ".")
		info.Devices = append(info.Devices, transport.DeviceInfo{Index: i, Name: d[0], Description: d[1], Type: strings.ToLower(kind)})
	}
	return info, err
}

// effectiveContext is a session's context, and why it is less than asked for.
func effectiveContext(asked, most int) (n int, clamped bool, reason string) {
	n = asked
	if n <= 0 {
		n = DefaultContext
	}
	if most > 0 && n > most {
		if asked > 0 {
			return most, true, fmt.Sprintf("the model's own ceiling is %d tokens", most)
		}
		return most, false, ""
	}
	return n, false, ""
}

func (b *Backend) kvPrecision(c transport.Config) string {
	if c.KVCacheType != "" {
		return c.KVCacheType
	}
	return b.settings.KVPrecision
}

// Load compiles the model and allocates its KV cache. The runtime can't be
// interrupted; ctx is looked at before.
//
// Errors: ErrModelNotFound; ErrBackendMismatch for a file; ErrModelLoadFailed;
// ErrInsufficientMemory with the figures; ErrUnsupportedFeature for adapters,
// KV types and models without paged attention.
func (b *Backend) Load(ctx context.Context, spec engine.ModelSpec) (engine.Runner, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(spec.Adapters) > 0 {
		return nil, fmt.Errorf("openvino: %w: LoRA adapters; run the model without, or merged", transport.ErrUnsupportedFeature)
	}
	if err := b.supported(spec.Config); err != nil {
		return nil, fmt.Errorf("openvino: %w: %w", transport.ErrUnsupportedFeature, err)
	}
	f, err := readFacts(spec.Path)
	if err != nil {
		return nil, err
	}
	lib, err := openLibrary(b.settings.LibDir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", transport.ErrModelLoadFailed, err)
	}
	r := &Runner{lib: lib, facts: f}
	if err := b.open(r, spec); err != nil {
		_ = r.Close()
		if errors.Is(err, transport.ErrInsufficientMemory) || errors.Is(err, transport.ErrUnsupportedFeature) {
			return nil, fmt.Errorf("openvino: %s: %w", spec.Path, err)
		}
		return nil, fmt.Errorf("openvino: %w: %s: %w", transport.ErrModelLoadFailed, spec.Path, err)
	}
	return r, nil
}

// supported says what of the device and the precisions can't be.
func (b *Backend) supported(c transport.Config) error {
	for _, other := range []string{"GPU", "NPU"} {
		if strings.Contains(b.settings.Device, other) {
			return fmt.Errorf("device %s: KV blocks are in host memory; use the device CPU", b.settings.Device)
		}
	}
	kv, inference := b.kvPrecision(c), b.settings.InferencePrecision
	switch kv {
	case "f16", "f32", "bf16", "u8":
	default:
		return fmt.Errorf("a KV cache of %q; use f16, bf16, f32 or u8", kv)
	}
	if kv == "f32" && inference != "" && inference != "f32" || kv == "bf16" && inference == "f32" {
		return fmt.Errorf("a KV cache of %s beside computing in %s; use f16", kv, inference)
	}
	if b.settings.Exact && kv != "f32" {
		return fmt.Errorf("a KV cache of %s where exact is set; use f32", kv)
	}
	return nil
}

// enough fails where a load would take more memory than there is: the kernel
// would not refuse it but end the process later.
func (b *Backend) enough(what string, need int64, hint string) error {
	free, known := engine.FreeMemory()
	if !known || need <= free {
		return nil
	}
	return fmt.Errorf("%w: %s take %d MiB and %d MiB are free; %s", transport.ErrInsufficientMemory, what, need>>20, free>>20, hint)
}

func (b *Backend) properties(c transport.Config) string {
	threads := b.settings.Threads
	if c.NumThreads > 0 {
		threads = c.NumThreads
	}
	kv, inference := b.kvPrecision(c), b.settings.InferencePrecision
	if kv == "f32" {
		inference = "f32" // the CPU's attention takes no other beside it
	}
	props := []string{"PERFORMANCE_HINT=LATENCY", "KV_CACHE_PRECISION=" + kv}
	if b.settings.Device == "CPU" {
		props = append(props, "INFERENCE_NUM_THREADS="+strconv.Itoa(threads))
	}
	if b.settings.Exact {
		props = append(props, "DYNAMIC_QUANTIZATION_GROUP_SIZE=0")
	}
	if inference != "" {
		props = append(props, "INFERENCE_PRECISION_HINT="+inference)
	}
	if dir := b.settings.CacheDir; dir != "" {
		props = append(props, "CACHE_DIR="+dir)
	}
	return strings.Join(props, "\n")
}

// open fills r in. What it made by the time of an error, r.Close frees.
func (b *Backend) open(r *Runner, spec engine.ModelSpec) error {
	if err := b.enough("the weights", r.facts.weights, "use a smaller model"); err != nil {
		return err
	}
	if err := call(func(e *byte, n uint64) int32 {
		return r.lib.open(r.facts.dir, b.settings.Device, b.properties(spec.Config), r.lib.extension, &r.model, e, n)
	}); err != nil {
		return err
	}
	var shape [5]int64
	r.lib.info(r.model, &shape[0])
	r.vocab, r.blockTokens, r.blockBytes = int(shape[1]), int(shape[2]), int(shape[3])
	if r.vocab <= 0 || r.blockTokens <= 0 || r.blockBytes <= 0 {
		return fmt.Errorf("a vocabulary of %d, KV blocks of %d tokens and %d bytes", r.vocab, r.blockTokens, r.blockBytes)
	}
	r.precision = b.kvPrecision(spec.Config)

	info, err := b.describe(r.facts, r.lib, spec.Config)
	if err != nil {
		return err
	}
	tokens := b.settings.KVTokens
	if tokens == 0 {
		tokens = info.EffectiveContext
	}
	// A partial block and one that is being copied, for every sequence.
	blocks := (tokens+r.blockTokens-1)/r.blockTokens + 2*b.settings.MaxSeqs
	kvBytes := int64(blocks) * int64(r.blockBytes)
	if err := b.enough(fmt.Sprintf("%d tokens of KV cache", tokens), kvBytes, "lower NumCtx or kv_tokens, or use a smaller kv_precision"); err != nil {
		return err
	}
	if err := call(func(e *byte, n uint64) int32 { return r.lib.alloc(r.model, int64(blocks), e, n) }); err != nil {
		return fmt.Errorf("%w: %d MiB of KV cache: %w", transport.ErrInsufficientMemory, kvBytes>>20, err)
	}
	r.tables = newBlockTables(blocks, r.blockTokens, b.settings.MaxSeqs)
	info.KVBytesPerToken = int64(r.blockBytes / r.blockTokens)
	info.RequiredBytes = info.WeightsBytes + kvBytes
	return r.learn(spec, info, tokens, b.settings)
}

// learn asks the model about itself.
func (r *Runner) learn(spec engine.ModelSpec, info transport.ModelInfo, kvTokens int, s Settings) error {
	batch := s.BatchTokens
	if spec.Config.NumBatch > 0 {
		batch = spec.Config.NumBatch
	}
	r.info = engine.Info{
		VocabSize: r.vocab, NumCtx: info.EffectiveContext, KVTokens: kvTokens,
		MaxSeqs: s.MaxSeqs, MaxBatch: max(batch, s.MaxSeqs),
		Caps:     engine.Caps{Truncate: true, Share: true, Save: true},
		Model:    info,
		Digest:   r.facts.digest,
		Sampling: r.facts.sampling,
	}
	if spec.Digest != "" {
		r.info.Digest = spec.Digest
	}
	r.info.BOSText, r.info.EOSText = r.facts.bosText, r.facts.eosText
	var err error
	if r.info.ChatTemplate, err = r.fact("chat_template"); err != nil {
		return err
	}
	if err := r.learnTokens(); err != nil {
		return err
	}
	r.info.AddBOS = r.ownBOS && !spec.Config.DisableBOS
	return r.learnPieces()
}

// learnTokens finds out which tokens begin and end texts.
func (r *Runner) learnTokens() error {
	eos, err := r.tokenFact("eos_token_id")
	if err != nil {
		return err
	}
	ends := r.facts.eos
	if eos >= 0 && !slices.Contains(ends, eos) {
		ends = append(ends, eos)
	}
	for _, t := range ends {
		if t < 0 || int(t) >= r.vocab {
			return fmt.Errorf("generation_config.json ends generations with token %d, the vocabulary has %d", t, r.vocab)
		}
	}
	r.info.EOG = ends
	if r.bos, err = r.tokenFact("bos_token_id"); err != nil {
		return err
	}
	probe, err := r.tokens("a")
	if err != nil {
		return err
	}
	r.ownBOS = r.bos >= 0 && len(probe) > 0 && probe[0] == r.bos
	return nil
}

// learnPieces makes the table of the vocabulary's texts.
func (r *Runner) learnPieces() error {
	anchor, err := r.Tokenize("a", false)
	if err != nil || len(anchor) == 0 {
		return err
	}
	r.pieces, err = learnPieces(r.detokenize, r.vocab, anchor[len(anchor)-1])
	return err
}

func (r *Runner) fact(key string) (string, error) {
	out := make([]byte, factBytes)
	err := call(func(e *byte, n uint64) int32 { return r.lib.fact(r.model, key, &out[0], factBytes, e, n) })
	return cText(out), err
}

// tokenFact is a token's id, -1 where the model names none.
func (r *Runner) tokenFact(key string) (engine.Token, error) {
	text, err := r.fact(key)
	if err != nil || text == "" {
		return -1, err
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 0 || int(n) >= r.vocab {
		return -1, fmt.Errorf("%s is %q, which is no token of %d", key, text, r.vocab)
	}
	return engine.Token(n), nil
}
