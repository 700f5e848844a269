package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"modeld/core/transport"
)

// message is one chat message, in the shape that templates expect.
type message = map[string]any

// chatState is what a session knows of its prefix as a chat.
type chatState struct {
	messages []message
	prompt   bool // an assistant_prompt closes the prefix
	tools    any
	order    keyOrder
}

func stableSegments(all []transport.ManifestSegment) []transport.ManifestSegment {
	var stable []transport.ManifestSegment
	for _, s := range all {
		if s.Stable {
			stable = append(stable, s)
		}
	}
	return stable
}

func isChat(segments []transport.ManifestSegment) bool {
	for _, s := range segments {
		if s.IsRole() || s.Kind == transport.SegmentAssistantPrompt {
			return true
		}
	}
	return false
}

// messagesOf cuts text into the messages that segments describe; text begins at
// byte base of the whole. prompt reports an assistant_prompt.
func (o keyOrder) messagesOf(stage, text string, base int, segments []transport.ManifestSegment) (messages []message, prompt bool, err error) {
	end := base
	for i, s := range segments {
		refuse := func(format string, args ...any) ([]message, bool, error) {
			return nil, false, fmt.Errorf("%w: %s: segment %d (%s): %s", transport.ErrManifestMismatch, stage, i, s.Kind, fmt.Sprintf(format, args...))
		}
		if s.Kind == transport.SegmentAssistantPrompt {
			prompt = true
			continue
		}
		if !s.IsRole() {
			continue
		}
		switch {
		case s.ByteStart < base || s.ByteEnd > base+len(text) || s.ByteStart > s.ByteEnd:
			return refuse("bytes %d to %d are not within the text's %d to %d", s.ByteStart, s.ByteEnd, base, base+len(text))
		case s.ByteStart < end:
			return refuse("it begins at byte %d, before the end of the one before it at %d", s.ByteStart, end)
		case prompt:
			return refuse("it comes after the assistant_prompt, which must be the last")
		}
		end = s.ByteEnd
		content := text[s.ByteStart-base : s.ByteEnd-base]
		if at := invalidUTF8(content); at >= 0 {
			return refuse("its bytes cut a character at byte %d", s.ByteStart+at)
		}
		m := message{"role": s.Kind, "content": content}
		if s.ToolCallID != "" {
			m["tool_call_id"] = s.ToolCallID
		}
		if s.ToolCallsJSON != "" {
			calls, err := o.toolCalls(s.ToolCallsJSON)
			if err != nil {
				return refuse("tool_calls_json: %v", err)
			}
			m["tool_calls"] = calls
		}
		messages = append(messages, m)
	}
	return messages, prompt, nil
}

// toolCalls decodes an assistant's calls. Arguments that are JSON objects as
// text become objects, as templates expect.
func (o keyOrder) toolCalls(text string) ([]any, error) {
	v, err := o.decodeJSON(text)
	if err != nil {
		return nil, err
	}
	calls, ok := v.([]any)
	if !ok {
		return nil, errors.New("it is no JSON array")
	}
	for i, c := range calls {
		call, ok := c.(message)
		if !ok {
			return nil, fmt.Errorf("call %d is no JSON object", i)
		}
		function := call
		if f, ok := call["function"].(message); ok {
			function = f
		}
		if args, ok := function["arguments"].(string); ok && strings.HasPrefix(strings.TrimSpace(args), "{") {
			if v, err := o.decodeJSON(args); err == nil {
				function["arguments"] = v
			}
		}
	}
	return calls, nil
}

// newChat begins the chat of a prefix.
func newChat(in transport.PrefixInput, segments []transport.ManifestSegment) (*chatState, error) {
	c := &chatState{order: make(keyOrder)}
	var err error
	if c.messages, c.prompt, err = c.order.messagesOf("prefix", in.Text, 0, segments); err != nil {
		return nil, err
	}
	if in.Tools != "" {
		if !json.Valid([]byte(in.Tools)) {
			return nil, errors.New("prefix: Tools is no JSON")
		}
		if c.tools, err = c.order.decodeJSON(in.Tools); err != nil {
			return nil, fmt.Errorf("prefix: Tools: %w", err)
		}
		if list, ok := c.tools.([]any); !ok {
			return nil, errors.New("prefix: Tools is no JSON array")
		} else if len(list) == 0 {
			c.tools = nil
		}
	}
	return c, nil
}

func (c *chatState) input() chatInput {
	return chatInput{messages: c.messages, tools: c.tools, prompt: c.prompt, order: c.order}
}

// renderPrefix renders the prefix's messages. Where the template refuses to
// render them alone, as some do without a user's message, it renders what they
// have in common before any two continuations.
func (c *chatState) renderPrefix(t *chatTemplate) (string, error) {
	if len(c.messages) == 0 && !c.prompt {
		return "", nil
	}
	text, err := t.render(c.input())
	if err == nil {
		return text, nil
	}
	var probes [2]string
	for i, content := range []string{"0", "1"} {
		in := c.input()
		in.messages = append(in.messages[:len(in.messages):len(in.messages)], message{"role": "user", "content": content})
		var probeErr error
		if probes[i], probeErr = t.render(in); probeErr != nil {
			return "", fmt.Errorf("prefix: %w", err)
		}
	}
	return probes[0][:commonBytes(probes[0], probes[1])], nil
}

// renderSuffix renders the suffix's messages after the prefix's: the text that
// follows prefix, or all of it (whole) where the template renders the prefix
// otherwise in company.
func (c *chatState) renderSuffix(t *chatTemplate, prefix string, in transport.SuffixInput) (text string, whole bool, err error) {
	var volatile []transport.ManifestSegment
	for _, s := range in.Manifest.Segments {
		if !s.Stable {
			volatile = append(volatile, s)
		}
	}
	messages, prompt, err := c.order.messagesOf("suffix", in.Text, in.Manifest.StableBytes, volatile)
	if err != nil {
		return "", false, err
	}
	all := c.input()
	all.messages = append(all.messages[:len(all.messages):len(all.messages)], messages...)
	all.prompt = prompt
	all.enableThinking, all.reasoningEffort = in.EnableThinking, in.ReasoningEffort
	if text, err = t.render(all); err != nil {
		return "", false, fmt.Errorf("suffix: %w", err)
	}
	if rest, ok := strings.CutPrefix(text, prefix); ok {
		return rest, false, nil
	}
	return text, true, nil
}
