package llamarunner

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hybridgroup/yzma/pkg/llama"

	"modeld/core/transport"
)

// stateHeader stands before llama.cpp's own state of a sequence.
type stateHeader struct {
	Magic     [8]byte
	Identity  [sha256.Size]byte // of the model, the runtime and the KV type
	Positions uint32            // of the sequence when it was saved
	CRC       uint32            // of the data, Castagnoli
	Size      uint64            // of the data in bytes
}

var (
	stateMagic = [8]byte{'M', 'D', 'L', 'L', 'K', 'V', '0', '1'}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// identity tells whose KV a saved state is.
func (r *Runner) identity() [sha256.Size]byte {
	return sha256.Sum256([]byte(r.facts.digest + "\n" + r.lib.digest + "\n" + r.plan.kv.name))
}

// Save writes the KV of seq. The data holds the whole sequence, of which Load
// keeps n positions.
func (r *Runner) Save(seq, n int, w io.Writer) error {
	if err := r.checkSeq(seq, n); err != nil {
		return err
	}
	have := r.length(seq)
	if n != have && !r.info.Caps.Truncate {
		return fmt.Errorf("llama: %w: this model can only save a whole sequence", transport.ErrUnsupportedFeature)
	}
	data := make([]byte, llama.StateSeqGetSize(r.ctx, llama.SeqId(seq)))
	if got := llama.StateSeqGetData(r.ctx, data, llama.SeqId(seq)); got == 0 || got != uint64(len(data)) {
		return fmt.Errorf("llama: saving sequence %d: %d bytes instead of %d: %s", seq, got, len(data), r.lib.log.takeErrors())
	}
	h := stateHeader{stateMagic, r.identity(), uint32(have), crc32.Checksum(data, castagnoli), uint64(len(data))}
	if err := binary.Write(w, binary.LittleEndian, h); err != nil {
		return fmt.Errorf("llama: saving sequence %d: %w", seq, err)
	}
	if _, err := w.Write(data); err != nil {
		return fmt.Errorf("llama: saving sequence %d: %w", seq, err)
	}
	return nil
}

// Load fills the empty seq with n positions that Save wrote. A state of another
// model, runtime or KV type gives ErrManifestMismatch.
func (r *Runner) Load(seq, n int, rd io.Reader) error {
	if err := r.checkSeq(seq, 0); err != nil {
		return err
	}
	if have := r.length(seq); have != 0 {
		return fmt.Errorf("llama: sequence %d is not empty, it has %d positions", seq, have)
	}
	h, data, err := r.readState(rd, n)
	if err != nil {
		return fmt.Errorf("llama: loading sequence %d: %w", seq, err)
	}
	got := llama.StateSeqSetData(r.ctx, data, llama.SeqId(seq))
	if got != h.Size || r.length(seq) != int(h.Positions) {
		err = fmt.Errorf("llama: loading sequence %d of %d positions: llama.cpp took %d of %d bytes: %s",
			seq, h.Positions, got, h.Size, r.lib.log.takeErrors())
	} else {
		err = r.Truncate(seq, n)
	}
	if err != nil {
		_, _ = llama.MemorySeqRm(r.mem, llama.SeqId(seq), -1, -1)
	}
	return err
}

// readState reads and checks what comes before native code sees it.
func (r *Runner) readState(rd io.Reader, n int) (stateHeader, []byte, error) {
	var h stateHeader
	if err := binary.Read(rd, binary.LittleEndian, &h); err != nil {
		return h, nil, fmt.Errorf("the saved state ends inside its header: %w", noEOF(err))
	}
	// A position takes its KV and some bookkeeping in the data.
	limit := (uint64(r.plan.kv.bytesPerToken(r.facts))+64)*uint64(r.info.KVTokens)*2 + 64<<20
	switch {
	case h.Magic != stateMagic:
		return h, nil, errors.New("this is not a saved state of modeld-llama")
	case h.Identity != r.identity():
		return h, nil, fmt.Errorf("%w: the state is of another model, llama.cpp build or KV cache type", transport.ErrManifestMismatch)
	case n < 0 || uint64(n) > uint64(h.Positions):
		return h, nil, fmt.Errorf("the saved state has %d positions, %d were asked for", h.Positions, n)
	case int64(h.Positions) > int64(r.info.NumCtx):
		return h, nil, transport.NewContextOverflowError("restore", 0, int(h.Positions), r.info.NumCtx)
	case h.Size > limit:
		return h, nil, fmt.Errorf("the saved state says that it has %d bytes, at most %d can be", h.Size, limit)
	}
	var data bytes.Buffer
	if got, err := io.CopyN(&data, rd, int64(h.Size)); err != nil {
		return h, nil, fmt.Errorf("the saved state ends after %d of %d bytes: %w", got, h.Size, noEOF(err))
	}
	if crc32.Checksum(data.Bytes(), castagnoli) != h.CRC {
		return h, nil, errors.New("the saved state is damaged, its checksum differs")
	}
	return h, data.Bytes(), nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
