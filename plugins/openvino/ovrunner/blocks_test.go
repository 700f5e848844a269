package ovrunner

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestWhoWritesIntoASharedBlockGetsACopy(t *testing.T) {
	tables := newBlockTables(8, 4, 3)
	if copies, err := tables.extend(0, 6); err != nil || len(copies) != 0 {
		t.Fatalf("extend: %v, %v", copies, err)
	}
	tables.seqs[0].length = 6
	if err := tables.share(1, 0, 5); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(tables.seqs[1].blocks, tables.seqs[0].blocks) {
		t.Fatalf("shared %v of %v", tables.seqs[1].blocks, tables.seqs[0].blocks)
	}
	second := tables.seqs[0].blocks[1]
	copies, err := tables.extend(1, 1)
	if err != nil || len(copies) != 1 || copies[0].from != second || copies[0].to == second {
		t.Fatalf("the writer's copies: %v, %v; want one of block %d", copies, err, second)
	}
	if copies, err := tables.extend(0, 1); err != nil || len(copies) != 0 {
		t.Fatalf("the other one is alone on its block now: %v, %v", copies, err)
	}
	if err := tables.share(1, 0, 1); err == nil {
		t.Error("a sequence with positions took another's")
	}
	if err := tables.share(2, 0, 7); err == nil {
		t.Error("more was shared than there is")
	}
}

// Whatever is done, a block is free or counted by exactly the tables it is in,
// and each sequence reads what it wrote.
func TestBlockTablesKeepWhatWasWritten(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		const size, blocks, seqs = 4, 24, 4
		tables := newBlockTables(blocks, size, seqs)
		var memory [blocks][size]int
		want := make([][]int, seqs) // what each sequence wrote
		next := 1
		for range 300 {
			seq := r.IntN(seqs)
			switch r.IntN(4) {
			case 0, 1:
				n := 1 + r.IntN(6)
				copies, err := tables.extend(seq, n)
				for _, c := range copies {
					memory[c.to] = memory[c.from]
				}
				if errors.Is(err, errNoBlocks) {
					continue
				}
				s := &tables.seqs[seq]
				for range n {
					memory[s.blocks[s.length/size]][s.length%size] = next
					want[seq] = append(want[seq], next)
					s.length++
					next++
				}
			case 2:
				n := r.IntN(len(want[seq]) + 1)
				tables.truncate(seq, n)
				want[seq] = want[seq][:n]
			case 3:
				src := r.IntN(seqs)
				if src == seq {
					continue
				}
				n := r.IntN(len(want[src]) + 1)
				tables.truncate(seq, 0)
				if err := tables.share(seq, src, n); err != nil {
					t.Fatal(err)
				}
				want[seq] = slices.Clone(want[src][:n])
			}
			check(t, seed, tables, memory[:], want)
		}
	}
}

func check(t *testing.T, seed uint64, tables *blockTables, memory [][4]int, want [][]int) {
	t.Helper()
	refs := make([]int32, len(tables.refs))
	for i, s := range tables.seqs {
		for _, b := range s.blocks {
			refs[b]++
		}
		for p, v := range want[i] {
			if got := memory[s.blocks[p/4]][p%4]; got != v {
				t.Fatalf("seed %d: position %d of sequence %d holds %d, want %d", seed, p, i, got, v)
			}
		}
	}
	for _, b := range tables.free {
		if refs[b] != 0 {
			t.Fatalf("seed %d: block %d is free and in use", seed, b)
		}
		refs[b] = -1
	}
	for b, n := range refs {
		if n == 0 || n > 0 && n != tables.refs[b] {
			t.Fatalf("seed %d: block %d is in %d tables and counted %d times", seed, b, n, tables.refs[b])
		}
	}
}
