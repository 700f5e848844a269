package ovrunner

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"modeld/core/transport"
)

// stateHeader stands before the blocks of a saved sequence.
type stateHeader struct {
	Magic     [8]byte
	Identity  [sha256.Size]byte // of the model, the runtime and the KV's layout
	Positions uint32
	Blocks    uint32
}

var (
	stateMagic = [8]byte{'M', 'D', 'O', 'V', 'K', 'V', '0', '1'}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// identity tells whose KV saved blocks are.
func (r *Runner) identity() [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s\n%d\n%d", r.facts.digest, r.lib.version, r.precision, r.blockTokens, r.blockBytes))
}

// Save writes the blocks of seq's first n positions, each with its checksum.
func (r *Runner) Save(seq, n int, w io.Writer) error {
	if err := r.checkSeq(seq); err != nil {
		return err
	}
	s := &r.tables.seqs[seq]
	if n < 0 || n > s.length {
		return fmt.Errorf("openvino: save %d positions of sequence %d, which has %d", n, seq, s.length)
	}
	blocks := s.blocks[:r.tables.blocksFor(n)]
	h := stateHeader{stateMagic, r.identity(), uint32(n), uint32(len(blocks))}
	if err := binary.Write(w, binary.LittleEndian, h); err != nil {
		return fmt.Errorf("openvino: save sequence %d: %w", seq, err)
	}
	data := make([]byte, r.blockBytes, r.blockBytes+4)
	for _, b := range blocks {
		if err := r.moveBlock(b, data, 0); err != nil {
			return fmt.Errorf("openvino: save sequence %d: %w", seq, err)
		}
		if _, err := w.Write(binary.LittleEndian.AppendUint32(data, crc32.Checksum(data, castagnoli))); err != nil {
			return fmt.Errorf("openvino: save sequence %d: %w", seq, err)
		}
	}
	return nil
}

// Load fills the empty seq with n positions that Save wrote. A state of another
// model, runtime or KV layout, or a damaged one, gives ErrManifestMismatch.
func (r *Runner) Load(seq, n int, rd io.Reader) error {
	if err := r.checkSeq(seq); err != nil {
		return err
	}
	if have := r.tables.seqs[seq].length; have != 0 {
		return fmt.Errorf("openvino: sequence %d is not empty, it has %d positions", seq, have)
	}
	err := r.load(seq, n, rd)
	if err != nil {
		r.tables.truncate(seq, 0)
	}
	return err
}

func (r *Runner) load(seq, n int, rd io.Reader) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("openvino: %w: saved KV: %s", transport.ErrManifestMismatch, fmt.Sprintf(format, args...))
	}
	var h stateHeader
	if err := binary.Read(rd, binary.LittleEndian, &h); err != nil {
		return bad("%v", err)
	}
	switch {
	case h.Magic != stateMagic:
		return bad("it is none of OpenVINO's")
	case h.Identity != r.identity():
		return bad("it is of another model, runtime or KV precision")
	case n < 0 || n > int(h.Positions) || int(h.Blocks) != r.tables.blocksFor(int(h.Positions)):
		return bad("it has %d positions in %d blocks, %d are asked for", h.Positions, h.Blocks, n)
	}
	if _, err := r.tables.extend(seq, n); err != nil {
		return err
	}
	data := make([]byte, r.blockBytes+4)
	for _, b := range r.tables.seqs[seq].blocks {
		if _, err := io.ReadFull(rd, data); err != nil {
			return bad("%v", err)
		}
		kv := data[:r.blockBytes]
		if crc32.Checksum(kv, castagnoli) != binary.LittleEndian.Uint32(data[r.blockBytes:]) {
			return bad("a block is damaged")
		}
		if err := r.moveBlock(b, kv, 1); err != nil {
			return fmt.Errorf("openvino: load sequence %d: %w", seq, err)
		}
	}
	r.tables.seqs[seq].length = n
	return nil
}

// moveBlock copies a block out of (write 0) or into (write 1) the KV cache.
func (r *Runner) moveBlock(b int32, data []byte, write int32) error {
	return call(func(e *byte, n uint64) int32 { return r.lib.moveBlock(r.model, int64(b), &data[0], write, e, n) })
}
