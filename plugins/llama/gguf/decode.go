package gguf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
)

// Bounds on what a header may hold. They are far above what models have and
// keep the reader's memory small whatever the file says.
const (
	maxPairs    = 1 << 16
	maxTensors  = 1 << 17
	maxKey      = 1 << 16
	maxName     = 64 // of a tensor, GGML_MAX_NAME
	maxString   = 16 << 20
	maxInts     = 4096 // elements kept of an integer array
	maxDims     = 4
	maxHeader   = 1 << 30
	tensorInfo  = 8 + 4 + 8 + 4 + 8 // least bytes of a tensor's entry
	metadataMin = 8 + 4 + 1         // least bytes of a metadata pair
)

// decoder reads little-endian values and knows how many bytes are left.
type decoder struct {
	r    *bufio.Reader
	pos  int64
	size int64
	buf  [8]byte
}

func newDecoder(r io.ReaderAt, size int64) *decoder {
	n := min(size, maxHeader)
	return &decoder{r: bufio.NewReaderSize(io.NewSectionReader(r, 0, n), 1<<16), size: n}
}

func (d *decoder) errorf(format string, args ...any) error {
	return fmt.Errorf("%w: %s (at byte %d)", ErrFormat, fmt.Sprintf(format, args...), d.pos)
}

// want fails unless n more bytes are there.
func (d *decoder) want(n int64, what string) error {
	if n < 0 || n > d.size-d.pos {
		return d.errorf("the file ends inside %s: %d bytes needed, %d left; it is truncated or damaged", what, uint64(n), d.size-d.pos)
	}
	return nil
}

// ioError tells a file that is shorter than its stated size from a real fault.
func (d *decoder) ioError(err error, what string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return d.errorf("the file ends inside %s; it is truncated", what)
	}
	return fmt.Errorf("reading %s: %w", what, err)
}

func (d *decoder) uint(width int64, what string) (uint64, error) {
	if err := d.want(width, what); err != nil {
		return 0, err
	}
	d.buf = [8]byte{}
	if _, err := io.ReadFull(d.r, d.buf[:width]); err != nil {
		return 0, d.ioError(err, what)
	}
	d.pos += width
	return binary.LittleEndian.Uint64(d.buf[:]), nil
}

func (d *decoder) skip(n int64, what string) error {
	if err := d.want(n, what); err != nil {
		return err
	}
	for n > 0 {
		k, err := d.r.Discard(int(min(n, 1<<20)))
		d.pos += int64(k)
		n -= int64(k)
		if err != nil {
			return d.ioError(err, what)
		}
	}
	return nil
}

func (d *decoder) length(limit int64, what string) (int64, error) {
	n, err := d.uint(8, what)
	if err != nil {
		return 0, err
	}
	if n > uint64(limit) {
		return 0, d.errorf("%s says %d, more than the %d that can be", what, n, limit)
	}
	return int64(n), nil
}

