package engine

import (
	"fmt"
	"unicode/utf8"

	"modeld/core/transport"
)

// prompt turns a session's texts into tokens. It is a value: a call that fails
// leaves the session with the one from before.
type prompt struct {
	model      *model
	disableBOS bool

	text     string // the prefix as it came
	tools    string
	chat     *chatState // its chat messages, where it is a chat
	rendered string     // what was tokenized
	memo     memo
}

// memo is a tokenized prefix and what its tokens depend on.
type memo struct {
	key    memoKey
	tokens []Token
}

type memoKey struct {
	text                 string
	raw, addBOS, noClaim bool
}

// prefix returns the prompt and tokens of a new prefix.
func (p prompt) prefix(in transport.PrefixInput) (prompt, []Token, error) {
	if err := checkInput("prefix", in.Text, in.Images); err != nil {
		return p, nil, err
	}
	next := prompt{model: p.model, disableBOS: p.disableBOS, text: in.Text, tools: in.Tools, rendered: in.Text}
	segments := stableSegments(in.Manifest.Segments)
	raw := !isChat(segments)
	if !raw {
		t, err := p.model.template()
		if err != nil {
			return p, nil, err
		}
		if next.chat, err = newChat(in, segments); err != nil {
			return p, nil, err
		}
		if next.rendered, err = next.chat.renderPrefix(t); err != nil {
			return p, nil, err
		}
	} else if in.Tools != "" {
		// For the suffix's messages: tools reach a model by its template alone.
		var err error
		if next.chat, err = newChat(in, nil); err != nil {
			return p, nil, err
		}
	}
	var err error
	key := memoKey{next.rendered, raw, in.Manifest.AddBOS, in.Manifest.IsZero()}
	if p.memo.tokens != nil && p.memo.key == key {
		next.memo = p.memo // an unchanged prefix is not tokenized again
		return next, clone(p.memo.tokens), nil
	}
	next.memo.key = key
	next.memo.tokens, err = p.tokenize("prefix", next.rendered, raw, true, in.Manifest)
	if err != nil {
		return p, nil, err
	}
	return next, clone(next.memo.tokens), nil
}

// suffix returns the tokens of a suffix, or of the whole context where that is
// not the rendered prefix and something more. first says that nothing is
// resident.
func (p prompt) suffix(in transport.SuffixInput, first bool) (tokens []Token, whole bool, err error) {
	if err := checkInput("suffix", in.Text, in.Images); err != nil {
		return nil, false, err
	}
	if !isChat(in.Manifest.Segments) {
		tokens, err = p.tokenize("suffix", in.Text, true, first, in.Manifest)
		return tokens, false, err
	}
	t, err := p.model.template()
	if err != nil {
		return nil, false, err
	}
	chat := p.chat
	if chat == nil {
		if chat, err = newChat(transport.PrefixInput{}, nil); err != nil {
			return nil, false, err
		}
	}
	if chat.messages == nil && p.rendered != "" {
		return nil, false, fmt.Errorf("%w: suffix: its segments are chat messages and the prefix is raw text; give the prefix segments too", transport.ErrManifestMismatch)
	}
	rendered, whole, err := chat.renderSuffix(t, p.rendered, in)
	if err != nil {
		return nil, false, err
	}
	tokens, err = p.tokenize("suffix", rendered, false, first || whole, in.Manifest)
	return tokens, whole, err
}

// forgotten is p without what it remembers of a prefix that is not resident.
func (p prompt) forgotten() prompt {
	return prompt{model: p.model, disableBOS: p.disableBOS}
}

// tokenize splits text. A beginning-of-sequence token goes before the first
// text of a context, where the manifest wants it or, without one, raw text of a
// model that wants it; templates write their own.
func (p prompt) tokenize(stage, text string, raw, first bool, m transport.ContextManifest) ([]Token, error) {
	if text == "" {
		return nil, nil
	}
	bos := m.AddBOS || raw && m.IsZero() && p.model.info.AddBOS
	tokens, err := p.model.runner.Tokenize(text, first && bos && !p.disableBOS)
	if err != nil {
		return nil, fmt.Errorf("%s: tokenize %d bytes: %w", stage, len(text), err)
	}
	return tokens, nil
}

// checkInput refuses what can't be tokenized.
func checkInput(stage, text string, images []transport.ImagePart) error {
	if len(images) > 0 {
		return fmt.Errorf("%w: %s: images need a model with vision, which this backend does not run", transport.ErrUnsupportedFeature, stage)
	}
	if at := invalidUTF8(text); at >= 0 {
		return fmt.Errorf("%s: invalid UTF-8 at byte %d; send text as UTF-8", stage, at)
	}
	return nil
}

// invalidUTF8 returns the offset of the first byte that is not UTF-8, -1
// without one.
func invalidUTF8(text string) int {
	if utf8.ValidString(text) {
		return -1
	}
	for i, r := range text {
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(text[i:]); size == 1 {
				return i
			}
		}
	}
	return -1
}

// clone returns a copy that is not nil: a job with a nil target keeps what its
// session has.
func clone(tokens []Token) []Token { return append(make([]Token, 0, len(tokens)), tokens...) }

var errNoTemplate = fmt.Errorf("%w: the model has no chat template; send raw text without role segments", transport.ErrUnsupportedFeature)
