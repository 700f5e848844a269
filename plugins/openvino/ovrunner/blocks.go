package ovrunner

import (
	"fmt"
	"slices"

	"modeld/core/transport"
)

// errNoBlocks: every KV block is in use.
var errNoBlocks = fmt.Errorf("openvino: %w: no KV block is free", transport.ErrInsufficientMemory)

// blockTables keeps which blocks hold which sequence's positions. Blocks are
// counted: sequences that share a prefix share its blocks, and who writes into
// a shared one gets a copy of its own.
type blockTables struct {
	size int     // positions in a block
	refs []int32 // by block
	free []int32
	seqs []sequence
}

type sequence struct {
	blocks []int32
	length int // positions
}

// blockCopy is a copy that must be made before a block is written to.
type blockCopy struct{ from, to int32 }

func newBlockTables(blocks, size, seqs int) *blockTables {
	t := &blockTables{size: size, refs: make([]int32, blocks), seqs: make([]sequence, seqs)}
	for b := blocks - 1; b >= 0; b-- {
		t.free = append(t.free, int32(b))
	}
	return t
}

func (t *blockTables) blocksFor(n int) int { return (n + t.size - 1) / t.size }

func (t *blockTables) take() (int32, bool) {
	if len(t.free) == 0 {
		return 0, false
	}
	b := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	t.refs[b] = 1
	return b, true
}

func (t *blockTables) release(b int32) {
	if t.refs[b]--; t.refs[b] == 0 {
		t.free = append(t.free, b)
	}
}

// extend gives seq blocks for n more positions, without changing its length,
// and returns the copies that are to be made first. On errNoBlocks seq keeps
// what it has.
func (t *blockTables) extend(seq, n int) ([]blockCopy, error) {
	s := &t.seqs[seq]
	var copies []blockCopy
	if last := s.length / t.size; s.length%t.size != 0 && t.refs[s.blocks[last]] > 1 {
		b, ok := t.take()
		if !ok {
			return nil, errNoBlocks
		}
		copies = append(copies, blockCopy{s.blocks[last], b})
		t.release(s.blocks[last])
		s.blocks[last] = b
	}
	for need := t.blocksFor(s.length + n); len(s.blocks) < need; {
		b, ok := t.take()
		if !ok {
			return copies, errNoBlocks
		}
		s.blocks = append(s.blocks, b)
	}
	return copies, nil
}

// share makes the first n positions of the empty dst those of src.
func (t *blockTables) share(dst, src, n int) error {
	if t.seqs[dst].length != 0 {
		return fmt.Errorf("openvino: sequence %d is not empty", dst)
	}
	if n > t.seqs[src].length {
		return fmt.Errorf("openvino: %d positions of sequence %d, which has %d", n, src, t.seqs[src].length)
	}
	t.truncate(dst, 0)
	blocks := t.seqs[src].blocks[:t.blocksFor(n)]
	for _, b := range blocks {
		t.refs[b]++
	}
	t.seqs[dst] = sequence{blocks: slices.Clone(blocks), length: n}
	return nil
}

// truncate drops what seq has from position n on.
func (t *blockTables) truncate(seq, n int) {
	s := &t.seqs[seq]
	keep := t.blocksFor(n)
	for _, b := range s.blocks[min(keep, len(s.blocks)):] {
		t.release(b)
	}
	s.blocks = s.blocks[:min(keep, len(s.blocks))]
	s.length = n
}
