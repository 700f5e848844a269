package engine

import (
	"errors"
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
	messages []message // its chat messages, where it is a chat
	chat     bool
	rendered string  // what was tokenized
	tokens   []Token // into this
}

// prefix returns the prompt and tokens of a new prefix.
func (p prompt) prefix(in transport.PrefixInput) (prompt, []Token, error) {
	if err := checkInput("prefix", in.Text, in.Images); err != nil {
		return p, nil, err
	}
	next := prompt{model: p.model, disableBOS: p.disableBOS, text: in.Text, tools: in.Tools}
	rendered := in.Text
	segments := stableSegments(in.Manifest.Segments)
	if hasRoles(segments) {
		var err error
		next.chat = true
		next.messages, next.rendered, err = p.renderPrefix(in, segments)
		if err != nil {
			return p, nil, err
		}
		rendered = next.rendered
	}
	next.rendered = rendered
	if rendered == p.rendered && next.chat == p.chat && p.tokens != nil {
		next.tokens = p.tokens // an unchanged prefix is not tokenized again
		return next, clone(p.tokens), nil
	}
	tokens, err := p.tokenize("prefix", rendered, !next.chat, true, in.Manifest)
	if err != nil {
		return p, nil, err
	}
	next.tokens = tokens
	return next, clone(tokens), nil
}

// suffix returns the tokens of a suffix, or of the whole context where that is
// not the rendered prefix and something more. first says that nothing is
// resident.
func (p prompt) suffix(in transport.SuffixInput, first bool) (tokens []Token, whole bool, err error) {
	if err := checkInput("suffix", in.Text, in.Images); err != nil {
		return nil, false, err
	}
	if !hasRoles(in.Manifest.Segments) {
		tokens, err = p.tokenize("suffix", in.Text, true, first, in.Manifest)
		return tokens, false, err
	}
	rendered, whole, err := p.renderSuffix(in)
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

// message is one chat message, in the shape that templates expect.
type message = map[string]any

func stableSegments(all []transport.ManifestSegment) []transport.ManifestSegment {
	var stable []transport.ManifestSegment
	for _, s := range all {
		if s.Stable {
			stable = append(stable, s)
		}
	}
	return stable
}

func hasRoles(segments []transport.ManifestSegment) bool {
	for _, s := range segments {
		if s.IsRole() || s.Kind == transport.SegmentAssistantPrompt {
			return true
		}
	}
	return false
}

func (p prompt) renderPrefix(transport.PrefixInput, []transport.ManifestSegment) ([]message, string, error) {
	return nil, "", errors.Join(errNoTemplate)
}

func (p prompt) renderSuffix(transport.SuffixInput) (string, bool, error) {
	return "", false, errNoTemplate
}
