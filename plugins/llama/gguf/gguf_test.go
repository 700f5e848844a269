package gguf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"strings"
	"testing"

	"modeld/internal/testparts"
)

// builder writes GGUF files, right and wrong ones.
type builder struct{ bytes.Buffer }

func (b *builder) u32(v uint32)  { b.Write(binary.LittleEndian.AppendUint32(nil, v)) }
func (b *builder) u64(v uint64)  { b.Write(binary.LittleEndian.AppendUint64(nil, v)) }
func (b *builder) text(s string) { b.u64(uint64(len(s))); b.WriteString(s) }
func (b *builder) head(version uint32, tensors, pairs uint64) {
	b.WriteString("GGUF")
	b.u32(version)
	b.u64(tensors)
	b.u64(pairs)
}

// small is a complete file: five metadata pairs and one f32 tensor of 2 x 3.
func small() []byte {
	var b builder
	b.head(3, 1, 5)
	b.text("general.architecture")
	b.u32(uint32(TypeString))
	b.text("llama")
	b.text("llama.block_count")
	b.u32(uint32(TypeUint32))
	b.u32(2)
	b.text("tokens")
	b.u32(uint32(TypeArray))
	b.u32(uint32(TypeString))
	b.u64(2)
	b.text("a")
	b.text("bc")
	b.text("heads")
	b.u32(uint32(TypeArray))
	b.u32(uint32(TypeInt32))
	b.u64(2)
	b.u32(4)
	b.u32(math.MaxUint32) // -1
	b.text("flag")
	b.u32(uint32(TypeBool))
	b.WriteByte(1)
	b.text("weight")
	b.u32(2)
	b.u64(2)
	b.u64(3)
	b.u32(0)
	b.u64(0)
	b.Write(make([]byte, (32-b.Len()%32)%32))
	b.Write(make([]byte, 24))
	return b.Bytes()
}

func read(data []byte) (*File, error) { return Read(bytes.NewReader(data), int64(len(data))) }

func TestRead(t *testing.T) {
	data := small()
	f, err := read(data)
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := f.Uint("llama.block_count"); n != 2 || !ok {
		t.Errorf("Uint = %d %v", n, ok)
	}
	if got := f.Text("general.architecture"); got != "llama" {
		t.Errorf("Text = %q", got)
	}
	if v, ok := f.Flag("flag"); !v || !ok {
		t.Errorf("Flag = %v %v", v, ok)
	}
	if v := f.KV["tokens"]; v.Len != 2 || v.Elem != TypeString {
		t.Errorf("tokens = %+v", v)
	}
	if got := f.PerLayer("heads", 1); len(got) != 1 || got[0] != 4 {
		t.Errorf("PerLayer(heads, 1) = %v", got)
	}
	if got := f.PerLayer("heads", 2); got != nil {
		t.Errorf("PerLayer with a negative value = %v, want nil", got)
	}
	if got := f.PerLayer("llama.block_count", 3); len(got) != 3 || got[2] != 2 {
		t.Errorf("PerLayer of a scalar = %v", got)
	}
	if len(f.Tensors) != 1 || f.TensorBytes() != 24 || f.DataOffset+24 != int64(len(data)) {
		t.Errorf("tensors %+v, data at %d of %d", f.Tensors, f.DataOffset, len(data))
	}
}

