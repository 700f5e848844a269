// Package gguf reads the header of a GGUF file: metadata and tensor infos. It
// checks every length against the file before it trusts it, so that a damaged
// or truncated file is refused here and never reaches native code.
package gguf

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// ErrFormat marks every error about the content of a file.
var ErrFormat = errors.New("not a readable GGUF file")

// ValueType is the type of a metadata value as stored in the file.
type ValueType uint32

// The metadata types of GGUF.
const (
	TypeUint8 ValueType = iota
	TypeInt8
	TypeUint16
	TypeInt16
	TypeUint32
	TypeInt32
	TypeFloat32
	TypeBool
	TypeString
	TypeArray
	TypeUint64
	TypeInt64
	TypeFloat64
)

// Value is one metadata value. Which field holds it follows from Type.
type Value struct {
	Type ValueType
	// Int holds integers and booleans (0 or 1).
	Int int64
	// Float holds float32 and float64.
	Float float64
	// String holds strings.
	String string
	// Elem and Len describe an array. Ints holds the elements of short
	// integer arrays; longer arrays and other types are only checked.
	Elem ValueType
	Len  int
	Ints []int64
}

// Tensor describes one tensor of the file.
type Tensor struct {
	Name   string
	Type   TensorType
	Dims   []int64
	Offset int64 // from the start of the tensor data
	Size   int64 // in bytes
}

// File is the header of a GGUF file.
type File struct {
	Version    uint32
	KV         map[string]Value
	Tensors    []Tensor
	Alignment  int64
	DataOffset int64 // where tensor data starts, also the header's length
	Size       int64 // of the whole file in bytes
}

// Open reads the header of the file at path. Errors about its content wrap
// ErrFormat; others come from the file system.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrFormat, path)
	}
	file, err := Read(f, st.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return file, nil
}

// Read reads the header of a GGUF file of size bytes.
func Read(r io.ReaderAt, size int64) (*File, error) {
	d := newDecoder(r, size)
	f := &File{Size: size, Alignment: 32}
	nTensors, nKV, err := d.preamble(f)
	if err != nil {
		return nil, err
	}
	if err := d.metadata(f, nKV); err != nil {
		return nil, err
	}
	if err := d.tensors(f, nTensors); err != nil {
		return nil, err
	}
	return f, nil
}

// Uint returns a non-negative integer.
func (f *File) Uint(key string) (int64, bool) {
	v, ok := f.KV[key]
	if !ok || !v.Type.integer() || v.Int < 0 {
		return 0, false
	}
	return v.Int, true
}

// Text returns a string, "" where there is none.
func (f *File) Text(key string) string { return f.KV[key].String }

// Flag returns a boolean.
func (f *File) Flag(key string) (value, ok bool) {
	v, found := f.KV[key]
	if !found || v.Type != TypeBool {
		return false, false
	}
	return v.Int != 0, true
}

// PerLayer returns an integer that a file states once for all layers or for
// each layer, as n values; nil where it has neither or a value is negative.
func (f *File) PerLayer(key string, n int) []int64 {
	v := f.KV[key]
	var out []int64
	switch {
	case v.Type == TypeArray && len(v.Ints) >= n && v.Ints != nil:
		out = v.Ints[:n]
	default:
		one, ok := f.Uint(key)
		if !ok {
			return nil
		}
		out = make([]int64, n)
		for i := range out {
			out[i] = one
		}
	}
	for _, x := range out {
		if x < 0 {
			return nil
		}
	}
	return out
}

// TensorBytes is the size of all tensors.
func (f *File) TensorBytes() int64 {
	var n int64
	for _, t := range f.Tensors {
		n += t.Size
	}
	return n
}

func (t ValueType) integer() bool {
	switch t {
	case TypeUint8, TypeInt8, TypeUint16, TypeInt16, TypeUint32, TypeInt32, TypeUint64, TypeInt64:
		return true
	}
	return false
}

// width is the size of a fixed-size value in bytes, 0 for others.
func (t ValueType) width() int64 {
	switch t {
	case TypeUint8, TypeInt8, TypeBool:
		return 1
	case TypeUint16, TypeInt16:
		return 2
	case TypeUint32, TypeInt32, TypeFloat32:
		return 4
	case TypeUint64, TypeInt64, TypeFloat64:
		return 8
	}
	return 0
}
