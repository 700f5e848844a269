package ovrunner

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"modeld/core/engine"
	"modeld/core/transport"
)

// facts is what a model's folder says about it, read without native code.
type facts struct {
	dir      string
	weights  int64
	maxCtx   int // 0: unknown
	eos      []engine.Token
	sampling engine.SamplingDefaults
	bosText  string // "" where no file says
	eosText  string
	template string
	digest   string
}

var modelFiles = []string{
	"openvino_model.xml", "openvino_model.bin",
	"openvino_tokenizer.xml", "openvino_tokenizer.bin",
	"openvino_detokenizer.xml", "openvino_detokenizer.bin",
}

// readFacts checks that a folder has what a model needs, and reads what it says.
func readFacts(dir string) (*facts, error) {
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("openvino: %w: there is no folder %s", transport.ErrModelNotFound, dir)
	case err != nil:
		return nil, fmt.Errorf("openvino: %w: %w", transport.ErrModelLoadFailed, err)
	case !st.IsDir():
		return nil, fmt.Errorf("openvino: %w: %s is a file; openvino loads a folder of OpenVINO IR; scripts/convert-gguf.sh %s FOLDER makes one of a GGUF file, and --backend llama loads that as it is",
			transport.ErrBackendMismatch, dir, dir)
	}
	f := &facts{dir: dir}
	sum := sha256.New()
	for _, name := range modelFiles {
		if err := f.identify(sum, filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("openvino: %w: %w", transport.ErrModelLoadFailed, err)
		}
	}
	f.digest = "sampled-sha256:" + hex.EncodeToString(sum.Sum(nil))
	if st, err := os.Stat(filepath.Join(dir, "openvino_model.bin")); err == nil {
		f.weights = st.Size()
	}
	if f.template, err = rtInfo(filepath.Join(dir, "openvino_tokenizer.xml"), "chat_template"); err != nil {
		return nil, fmt.Errorf("openvino: %w: %w", transport.ErrModelLoadFailed, err)
	}
	f.readConfigs()
	return f, nil
}

// readConfigs reads what optimum-intel leaves beside the model, where it is
// there.
func (f *facts) readConfigs() {
	var config struct {
		Max int `json:"max_position_embeddings"`
	}
	if readJSON(filepath.Join(f.dir, "config.json"), &config) == nil && config.Max > 0 {
		f.maxCtx = config.Max
	}
	var tokenizer struct {
		BOS any `json:"bos_token"`
		EOS any `json:"eos_token"`
	}
	if readJSON(filepath.Join(f.dir, "tokenizer_config.json"), &tokenizer) == nil {
		f.bosText, f.eosText = specialText(tokenizer.BOS), specialText(tokenizer.EOS)
	}
	var generation struct {
		EOS         any      `json:"eos_token_id"`
		Sample      bool     `json:"do_sample"`
		Temperature *float64 `json:"temperature"`
		TopP        *float64 `json:"top_p"`
		TopK        int      `json:"top_k"`
	}
	if readJSON(filepath.Join(f.dir, "generation_config.json"), &generation) != nil {
		return
	}
	if generation.Sample {
		f.sampling = engine.SamplingDefaults{Temperature: generation.Temperature, TopP: generation.TopP, TopK: generation.TopK}
	}
	ids, ok := generation.EOS.([]any)
	if !ok {
		ids = []any{generation.EOS}
	}
	for _, id := range ids {
		if n, ok := id.(float64); ok {
			f.eos = append(f.eos, engine.Token(n))
		}
	}
}

// specialText is a special token's text: a string, or an object's content.
func specialText(v any) string {
	if m, ok := v.(map[string]any); ok {
		v = m["content"]
	}
	text, _ := v.(string)
	return text
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// rtInfo returns the value of a key of an IR's rt_info, "" where it has none.
func rtInfo(path, key string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	dec := xml.NewDecoder(file)
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		if el, ok := token.(xml.StartElement); ok && el.Name.Local == key {
			for _, a := range el.Attr {
				if a.Name.Local == "value" {
					return a.Value, nil
				}
			}
		}
	}
}

// identify adds to sum what tells this file from another: its size and samples
// of its data.
func (f *facts) identify(sum hash.Hash, path string) error {
	const samples, sample = 64, 16 << 10
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return err
	}
	if st.Size() == 0 {
		return fmt.Errorf("%s is empty", path)
	}
	sum.Write(binary.LittleEndian.AppendUint64(nil, uint64(st.Size())))
	stride := max(st.Size()/samples, sample)
	for at := int64(0); at < st.Size(); at += stride {
		if _, err := io.Copy(sum, io.NewSectionReader(file, at, sample)); err != nil {
			return err
		}
	}
	return nil
}