func TestReadRefuses(t *testing.T) {
	with := func(make func(b *builder)) []byte {
		var b builder
		make(&b)
		b.Write([]byte(strings.Repeat("\x00", 256)))
		return b.Bytes()
	}
	pair := func(key string, typ ValueType, rest ...byte) func(*builder) {
		return func(b *builder) {
			b.head(3, 0, 1)
			b.text(key)
			b.u32(uint32(typ))
			b.Write(rest)
		}
	}
	tests := []struct {
		name, says string
		data       []byte
	}{
		{"empty", "magic number", nil},
		{"other file", `starts with "PK`, []byte("PK\x03\x04 and more")},
		{"version 1", "version 1", with(func(b *builder) { b.head(1, 0, 0) })},
		{"big-endian", "big-endian", with(func(b *builder) { b.head(3<<24, 0, 0) })},
		{"too many tensors", "number of tensors", with(func(b *builder) { b.head(3, math.MaxUint64, 0) })},
		{"too many pairs", "number of metadata pairs", with(func(b *builder) { b.head(3, 0, math.MaxUint64) })},
		{"key longer than the file", "length of the key", with(func(b *builder) { b.head(3, 0, 1); b.u64(1 << 60) })},
		{"no key", "empty or there twice", with(pair("", TypeUint32))},
		{"unknown type", "unknown type 99", with(pair("k", 99))},
		{"array of arrays", "unusable type 9", with(pair("k", TypeArray, 9, 0, 0, 0))},
		{"endless array", "length of k", with(pair("k", TypeArray, 4, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 127))},
		{"alignment 3", "power of two", with(pair("general.alignment", TypeUint32, 3, 0, 0, 0))},
		{"boolean 7", "boolean 7", with(pair("k", TypeBool, 7))},
		{"five dimensions", "5 dimensions", with(func(b *builder) { b.head(3, 1, 0); b.text("t"); b.u32(5) })},
		{"zero dimension", "impossible dimension", with(func(b *builder) { b.head(3, 1, 0); b.text("t"); b.u32(1); b.u64(0) })},
		{"overflowing dimensions", "impossible dimension", with(func(b *builder) {
			b.head(3, 1, 0)
			b.text("t")
			b.u32(2)
			b.u64(1 << 40)
			b.u64(1 << 40)
		})},
		{"unknown tensor type", "unknown type 5", with(func(b *builder) { b.head(3, 1, 0); b.text("t"); b.u32(1); b.u64(32); b.u32(5) })},
		{"half a block", "not a multiple of 32", with(func(b *builder) { b.head(3, 1, 0); b.text("t"); b.u32(1); b.u64(33); b.u32(2) })},
		{"data beyond the end", "truncated or damaged", with(func(b *builder) {
			b.head(3, 1, 0)
			b.text("t")
			b.u32(1)
			b.u64(1 << 20)
			b.u32(0)
			b.u64(0)
		})},
		{"unaligned data", "not aligned", with(func(b *builder) {
			b.head(3, 1, 0)
			b.text("t")
			b.u32(1)
			b.u64(1)
			b.u32(0)
			b.u64(1)
		})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := read(tt.data)
			if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want an ErrFormat that says %q", err, tt.says)
			}
		})
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	data := small()
	for n := range data {
		if _, err := read(data[:n]); !errors.Is(err, ErrFormat) {
			t.Fatalf("cut to %d of %d bytes: error %v", n, len(data), err)
		}
	}
	// A file that is shorter than its stated size, as when it shrinks meanwhile.
	if _, err := Read(bytes.NewReader(data[:40]), int64(len(data))); !errors.Is(err, ErrFormat) {
		t.Errorf("short read: error %v", err)
	}
}

func TestReadsTheTestModel(t *testing.T) {
	f, err := Open(testparts.Model(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := f.Text("general.architecture"); got != "llama" {
		t.Errorf("architecture %q", got)
	}
	if n, _ := f.Uint("llama.context_length"); n != 8192 {
		t.Errorf("context length %d", n)
	}
	if n := f.KV["tokenizer.ggml.tokens"].Len; n != 49152 {
		t.Errorf("%d tokens", n)
	}
	if !strings.Contains(f.Text("tokenizer.chat_template"), "<|im_start|>") {
		t.Error("no chat template")
	}
	if end := f.DataOffset + f.TensorBytes(); end > f.Size || end < f.Size-1024 {
		t.Errorf("tensors end at %d of %d", end, f.Size)
	}
}

func TestOpenRefusesWhatIsNoFile(t *testing.T) {
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrFormat) {
		t.Errorf("folder: %v", err)
	}
	if _, err := Open("/nonexistent.gguf"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func FuzzGGUF(f *testing.F) {
	f.Add(small())
	f.Add([]byte("GGUF\x03\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := read(data)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error is not ErrFormat: %v", err)
			}
			return
		}
		for _, tensor := range file.Tensors {
			if end := file.DataOffset + tensor.Offset + tensor.Size; end > file.Size || end < 0 {
				t.Fatalf("accepted tensor %+v outside a file of %d bytes", tensor, file.Size)
			}
		}
		for key := range file.KV {
			file.Uint(key)
			file.PerLayer(key, 4)
		}
	})
}
