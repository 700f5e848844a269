package transporttest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"slices"
	"strings"

	"modeld/core/transport"
)

func checkSnapshot(s *suite) {
	sess := s.open()
	st := s.prefix(sess, s.Prompt(10))
	su := s.suffix(sess, " "+s.Prompt(3))
	snap, err := sess.Snapshot(s.ctx())
	if s.lacks(Snapshots) {
		s.refused("Snapshot", err)
		return
	}
	if err != nil {
		s.Fatalf("Snapshot: %v", err)
	}
	if snap.ResidentTokens != su.ResidentTokens || snap.PrefixTokens != st.PrefixTokens {
		s.Errorf("the snapshot has %d resident and %d prefix tokens, want %d and %d",
			snap.ResidentTokens, snap.PrefixTokens, su.ResidentTokens, st.PrefixTokens)
	}
	want := s.decode(sess, 6)

	restore := func(name string, into transport.Session) {
		if err := into.Restore(s.ctx(), snap); err != nil {
			s.Fatalf("Restore into %s: %v", name, err)
		}
		if r := s.report(into); r.ResidentTokens != su.ResidentTokens || r.PrefixTokens != st.PrefixTokens {
			s.Errorf("%s has %d resident and %d prefix tokens after Restore, want %d and %d",
				name, r.ResidentTokens, r.PrefixTokens, su.ResidentTokens, st.PrefixTokens)
		}
		if g := s.decode(into, 6); g.text != want.text && !s.lacks(ExactDecode) {
			s.Errorf("%s generates %q after Restore, want %q", name, g.text, want.text)
		}
	}
	restore("the same session", sess)
	restore("a new session", s.open())
	busy := s.open()
	s.prefix(busy, "Quite another text: "+s.Prompt(4))
	restore("a session with another context", busy)
}

func checkSnapshotDamaged(s *suite) {
	sess := s.open()
	s.prefix(sess, s.Prompt(6))
	snap, err := sess.Snapshot(s.ctx())
	if s.lacks(Snapshots) {
		s.refused("Snapshot", err)
		return
	}
	if err != nil {
		s.Fatalf("Snapshot: %v", err)
	}
	damages := map[string]func(*transport.SessionSnapshot){
		"an impossible token": func(d *transport.SessionSnapshot) {
			d.StateID = ""
			d.ResidentTokenIDs = slices.Clone(d.ResidentTokenIDs)
			d.ResidentTokenIDs[0] = math.MaxInt32
		},
		"a negative token": func(d *transport.SessionSnapshot) {
			d.StateID = ""
			d.ResidentTokenIDs = slices.Clone(d.ResidentTokenIDs)
			d.ResidentTokenIDs[0] = -1
		},
		"a wrong count": func(d *transport.SessionSnapshot) { d.ResidentTokens++ },
		"a prefix longer than the context": func(d *transport.SessionSnapshot) {
			d.PrefixTokens = d.ResidentTokens + 1
		},
	}
	if len(snap.ResidentTokenIDs) == 0 {
		s.Fatal("the snapshot has no ResidentTokenIDs, by which alone it can be recomputed elsewhere")
	}
	for name, damage := range damages {
		damaged := snap
		damage(&damaged)
		if err := sess.Restore(s.ctx(), damaged); !errors.Is(err, transport.ErrManifestMismatch) {
			s.Errorf("Restore of a snapshot with %s: %v, want ErrManifestMismatch", name, err)
		}
	}
	s.prefix(sess, s.Prompt(6))
	s.decode(sess, 2)
}

