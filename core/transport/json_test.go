package transport

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// TestJSONKeys holds the wire still: for every struct the keys of a full value,
// in order, and of a zero one (what is not omitempty).
func TestJSONKeys(t *testing.T) {
	const config = "NumCtx HotContextTokens PlannerEffectiveContext NumBatch NumThreads NumGpuLayers TensorSplit FlashAttn " +
		"KVCacheType PromptFormat PromptTemplateDigest DisableBOS ReasoningFormat"
	for _, c := range []struct {
		value      any
		full, zero string // zero "=" is the same as full
	}{
		{Fence{}, "OwnerInstanceID", "="},
		{Config{}, config, "="},
		{OpenSessionRequest{}, "OwnerInstanceID ModelName Type Digest Path Config adapters reclaimable_bytes",
			"OwnerInstanceID ModelName Type Digest Path Config"},
		{EmbedRequest{}, "OwnerInstanceID ModelName Type Digest Path Config Text", "="},
		{EmbedResult{}, "vector", ""},
		{AdapterSpec{}, "name path digest scale", ""},
		{ModelInfo{}, "model_max_context effective_context memory_context_tokens hot_context_tokens planner_effective_context " +
			"kv_bytes_per_token free_bytes weights_bytes overhead_bytes reserved_bytes user_limit_bytes min_free_bytes " +
			"host_cold_budget_bytes usable_bytes required_bytes clamped reason device_kind device_id device_total_bytes " +
			"shared_with_display requested_gpu_layers resolved_gpu_layers sparse_attention sliding_window_attention_tokens " +
			"supports_vision vision_tokens_per_image chat_template_format chat_template_thinking_start_tag " +
			"chat_template_reasoning_format chat_template_supports_tool_calls chat_template_supports_thinking " +
			"chat_template_supports_reasoning_effort runtime_name runtime_digest runtime_system_info supports_gpu_offload devices",
			"model_max_context effective_context"},
		{DeviceInfo{}, "index name description type memory_free memory_total memory_free_known memory_total_known", "index"},
		{ActiveModel{}, "model_name type digest path config adapters generation", "config generation"},
		{DaemonStatus{}, "owner_instance_id backend state active busy_operation last_error sessions", ""},
		{LoadModelRequest{}, "OwnerInstanceID ModelName Type Digest Path Config adapters ExpectedGeneration",
			"OwnerInstanceID ModelName Type Digest Path Config ExpectedGeneration"},
		{UnloadModelRequest{}, "OwnerInstanceID ExpectedGeneration", "="},
		{PrefixInput{}, "Text Manifest Tools images", "Text Manifest"},
		{SuffixInput{}, "Text Manifest EnableThinking ReasoningEffort images", "Text Manifest"},
		{ImagePart{}, "data mime_type", ""},
		{PrefixStatus{}, "ReusedTokens PrefilledTokens DroppedTokens PrefixTokens ResidentTokens AvailableTokens " +
			"StableByteHash StableTokenHash ManifestDigest", "="},
		{SuffixStatus{}, "SuffixTokens PrefixTokens ResidentTokens AvailableTokens ManifestDigest", "="},
		{DecodeConfig{}, "MaxTokens Temperature TopP TopK Seed ParserProtocols ReasoningFormat StructuredOutput", "="},
		{StructuredOutputConfig{}, "Protocol Payload ToolName", "="},
		{ToolCall{}, "id type function", "type function"},
		{ToolCallFunction{}, "name arguments", "="},
		{ContextReport{}, "ResidentTokens PrefixTokens NumCtx HotContextTokens PlannerEffectiveContext AvailableTokens " +
			"StableByteHash StableTokenHash ManifestDigest Manifest Closed fatal_error physical_prefill_calls " +
			"physical_prefill_tokens deferred_prefill_calls deferred_prefill_tokens decode_calls decode_prompt_tokens residency",
			"ResidentTokens PrefixTokens NumCtx HotContextTokens PlannerEffectiveContext AvailableTokens " +
				"StableByteHash StableTokenHash ManifestDigest Manifest Closed"},
		{ResidencyReport{}, "budget_tokens total_tokens hot_tokens cold_tokens protected_tokens hot_blocks cold_blocks " +
			"over_budget capabilities diagnostics error", "capabilities"},
		{ResidencyCapabilities{}, "remove_tail remove_middle position_shift sparse_attention " +
			"sliding_window_attention_tokens cold_store recompute_range", ""},
		{SessionSnapshot{}, "state_id resident_tokens prefix_tokens num_ctx resident_token_ids cold_kv_blocks stable_text " +
			"prefix_text tools manifest", "manifest"},
		{ColdKVBlock{}, "start end tokens prefix_tokens token_hash kv cache_class last_used", ""},
		{NodeModel{}, "name type digest size_bytes context_length", "name type"},
		{NodeDiskStats{}, "free_bytes used_bytes total_bytes", "="},
		{PushManifest{}, "name type digest total_bytes format", "name type format"},
		{PushResult{}, "already_present bytes_written", ""},
		{ContextManifest{}, "profile_id backend backend_version model_digest prompt_format prompt_template_digest " +
			"runtime_digest add_bos stable_bytes total_bytes stable_byte_hash stable_token_hash volatile_token_hash segments",
			"backend prompt_format prompt_template_digest runtime_digest add_bos stable_bytes total_bytes stable_byte_hash"},
		{ManifestSegment{}, "kind stable cache_class invalidation byte_start byte_end byte_hash token_start token_end " +
			"token_hash tool_calls_json tool_call_id", "kind stable byte_start byte_end byte_hash"},
		{ContextOverflowDetail{}, "stage resident_tokens additional_tokens num_ctx", "="},
	} {
		typ := reflect.TypeOf(c.value)
		t.Run(typ.Name(), func(t *testing.T) {
			full := reflect.New(typ).Elem()
			fill(full)
			if got := keys(t, full.Interface()); got != c.full {
				t.Errorf("keys of a full value:\n got %s\nwant %s", got, c.full)
			}
			want := c.zero
			if want == "=" {
				want = c.full
			}
			if got := keys(t, c.value); got != want {
				t.Errorf("keys of a zero value:\n got %s\nwant %s", got, want)
			}
			back := reflect.New(typ)
			data, err := json.Marshal(full.Interface())
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(data, back.Interface()); err != nil {
				t.Fatal(err)
			}
			if again, _ := json.Marshal(back.Elem().Interface()); !bytes.Equal(again, data) {
				t.Errorf("a round trip changes\n%s\nto\n%s", data, again)
			}
		})
	}
}

// keys returns the top-level keys of a value's JSON, in order.
func keys(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if _, err := dec.Token(); err != nil {
		t.Fatal(err)
	}
	var out []string
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, key.(string))
		var skip json.RawMessage
		if err := dec.Decode(&skip); err != nil {
			t.Fatal(err)
		}
	}
	return strings.Join(out, " ")
}

// fill sets every field to something that is not zero.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint8, reflect.Uint64:
		v.SetUint(7)
	case reflect.Float32, reflect.Float64:
		v.SetFloat(0.5)
	default:
		panic("fill: add " + v.Kind().String())
	}
}

func TestSnapshotStateStaysInTheProcess(t *testing.T) {
	data, err := json.Marshal(SessionSnapshot{StateID: "s1", State: []byte("secret")})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), "c2VjcmV0") || strings.Contains(string(data), "State\"") {
		t.Errorf("the state is in the JSON: %s", data)
	}
}
