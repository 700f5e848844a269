package llamarunner

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/ebitengine/purego"
	"github.com/hybridgroup/yzma/pkg/llama"
	"github.com/hybridgroup/yzma/pkg/loader"
	"github.com/jupiterrider/ffi"

	"modeld/core/engine"
	"modeld/core/transport"
)

// wantVersion is the llama.cpp whose binary interface the Go binding (yzma
// v1.28.0) is written for. Structures differ between versions, so no other is
// called.
const wantVersion = "0.5.0"

// library is llama.cpp in this process. There is one, because a process can't
// hold two versions of it and the binding keeps its functions in globals.
type library struct {
	dir    string
	digest string // of libllama, "sha256:…"
	log    *nativeLog
	cancel *cancels

	tokenize   ffi.Fun
	detokenize ffi.Fun
	setAbort   ffi.Fun
}

var process struct {
	sync.Mutex
	lib *library
}

// openLibrary opens llama.cpp from dir at the first call and returns the same
// library later. The process stays usable when it fails.
func openLibrary(dir string) (*library, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("llama: library folder: %w", err)
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	process.Lock()
	defer process.Unlock()
	if l := process.lib; l != nil {
		if l.dir != dir {
			return nil, fmt.Errorf("llama: this process has llama.cpp from %s already and can't load it from %s too", l.dir, dir)
		}
		return l, nil
	}
	l, err := loadLibrary(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", transport.ErrModelLoadFailed, err)
	}
	process.lib = l
	return l, nil
}

func loadLibrary(dir string) (*library, error) {
	for _, name := range []string{"ggml-base", "ggml", "llama"} {
		path := loader.GetLibraryFilename(dir, name)
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("llama.cpp's library is not there: %w; run `make deps build`, or set lib_dir to a folder with llama.cpp v%s", err, wantVersion)
		}
	}
	path := loader.GetLibraryFilename(dir, "llama")
	if err := checkVersion(path); err != nil {
		return nil, err
	}
	if err := llama.Load(dir); err != nil {
		return nil, fmt.Errorf("opening llama.cpp in %s: %w", dir, err)
	}
	l := &library{dir: dir, log: newNativeLog(), cancel: newCancels()}
	var err error
	if l.digest, err = fileDigest(path); err != nil {
		return nil, err
	}
	if err := l.bind(); err != nil {
		return nil, err
	}
	llama.LogSet(l.log.callback)
	llama.Init()
	if llama.GGMLBackendDeviceCount() == 0 {
		return nil, fmt.Errorf("llama.cpp found no compute device: no libggml-cpu-*.so in %s runs on this CPU", dir)
	}
	return l, nil
}

// bind prepares the functions that the binding lacks or wraps less safely: its
// Tokenize crashes on a NUL byte and runs the tokenizer twice.
func (l *library) bind() error {
	lib, err := loader.LoadLibrary(l.dir, "llama")
	if err != nil {
		return err
	}
	p, i32, u8 := &ffi.TypePointer, &ffi.TypeSint32, &ffi.TypeUint8
	if l.tokenize, err = lib.Prep("llama_tokenize", i32, p, p, i32, p, i32, u8, u8); err != nil {
		return err
	}
	if l.detokenize, err = lib.Prep("llama_detokenize", i32, p, p, i32, p, i32, u8, u8); err != nil {
		return err
	}
	l.setAbort, err = lib.Prep("llama_set_abort_callback", &ffi.TypeVoid, p, p, p)
	return err
}

// checkVersion opens only the library and asks its version, before any
// function whose structures may differ is called.
func checkVersion(path string) error {
	h, err := purego.Dlopen(path, purego.RTLD_LAZY)
	if err != nil {
		return fmt.Errorf("opening %s: %w", path, err)
	}
	found := versionInName(path)
	if sym, err := purego.Dlsym(h, "llama_version"); err == nil {
		var version func() string
		purego.RegisterFunc(&version, sym)
		found = version()
	}
	// A development build of the release says "0.5.0-dev".
	release, _, _ := strings.Cut(strings.TrimPrefix(found, "v"), "-")
	if release != wantVersion {
		return fmt.Errorf("%s is llama.cpp %s, modeld-llama is built for v%s; run `make deps build`, or set lib_dir to a folder with llama.cpp v%s",
			path, found, wantVersion, wantVersion)
	}
	return nil
}

// versionInName takes the version of a library too old to state it from the
// file that its symlink names.
func versionInName(path string) string {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		real = path
	}
	name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(real), "libllama"), ".so")
	if v := strings.Trim(name, "."); v != "" {
		return v
	}
	return "of an unknown version"
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("hashing %s: %w", path, err)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// devices lists what llama.cpp can compute on.
func (l *library) devices() []transport.DeviceInfo {
	n := llama.GGMLBackendDeviceCount()
	out := make([]transport.DeviceInfo, 0, n)
	for i := range n {
		d := llama.GGMLBackendDeviceGet(i)
		free, total := llama.GGMLBackendDeviceMemory(d)
		info := transport.DeviceInfo{
			Index:            int(i),
			Name:             llama.GGMLBackendDeviceName(d),
			Description:      llama.GGMLBackendDeviceDescription(d),
			Type:             strings.ToLower(llama.GGMLBackendDevType(d).String()),
			MemoryFree:       int64(free),
			MemoryTotal:      int64(total),
			MemoryFreeKnown:  free > 0,
			MemoryTotalKnown: total > 0,
		}
		if info.Type == "cpu" {
			// llama.cpp reports all of the machine's memory as free.
			info.MemoryFree, info.MemoryFreeKnown = engine.FreeMemory()
		}
		out = append(out, info)
	}
	return out
}