func checkDescribe(s *suite) {
	info, err := s.svc.Describe(s.ctx(), s.Request)
	if err != nil {
		s.Fatalf("Describe: %v", err)
	}
	if info.EffectiveContext <= 0 {
		s.Errorf("EffectiveContext is %d", info.EffectiveContext)
	}
	if info.ModelMaxContext > 0 && info.EffectiveContext > info.ModelMaxContext {
		s.Errorf("EffectiveContext %d exceeds ModelMaxContext %d", info.EffectiveContext, info.ModelMaxContext)
	}
	if info.Clamped && info.Reason == "" {
		s.Error("Clamped without a Reason")
	}
	for name, n := range map[string]int64{
		"kv_bytes_per_token": info.KVBytesPerToken, "free_bytes": info.FreeBytes,
		"weights_bytes": info.WeightsBytes, "required_bytes": info.RequiredBytes,
	} {
		if n < 0 {
			s.Errorf("%s is %d", name, n)
		}
	}
	again, err := s.svc.Describe(s.ctx(), s.Request)
	if err != nil {
		s.Fatalf("Describe: %v", err)
	}
	if again.ModelMaxContext != info.ModelMaxContext || again.WeightsBytes != info.WeightsBytes {
		s.Errorf("Describe said %+v, then %+v", info, again)
	}
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	if _, err := s.svc.Describe(ctx, s.Request); err != nil && !errors.Is(err, context.Canceled) {
		s.Errorf("Describe with an ended context: %v, want context.Canceled", err)
	}
}

func checkEmbed(s *suite) {
	embed := func(text string) ([]float32, error) {
		r := s.Request
		res, err := s.svc.Embed(s.ctx(), transport.EmbedRequest{
			Fence: r.Fence, ModelName: r.ModelName, Type: r.Type, Digest: r.Digest, Path: r.Path, Config: r.Config, Text: text,
		})
		return res.Vector, err
	}
	one, err := embed("The boats came home in the evening.")
	if s.lacks(Embeddings) {
		s.refused("Embed", err)
		return
	}
	if err != nil {
		s.Fatalf("Embed: %v", err)
	}
	var square float64
	for _, x := range one {
		square += float64(x) * float64(x)
	}
	if math.Abs(math.Sqrt(square)-1) > 1e-3 {
		s.Errorf("an embedding of %d numbers has length %g, want 1", len(one), math.Sqrt(square))
	}
	again, err := embed("The boats came home in the evening.")
	if err != nil {
		s.Fatalf("Embed: %v", err)
	}
	if d := cosine(one, again); d < 0.999 {
		s.Errorf("the same text's embeddings have a cosine of %g", d)
	}
	other, err := embed("func main() { panic(42) }")
	if err != nil {
		s.Fatalf("Embed: %v", err)
	}
	if len(other) != len(one) || cosine(one, other) > 0.9999 {
		s.Errorf("another text has the same embedding, or one of another size (%d and %d)", len(one), len(other))
	}
}

func cosine(a, b []float32) float64 {
	var dot float64
	for i := range min(len(a), len(b)) {
		dot += float64(a[i]) * float64(b[i])
	}
	return dot
}

// refused checks that a feature that the Service is said to lack is refused as
// the contract wants it.
func (s *suite) refused(call string, err error) {
	s.Helper()
	if !errors.Is(err, transport.ErrUnsupportedFeature) {
		s.Errorf("%s of a service that is said to lack it: %v, want ErrUnsupportedFeature", call, err)
	}
}

