package gguf

import (
	"fmt"
	"math"
)

// TensorType is how a tensor's numbers are stored (ggml_type).
type TensorType uint32

// layout is a block of a tensor type: elements and bytes.
type layout struct{ elems, bytes int64 }

// layouts lists the tensor types of llama.cpp v0.5.0; a test compares them with
// the library.
var layouts = map[TensorType]layout{
	0: {1, 4}, 1: {1, 2}, 2: {32, 18}, 3: {32, 20}, 6: {32, 22}, 7: {32, 24}, 8: {32, 34}, 9: {32, 36},
	10: {256, 84}, 11: {256, 110}, 12: {256, 144}, 13: {256, 176}, 14: {256, 210}, 15: {256, 292},
	16: {256, 66}, 17: {256, 74}, 18: {256, 98}, 19: {256, 50}, 20: {32, 18}, 21: {256, 110}, 22: {256, 82}, 23: {256, 136},
	24: {1, 1}, 25: {1, 2}, 26: {1, 4}, 27: {1, 8}, 28: {1, 8}, 29: {256, 56}, 30: {1, 2},
	34: {256, 54}, 35: {256, 66}, 39: {32, 17}, 40: {64, 36}, 41: {128, 18}, 42: {64, 18},
}

// Layout returns how many elements a block of the type has and its bytes; ok
// is false for a type that is not known.
func (t TensorType) Layout() (elems, bytes int64, ok bool) {
	l, ok := layouts[t]
	return l.elems, l.bytes, ok
}

// tensors reads the tensor infos and checks that their data is in the file.
func (d *decoder) tensors(f *File, n int64) error {
	f.Tensors = make([]Tensor, 0, min(n, 4096))
	seen := make(map[string]bool, min(n, 4096))
	for i := range n {
		t, err := d.tensor(i)
		if err != nil {
			return err
		}
		if seen[t.Name] {
			return d.errorf("tensor %q is there twice", t.Name)
		}
		seen[t.Name] = true
		f.Tensors = append(f.Tensors, t)
	}
	pad := f.Alignment - 1
	if d.pos > math.MaxInt64-pad {
		return d.errorf("general.alignment is too large")
	}
	f.DataOffset = (d.pos + pad) &^ pad
	for _, t := range f.Tensors {
		if t.Offset%f.Alignment != 0 {
			return d.errorf("the data of tensor %q is not aligned to %d bytes", t.Name, f.Alignment)
		}
		room := f.Size - f.DataOffset
		if t.Offset > room || t.Size > room-t.Offset {
			return d.errorf("the data of tensor %q ends at byte %d of a file of %d bytes; the file is truncated or damaged",
				t.Name, uint64(f.DataOffset)+uint64(t.Offset)+uint64(t.Size), f.Size)
		}
	}
	return nil
}

func (d *decoder) tensor(i int64) (Tensor, error) {
	what := fmt.Sprintf("tensor %d", i)
	var t Tensor
	var err error
	if t.Name, err = d.text(maxName-1, "the name of "+what); err != nil {
		return t, err
	}
	nDims, err := d.uint(4, what)
	if err != nil {
		return t, err
	}
	if nDims > maxDims {
		return t, d.errorf("tensor %q has %d dimensions, at most %d can be", t.Name, nDims, maxDims)
	}
	elems := int64(1)
	for range nDims {
		dim, err := d.length(math.MaxInt64, what)
		if err != nil {
			return t, err
		}
		if dim == 0 || elems > math.MaxInt64/8/dim {
			return t, d.errorf("tensor %q has an impossible dimension of %d", t.Name, dim)
		}
		elems *= dim
		t.Dims = append(t.Dims, dim)
	}
	typ, err := d.uint(4, what)
	if err != nil {
		return t, err
	}
	t.Type = TensorType(typ)
	l, ok := layouts[t.Type]
	if !ok {
		return t, d.errorf("tensor %q has the unknown type %d", t.Name, typ)
	}
	if row := rowElems(t.Dims); row%l.elems != 0 {
		return t, d.errorf("tensor %q has rows of %d elements, not a multiple of %d", t.Name, row, l.elems)
	}
	t.Size = elems / l.elems * l.bytes
	t.Offset, err = d.length(math.MaxInt64, "the offset of tensor "+t.Name)
	return t, err
}

func rowElems(dims []int64) int64 {
	if len(dims) == 0 {
		return 1
	}
	return dims[0]
}
