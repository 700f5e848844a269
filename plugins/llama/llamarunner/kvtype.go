package llamarunner

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hybridgroup/yzma/pkg/llama"

	"modeld/core/transport"
	"modeld/plugins/llama/gguf"
)

// kvType is the element type of the KV cache.
type kvType struct {
	name string
	ggml llama.GGMLType
}

var kvTypes = []kvType{
	{"f16", llama.GGMLTypeF16}, {"f32", llama.GGMLTypeF32}, {"bf16", llama.GGMLTypeBF16},
	{"q8_0", llama.GGMLTypeQ8_0}, {"q5_0", llama.GGMLTypeQ5_0}, {"q5_1", llama.GGMLTypeQ5_1},
	{"q4_0", llama.GGMLTypeQ4_0}, {"q4_1", llama.GGMLTypeQ4_1}, {"iq4_nl", llama.GGMLTypeIQ4_NL},
}

func parseKVType(name string) (kvType, error) {
	if name == "" {
		return kvTypes[0], nil
	}
	i := slices.IndexFunc(kvTypes, func(t kvType) bool { return t.name == name })
	if i < 0 {
		names := make([]string, len(kvTypes))
		for i, t := range kvTypes {
			names[i] = t.name
		}
		return kvType{}, fmt.Errorf("llama: %w: KV cache type %q; there are: %s",
			transport.ErrUnsupportedFeature, name, strings.Join(names, ", "))
	}
	return kvTypes[i], nil
}

// block returns the elements and bytes of a block.
func (t kvType) block() (elems, bytes int64) {
	elems, bytes, _ = gguf.TensorType(t.ggml).Layout()
	return elems, bytes
}

// quantized types store blocks and need flash attention for the values.
func (t kvType) quantized() bool {
	elems, _ := t.block()
	return elems > 1
}

// fits fails where a head's size is not a whole number of blocks.
func (t kvType) fits(f *facts) error {
	elems, _ := t.block()
	if int64(f.keyLen)%elems != 0 || int64(f.valueLen)%elems != 0 {
		return fmt.Errorf("llama: %w: KV cache type %s needs heads of a multiple of %d, this model's have %d and %d; use f16",
			transport.ErrUnsupportedFeature, t.name, elems, f.keyLen, f.valueLen)
	}
	return nil
}

// bytesPerToken is the KV of one position in all layers.
func (t kvType) bytesPerToken(f *facts) int64 {
	elems, bytes := t.block()
	var n int64
	for _, heads := range f.headsKV {
		n += heads * int64(f.keyLen+f.valueLen) * bytes / elems
	}
	return n
}
