package ovrunner

import (
	"strings"
	"testing"

	"modeld/core/engine"
)

// vocabulary makes a detokenizer of the texts of tokens; finish is what it does
// to a whole text.
func vocabulary(words []string, finish func(string) string) detokenizer {
	return func(tokens []engine.Token, columns int) ([]string, error) {
		var texts []string
		for at := 0; at < len(tokens); at += columns {
			var b strings.Builder
			for _, t := range tokens[at : at+columns] {
				b.WriteString(words[t])
			}
			texts = append(texts, finish(b.String()))
		}
		return texts, nil
	}
}

func TestPiecesAreUsedWhereTheyAreRight(t *testing.T) {
	same := func(s string) string { return s }
	trim := func(s string) string { return strings.TrimPrefix(s, " ") }
	tests := []struct {
		name   string
		words  []string
		finish func(string) string
		right  bool
	}{
		{"bytes", []string{"", "a", " the", "\xe6", "\x9d", "\xb1"}, same, true},
		{"a space in front is dropped", []string{"", "a", " the", "\xe6", "  two"}, trim, true},
		{"only whole characters", []string{"", "a", "\xe6", "\x9d", "\xb1"}, func(s string) string { return strings.ToValidUTF8(s, "") }, false},
		{"every space in front", []string{"", "a", "  two"}, func(s string) string { return strings.TrimLeft(s, " ") }, false},
		{"no space before a point", []string{"", "a", " ", "."}, func(s string) string { return strings.ReplaceAll(s, " .", ".") }, false},
		{"an end for everything", []string{"", "a", " the"}, func(s string) string { return s + "!" }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := learnPieces(vocabulary(tt.words, tt.finish), len(tt.words), 1)
			if err != nil || (p != nil) != tt.right {
				t.Fatalf("pieces %+v, %v; want some: %t", p, err, tt.right)
			}
			if p == nil {
				return
			}
			all := []engine.Token{2, 1, 0, 2, 3}
			for n := 1; n <= len(all); n++ {
				want, _ := vocabulary(tt.words, tt.finish)(all[:n], n)
				if got := p.join(all[:n]); got != want[0] {
					t.Errorf("%v is %q, want %q", all[:n], got, want[0])
				}
			}
		})
	}
}