func checkControl(s *suite) {
	ctl, ok := s.svc.(transport.ModelController)
	if !ok {
		if !s.lacks(ModelControl) {
			s.Fatal("the service is no transport.ModelController; say so in Options.Lacks")
		}
		return
	}
	r := s.Request
	load := transport.LoadModelRequest{
		Fence: r.Fence, ModelName: r.ModelName, Type: r.Type, Digest: r.Digest, Path: r.Path, Config: r.Config, Adapters: r.Adapters,
	}
	active, err := ctl.LoadModel(s.ctx(), load)
	if s.lacks(ModelControl) {
		s.refused("LoadModel", err)
		_, err = ctl.Status(s.ctx())
		s.refused("Status", err)
		s.refused("UnloadModel", ctl.UnloadModel(s.ctx(), transport.UnloadModelRequest{Fence: r.Fence}))
		return
	}
	if err != nil {
		s.Fatalf("LoadModel: %v", err)
	}
	if active.Generation == 0 {
		s.Error("the generation of a loaded model is 0")
	}
	st, err := ctl.Status(s.ctx())
	if err != nil {
		s.Fatalf("Status: %v", err)
	}
	if st.Active == nil || st.Active.Generation != active.Generation {
		s.Errorf("Status says %+v is active, LoadModel %+v", st.Active, active)
	}

	stale := load
	stale.ExpectedGeneration = active.Generation + 1
	if _, err := ctl.LoadModel(s.ctx(), stale); !errors.Is(err, transport.ErrSlotGenerationStale) {
		s.Errorf("LoadModel with another generation: %v, want ErrSlotGenerationStale", err)
	}
	unload := transport.UnloadModelRequest{Fence: r.Fence, ExpectedGeneration: active.Generation + 1}
	if err := ctl.UnloadModel(s.ctx(), unload); !errors.Is(err, transport.ErrSlotGenerationStale) {
		s.Errorf("UnloadModel with another generation: %v, want ErrSlotGenerationStale", err)
	}

	sess := s.open()
	unload.ExpectedGeneration = active.Generation
	if err := ctl.UnloadModel(s.ctx(), unload); !errors.Is(err, transport.ErrModelBusy) {
		s.Errorf("UnloadModel with an open session: %v, want ErrModelBusy", err)
	}
	if err := sess.Close(); err != nil {
		s.Fatalf("Close: %v", err)
	}
	if err := ctl.UnloadModel(s.ctx(), unload); err != nil {
		s.Fatalf("UnloadModel: %v", err)
	}
	if st, err := ctl.Status(s.ctx()); err != nil || st.Active != nil {
		s.Errorf("Status after UnloadModel: %+v, %v; want nothing active", st, err)
	}
	unload.ExpectedGeneration = 0
	if err := ctl.UnloadModel(s.ctx(), unload); !errors.Is(err, transport.ErrModelNotActive) {
		s.Errorf("UnloadModel of an empty slot: %v, want ErrModelNotActive", err)
	}
	next, err := ctl.LoadModel(s.ctx(), load)
	if err != nil {
		s.Fatalf("LoadModel after UnloadModel: %v", err)
	}
	if next.Generation <= active.Generation {
		s.Errorf("the generation went from %d to %d", active.Generation, next.Generation)
	}
}

func checkStore(s *suite) {
	store, ok := s.svc.(transport.NodeAdmin)
	if !ok {
		if !s.lacks(Store) {
			s.Fatal("the service is no transport.NodeAdmin; say so in Options.Lacks")
		}
		return
	}
	const name = "transporttest-no-such-model"
	data := "not a model"
	sum := sha256.Sum256([]byte("other bytes"))
	push := func() error {
		_, err := store.ReceiveModel(s.ctx(), transport.PushManifest{
			Name: name, Type: "llama", Digest: hex.EncodeToString(sum[:]), TotalBytes: int64(len(data)), Format: transport.PushFormatFile,
		}, io.MultiReader(strings.NewReader(data[:3]), strings.NewReader(data[3:])))
		return err
	}
	models, err := store.ListModels(s.ctx())
	if s.lacks(Store) {
		s.refused("ListModels", err)
		s.refused("RemoveModel", store.RemoveModel(s.ctx(), name))
		_, err = store.DiskStats(s.ctx())
		s.refused("DiskStats", err)
		s.refused("ReceiveModel", push())
		return
	}
	if err != nil {
		s.Fatalf("ListModels: %v", err)
	}
	if err := store.RemoveModel(s.ctx(), name); !errors.Is(err, transport.ErrModelNotFound) {
		s.Errorf("RemoveModel of an unknown model: %v, want ErrModelNotFound", err)
	}
	stats, err := store.DiskStats(s.ctx())
	if err != nil || stats.TotalBytes <= 0 || stats.FreeBytes < 0 || stats.UsedBytes < 0 || stats.UsedBytes > stats.TotalBytes {
		s.Errorf("DiskStats: %+v, %v", stats, err)
	}
	if err := push(); !errors.Is(err, transport.ErrDigestMismatch) {
		s.Errorf("ReceiveModel of other bytes than announced: %v, want ErrDigestMismatch", err)
	}
	after, err := store.ListModels(s.ctx())
	if err != nil || len(after) != len(models) {
		s.Errorf("%d models after a refused push, %d before (%v)", len(after), len(models), err)
	}
}