func (d *decoder) text(limit int64, what string) (string, error) {
	n, err := d.length(limit, "the length of "+what)
	if err != nil {
		return "", err
	}
	if err := d.want(n, what); err != nil {
		return "", err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(d.r, b); err != nil {
		return "", d.ioError(err, what)
	}
	d.pos += n
	return string(b), nil
}

// preamble reads magic, version and counts.
func (d *decoder) preamble(f *File) (nTensors, nKV int64, err error) {
	magic, err := d.uint(4, "the magic number")
	if err != nil {
		return 0, 0, err
	}
	if magic != 0x46554747 { // "GGUF"
		return 0, 0, d.errorf("it starts with %q instead of \"GGUF\"", binary.LittleEndian.AppendUint32(nil, uint32(magic)))
	}
	version, err := d.uint(4, "the version")
	if err != nil {
		return 0, 0, err
	}
	if version != 2 && version != 3 {
		hint := ""
		if v := bits.ReverseBytes32(uint32(version)); v > 0 && v <= 3 {
			hint = ", it is a big-endian file"
		}
		return 0, 0, d.errorf("version %d of the format is not supported, 2 and 3 are%s", version, hint)
	}
	f.Version = uint32(version)
	if nTensors, err = d.length(min(maxTensors, d.size/tensorInfo), "the number of tensors"); err != nil {
		return 0, 0, err
	}
	nKV, err = d.length(min(maxPairs, d.size/metadataMin), "the number of metadata pairs")
	return nTensors, nKV, err
}

func (d *decoder) metadata(f *File, n int64) error {
	f.KV = make(map[string]Value, n)
	for i := range n {
		key, err := d.text(maxKey, fmt.Sprintf("the key of metadata pair %d", i))
		if err != nil {
			return err
		}
		if _, twice := f.KV[key]; twice || key == "" {
			return d.errorf("metadata key %q is empty or there twice", key)
		}
		v, err := d.value(key)
		if err != nil {
			return err
		}
		f.KV[key] = v
	}
	if v, ok := f.KV["general.alignment"]; ok {
		if v.Type != TypeUint32 || v.Int <= 0 || v.Int&(v.Int-1) != 0 {
			return d.errorf("general.alignment is not a power of two")
		}
		f.Alignment = v.Int
	}
	return nil
}

func (d *decoder) value(key string) (Value, error) {
	t, err := d.uint(4, "the type of "+key)
	if err != nil {
		return Value{}, err
	}
	v := Value{Type: ValueType(t)}
	switch {
	case v.Type == TypeString:
		v.String, err = d.text(maxString, key)
	case v.Type == TypeArray:
		err = d.array(key, &v)
	case v.Type.width() > 0:
		err = d.scalar(key, &v)
	default:
		err = d.errorf("%s has the unknown type %d", key, t)
	}
	return v, err
}

func (d *decoder) scalar(key string, v *Value) error {
	u, err := d.uint(v.Type.width(), key)
	if err != nil {
		return err
	}
	switch v.Type {
	case TypeFloat32:
		v.Float = float64(math.Float32frombits(uint32(u)))
	case TypeFloat64:
		v.Float = math.Float64frombits(u)
	case TypeBool:
		if u > 1 {
			return d.errorf("%s is the boolean %d", key, u)
		}
		v.Int = int64(u)
	default:
		v.Int = signed(v.Type, u)
		if v.Type == TypeUint64 && v.Int < 0 {
			v.Int = math.MaxInt64
		}
	}
	return nil
}

func signed(t ValueType, u uint64) int64 {
	switch t {
	case TypeInt8:
		return int64(int8(u))
	case TypeInt16:
		return int64(int16(u))
	case TypeInt32:
		return int64(int32(u))
	}
	return int64(u)
}

func (d *decoder) array(key string, v *Value) error {
	t, err := d.uint(4, "the type of "+key)
	if err != nil {
		return err
	}
	v.Elem = ValueType(t)
	width := v.Elem.width()
	if v.Elem == TypeString {
		width = 8
	}
	if width == 0 {
		return d.errorf("%s is an array of the unusable type %d", key, t)
	}
	n, err := d.length((d.size-d.pos)/width, "the length of "+key)
	if err != nil {
		return err
	}
	v.Len = int(n)
	switch {
	case v.Elem == TypeString:
		return d.skipStrings(key, n)
	case v.Elem.integer() && n <= maxInts:
		v.Ints = make([]int64, n)
		for i := range v.Ints {
			u, err := d.uint(width, key)
			if err != nil {
				return err
			}
			v.Ints[i] = signed(v.Elem, u)
		}
		return nil
	default:
		return d.skip(n*width, key)
	}
}

func (d *decoder) skipStrings(key string, n int64) error {
	for range n {
		k, err := d.length(maxString, key)
		if err != nil {
			return err
		}
		if err := d.skip(k, key); err != nil {
			return err
		}
	}
	return nil
}
