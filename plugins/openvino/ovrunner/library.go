package ovrunner

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"

	"modeld/core/transport"
)

// The versions that this package is built for.
const (
	shimABI        = 2
	runtimeVersion = "2026.4.1"
)

const (
	shimName      = "libmodeld_ov.so"
	extensionName = "libopenvino_tokenizers.so"
	errorBytes    = 4096
	factBytes     = 1 << 20
)

// library is the shim, opened once in a process.
type library struct {
	extension string // path of the tokenizers' extension
	version   string // the runtime's build

	abi        func() int32
	runtime    func() string
	devices    func(out *byte, outCap uint64, err *byte, errCap uint64) int32
	open       func(dir, device, properties, extension string, model *unsafe.Pointer, err *byte, errCap uint64) int32
	close      func(model unsafe.Pointer)
	info       func(model unsafe.Pointer, out *int64)
	fact       func(model unsafe.Pointer, key string, out *byte, outCap uint64, err *byte, errCap uint64) int32
	alloc      func(model unsafe.Pointer, blocks int64, err *byte, errCap uint64) int32
	forward    func(model unsafe.Pointer, tokens int64, ids, positions *int64, seqs int64, past, begins, blockBegins, blockIDs *int32, maxContext int32, rows int64, rowIDs *int64, out *float32, err *byte, errCap uint64) int32
	copyBlock  func(model unsafe.Pointer, from, to int64, err *byte, errCap uint64) int32
	moveBlock  func(model unsafe.Pointer, block int64, data *byte, write int32, err *byte, errCap uint64) int32
	tokenize   func(model unsafe.Pointer, text *byte, length uint64, out *int64, outCap int64, count *int64, err *byte, errCap uint64) int32
	detokenize func(model unsafe.Pointer, ids *int64, rows, columns int64, out *byte, outCap uint64, ends, length *uint64, err *byte, errCap uint64) int32
}

var (
	librariesMu sync.Mutex
	libraries   = map[string]*library{} // by folder; a shared library can't be unloaded safely
)

// openLibrary opens the shim in dir, and with it OpenVINO.
func openLibrary(dir string) (*library, error) {
	librariesMu.Lock()
	defer librariesMu.Unlock()
	if l := libraries[dir]; l != nil {
		return l, nil
	}
	path := filepath.Join(dir, shimName)
	for _, p := range []string{path, filepath.Join(dir, extensionName)} {
		if _, err := os.Stat(p); err != nil {
			return nil, fmt.Errorf("openvino: %w; run make build, or set openvino.lib_dir", err)
		}
	}
	handle, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("openvino: %s can't be opened; OpenVINO %s is needed, run make deps build: %w", path, runtimeVersion, err)
	}
	l := &library{extension: filepath.Join(dir, extensionName)}
	for name, fn := range map[string]any{
		"mov_abi": &l.abi, "mov_runtime_version": &l.runtime, "mov_devices": &l.devices, "mov_open": &l.open,
		"mov_close": &l.close, "mov_info": &l.info, "mov_fact": &l.fact, "mov_alloc": &l.alloc, "mov_forward": &l.forward,
		"mov_copy_block": &l.copyBlock, "mov_move_block": &l.moveBlock, "mov_tokenize": &l.tokenize, "mov_detokenize": &l.detokenize,
	} {
		if _, err := purego.Dlsym(handle, name); err != nil {
			return nil, fmt.Errorf("openvino: %s lacks %s; run make build: %w", path, name, err)
		}
		purego.RegisterLibFunc(fn, handle, name)
	}
	if got := l.abi(); got != shimABI {
		return nil, fmt.Errorf("openvino: %s is the shim's version %d, this modeld-openvino needs %d; run make build", path, got, shimABI)
	}
	if l.version = l.runtime(); !strings.HasPrefix(l.version, runtimeVersion) {
		return nil, fmt.Errorf("openvino: the runtime is OpenVINO %s, this modeld-openvino needs %s; run make deps build", l.version, runtimeVersion)
	}
	libraries[dir] = l
	return l, nil
}

// shimUnsupported is what a function of the shim returns for a model that it
// has no way to run.
const shimUnsupported = -2

// errorBuffers keeps the buffers of call, which are many.
var errorBuffers = sync.Pool{New: func() any { return new([errorBytes]byte) }}

// call runs a function of the shim and makes an error of what it says.
func call(f func(err *byte, errCap uint64) int32) error {
	buf := errorBuffers.Get().(*[errorBytes]byte)
	defer errorBuffers.Put(buf)
	code := f(&buf[0], errorBytes)
	if code == 0 {
		return nil
	}
	text := strings.Join(strings.Fields(cText(buf[:])), " ")
	if code == shimUnsupported {
		return fmt.Errorf("%w: %s", transport.ErrUnsupportedFeature, text)
	}
	return errors.New(text)
}

// cText is the text before the first NUL.
func cText(b []byte) string {
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text)
}

// deviceList returns the devices and their descriptions.
func (l *library) deviceList() ([][2]string, error) {
	out := make([]byte, 64<<10)
	if err := call(func(e *byte, n uint64) int32 { return l.devices(&out[0], uint64(len(out)), e, n) }); err != nil {
		return nil, fmt.Errorf("openvino: devices: %w", err)
	}
	var list [][2]string
	for line := range strings.Lines(cText(out)) {
		name, description, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		list = append(list, [2]string{name, description})
	}
	return list, nil
}
