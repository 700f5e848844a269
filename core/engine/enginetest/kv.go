package enginetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"

	"modeld/core/engine"
	"modeld/core/transport"
)

// Share makes dst a prefix of src.
func (r *Runner) Share(dst, src, n int) error {
	end, err := r.begin("Share")
	if err != nil {
		return err
	}
	defer end()
	switch {
	case !r.opts.Caps.Share:
		return r.misuse("Share without Caps.Share")
	case dst == src || len(r.seqs[dst]) != 0 || n < 0 || n > len(r.seqs[src]):
		return r.misuse("Share of %d of %d positions of %d with %d of length %d", n, len(r.seqs[src]), src, dst, len(r.seqs[dst]))
	case !r.opts.Caps.Truncate && n != len(r.seqs[src]):
		return r.misuse("Share of %d of %d positions without Caps.Truncate", n, len(r.seqs[src]))
	}
	r.seqs[dst] = slices.Clone(r.seqs[src][:n])
	for _, c := range r.seqs[dst] {
		c.refs++
	}
	return nil
}

// Truncate drops a tail.
func (r *Runner) Truncate(seq, n int) error {
	end, err := r.begin("Truncate")
	if err != nil {
		return err
	}
	defer end()
	length := len(r.seqs[seq])
	if n < 0 || n > length {
		return r.misuse("Truncate of sequence %d of length %d to %d", seq, length, n)
	}
	if !r.opts.Caps.Truncate && n != 0 && n != length {
		r.opts.Misuse("Truncate without Caps.Truncate")
		return transport.ErrUnsupportedFeature
	}
	for _, c := range r.seqs[seq][n:] {
		if c.refs--; c.refs == 0 {
			r.used--
		}
	}
	r.seqs[seq] = r.seqs[seq][:n]
	return nil
}

// Save writes tokens and hashes.
func (r *Runner) Save(seq, n int, w io.Writer) error {
	end, err := r.begin("Save")
	if err != nil {
		return err
	}
	defer end()
	if !r.opts.Caps.Save || n < 0 || n > len(r.seqs[seq]) {
		return r.misuse("Save of %d of %d positions", n, len(r.seqs[seq]))
	}
	for _, c := range r.seqs[seq][:n] {
		if err := binary.Write(w, binary.LittleEndian, []uint64{uint64(c.token), c.hash}); err != nil {
			return err
		}
	}
	return nil
}

// Load reads what Save wrote.
func (r *Runner) Load(seq, n int, rd io.Reader) error {
	end, err := r.begin("Load")
	if err != nil {
		return err
	}
	defer end()
	if !r.opts.Caps.Save || len(r.seqs[seq]) != 0 || r.used+n > r.opts.KVTokens {
		return r.misuse("Load of %d positions into sequence %d of length %d, with %d in use", n, seq, len(r.seqs[seq]), r.used)
	}
	data, err := io.ReadAll(rd)
	if err != nil {
		return err
	}
	if len(data) != 16*n {
		return fmt.Errorf("%d bytes for %d positions", len(data), n)
	}
	values := make([]uint64, 2*n)
	if err := binary.Read(bytes.NewReader(data), binary.LittleEndian, values); err != nil {
		return err
	}
	for i := range n {
		r.seqs[seq] = append(r.seqs[seq], &cell{token: engine.Token(values[2*i]), hash: values[2*i+1], refs: 1})
	}
	r.used += n
	return nil
}

// Embed makes a vector from each input's tokens.
func (r *Runner) Embed(_ context.Context, inputs [][]engine.Token) ([][]float32, error) {
	end, err := r.begin("Embed")
	if err != nil {
		return nil, err
	}
	defer end()
	vectors := make([][]float32, len(inputs))
	for i, tokens := range inputs {
		v := make([]float32, 16)
		for _, t := range tokens {
			v[mix(uint64(t))%16]++
		}
		var sum float64
		for _, x := range v {
			sum += float64(x) * float64(x)
		}
		for k := range v {
			v[k] /= float32(math.Sqrt(sum))
		}
		vectors[i] = v
	}
	return vectors, nil
}

// Close frees nothing, once.
func (r *Runner) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return r.misuse("Close twice")
	}
	r.closed = true
	return nil
}
