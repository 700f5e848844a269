package llamarunner

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"

	"modeld/core/transport"
	"modeld/plugins/llama/gguf"
)

// facts is what a model's files say about it, read without native code.
type facts struct {
	paths    []string // all parts, in order
	arch     string
	maxCtx   int
	layers   int
	embd     int
	vocab    int
	headsKV  []int64 // of each layer
	keyLen   int
	valueLen int
	window   int // sliding window, 0 for none
	pooling  int // llama_pooling_type, -1 where the file states none
	weights  int64
	template string
	digest   string
	stamp    string // changes when a file changes
}

var splitName = regexp.MustCompile(`^(.*)-(\d{5})-of-(\d{5})\.gguf$`)

// readFacts checks the files of a model and reads what they say.
func readFacts(ctx context.Context, path string) (*facts, error) {
	parts, err := modelParts(path)
	if err != nil {
		return nil, err
	}
	f := &facts{paths: parts, pooling: -1}
	sum := sha256.New()
	for i, part := range parts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		file, err := gguf.Open(part)
		if err != nil {
			return nil, fmt.Errorf("llama: %w: %w", transport.ErrModelLoadFailed, err)
		}
		if i == 0 {
			if err := f.read(file); err != nil {
				return nil, fmt.Errorf("llama: %w: %s: %w", transport.ErrModelLoadFailed, part, err)
			}
		}
		f.weights += file.TensorBytes()
		if err := f.identify(sum, file, part); err != nil {
			return nil, fmt.Errorf("llama: %w: %w", transport.ErrModelLoadFailed, err)
		}
	}
	f.digest = "sampled-sha256:" + hex.EncodeToString(sum.Sum(nil))
	return f, nil
}

// modelParts returns the files of the model at path, all of which are there.
func modelParts(path string) ([]string, error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("llama: %w: there is no file %s", transport.ErrModelNotFound, path)
	case err != nil:
		return nil, fmt.Errorf("llama: %w: %w", transport.ErrModelLoadFailed, err)
	case st.IsDir():
		return nil, fmt.Errorf("llama: %w: %s is a folder; llama loads a GGUF file, an OpenVINO folder needs --backend openvino", transport.ErrBackendMismatch, path)
	}
	m := splitName.FindStringSubmatch(path)
	if m == nil {
		return []string{path}, nil
	}
	count, _ := strconv.Atoi(m[3])
	if no, _ := strconv.Atoi(m[2]); count == 0 || no == 0 || no > count {
		return nil, fmt.Errorf("llama: %w: %s: a part's name must say a number from 1 to the number of parts", transport.ErrModelLoadFailed, path)
	}
	parts := make([]string, count)
	for i := range parts {
		parts[i] = fmt.Sprintf("%s-%05d-of-%05d.gguf", m[1], i+1, count)
		if _, err := os.Stat(parts[i]); err != nil {
			return nil, fmt.Errorf("llama: %w: part %d of %d is missing: %w", transport.ErrModelLoadFailed, i+1, count, err)
		}
	}
	return parts, nil
}

func (f *facts) read(file *gguf.File) error {
	if f.arch = file.Text("general.architecture"); f.arch == "" {
		return errors.New("general.architecture is missing")
	}
	if t := file.Text("general.type"); t != "" && t != "model" {
		return fmt.Errorf("it is a GGUF of type %q, not a model", t)
	}
	if n, _ := file.Uint("split.count"); n > 1 && len(f.paths) == 1 {
		return fmt.Errorf("it is a part of a model of %d files, whose names must end in -00001-of-%05d.gguf", n, n)
	}
	num := func(key string) int {
		n, _ := file.Uint(f.arch + "." + key)
		return int(min(n, 1<<31-1))
	}
	f.maxCtx, f.layers, f.embd = num("context_length"), num("block_count"), num("embedding_length")
	if f.layers == 0 || f.embd == 0 || f.layers > 4096 {
		return fmt.Errorf("it states %d layers of width %d", f.layers, f.embd)
	}
	f.window = num("attention.sliding_window")
	f.vocab = max(num("vocab_size"), file.KV["tokenizer.ggml.tokens"].Len)
	if n, ok := file.Uint(f.arch + ".pooling_type"); ok {
		f.pooling = int(n)
	}
	heads := file.PerLayer(f.arch+".attention.head_count", f.layers)
	if f.headsKV = file.PerLayer(f.arch+".attention.head_count_kv", f.layers); f.headsKV == nil {
		f.headsKV = heads
	}
	var most int64
	for _, h := range heads {
		most = max(most, h)
	}
	if most > 0 {
		f.keyLen = f.embd / int(min(most, int64(f.embd)))
	}
	f.valueLen = f.keyLen
	if n := num("attention.key_length"); n > 0 {
		f.keyLen = n
	}
	if n := num("attention.value_length"); n > 0 {
		f.valueLen = n
	}
	f.template = file.Text("tokenizer.chat_template")
	return nil
}

// identify adds to sum what tells this file from another: its header, its size
// and samples of its data. Hashing all of a large model would take longer than
// loading it.
func (f *facts) identify(sum hash.Hash, file *gguf.File, path string) error {
	const samples, sample = 64, 16 << 10
	r, err := os.Open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	st, err := r.Stat()
	if err != nil {
		return err
	}
	f.stamp += fmt.Sprintf("%s %d %d;", path, st.Size(), st.ModTime().UnixNano())
	sum.Write(binary.LittleEndian.AppendUint64(nil, uint64(file.Size)))
	head := min(file.DataOffset, file.Size)
	if _, err := io.Copy(sum, io.NewSectionReader(r, 0, head)); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	stride := max((file.Size-head)/samples, sample)
	for at := head; at < file.Size; at += stride {
		if _, err := io.Copy(sum, io.NewSectionReader(r, at, sample)); err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
	}
	return nil
}
