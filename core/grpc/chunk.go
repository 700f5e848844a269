package grpc

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"modeld/core/transport"
)

// chunkBody is a message of Decode's stream. One with an error is the last.
//
// It crosses the wire twice for every token, so its common form, text and no
// more, has a decoder of its own, which saves most of encoding/json's time. The
// encoder saves less; it is there because encoding/json escapes <, > and &,
// which the decoder leaves to encoding/json.
type chunkBody struct {
	Text         string                           `json:"text,omitempty"`
	Thinking     string                           `json:"thinking,omitempty"`
	ToolCalls    []transport.ToolCall             `json:"tool_calls,omitempty"`
	Error        string                           `json:"error,omitempty"`
	ErrorToken   string                           `json:"error_token,omitempty"`
	ErrorDetail  *transport.ContextOverflowDetail `json:"error_detail,omitempty"`
	Tokens       int                              `json:"tokens,omitempty"`
	FinishReason string                           `json:"finish_reason,omitempty"`
}

func (b *chunkBody) set(c *transport.StreamChunk) {
	*b = chunkBody{
		Text: c.Text, Thinking: c.Thinking, ToolCalls: c.ToolCalls, Tokens: c.Tokens, FinishReason: c.FinishReason,
	}
	if c.Error != nil {
		b.Error, b.ErrorToken = c.Error.Error(), rowOf(c.Error).token
		if d, ok := transport.ContextOverflowDetailFromError(c.Error); ok {
			b.ErrorDetail = &d
		}
	}
}

func (b *chunkBody) chunk() transport.StreamChunk {
	c := transport.StreamChunk{
		Text: b.Text, Thinking: b.Thinking, ToolCalls: b.ToolCalls, Tokens: b.Tokens, FinishReason: b.FinishReason,
	}
	if b.Error != "" || b.ErrorToken != "" {
		c.Error = rebuild(b.ErrorToken, b.Error, b.ErrorDetail)
	}
	return c
}

// appendJSON appends the chunk as encoding/json would write it, except that it
// escapes no more than JSON asks for.
func (b *chunkBody) appendJSON(dst []byte) ([]byte, error) {
	if b.ToolCalls != nil || b.Error != "" || b.ErrorToken != "" || b.ErrorDetail != nil {
		data, err := json.Marshal(b)
		return append(dst, data...), err
	}
	dst = append(slices.Grow(dst, len(b.Text)+len(b.Thinking)+len(b.FinishReason)+64), '{')
	first := len(dst)
	dst = appendMember(dst, first, "text", b.Text)
	dst = appendMember(dst, first, "thinking", b.Thinking)
	if b.Tokens != 0 {
		dst = appendKey(dst, first, "tokens")
		dst = strconv.AppendInt(dst, int64(b.Tokens), 10)
	}
	dst = appendMember(dst, first, "finish_reason", b.FinishReason)
	return append(dst, '}'), nil
}

func appendMember(dst []byte, first int, key, value string) []byte {
	if value == "" {
		return dst
	}
	return appendString(appendKey(dst, first, key), value)
}

func appendKey(dst []byte, first int, key string) []byte {
	if len(dst) > first {
		dst = append(dst, ',')
	}
	dst = append(dst, '"')
	dst = append(dst, key...)
	return append(dst, '"', ':')
}

const hexDigits = "0123456789abcdef"

func appendString(dst []byte, s string) []byte {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	dst = append(dst, '"')
	start := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\t':
			dst = append(dst, '\\', 't')
		case '\r':
			dst = append(dst, '\\', 'r')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xf])
		}
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

// parseJSON decodes what appendJSON writes. It gives up on anything else, such
// as white space, other members and \u escapes.
func (b *chunkBody) parseJSON(data []byte) bool {
	var got chunkBody
	if len(data) < 2 || data[0] != '{' {
		return false
	}
	rest := data[1:]
	if len(rest) == 1 && rest[0] == '}' {
		*b = got
		return true
	}
	for {
		key, after, ok := cutKey(rest)
		if !ok {
			return false
		}
		switch string(key) {
		case "text":
			got.Text, rest, ok = cutString(after)
		case "thinking":
			got.Thinking, rest, ok = cutString(after)
		case "finish_reason":
			got.FinishReason, rest, ok = cutString(after)
		case "tokens":
			got.Tokens, rest, ok = cutNumber(after)
		default:
			return false
		}
		if !ok || len(rest) == 0 {
			return false
		}
		if rest[0] == '}' && len(rest) == 1 {
			*b = got
			return true
		}
		if rest[0] != ',' {
			return false
		}
		rest = rest[1:]
	}
}

// cutKey cuts `"key":` off data.
func cutKey(data []byte) (key, rest []byte, ok bool) {
	if len(data) == 0 || data[0] != '"' {
		return nil, nil, false
	}
	end := bytes.IndexByte(data[1:], '"')
	if end < 0 || len(data) < end+3 || data[end+2] != ':' {
		return nil, nil, false
	}
	return data[1 : end+1], data[end+3:], true
}

// cutNumber cuts a whole number of up to nine digits off data.
func cutNumber(data []byte) (n int, rest []byte, ok bool) {
	i := 0
	for i < len(data) && data[i] >= '0' && data[i] <= '9' {
		n = n*10 + int(data[i]-'0')
		i++
	}
	if i == 0 || i > 9 || (data[0] == '0' && i > 1) {
		return 0, nil, false
	}
	return n, data[i:], true
}

// cutString cuts a string off data.
func cutString(data []byte) (s string, rest []byte, ok bool) {
	if len(data) == 0 || data[0] != '"' {
		return "", nil, false
	}
	for i := 1; i < len(data); i++ {
		switch c := data[i]; {
		case c == '"':
			return string(data[1:i]), data[i+1:], true
		case c == '\\':
			return cutEscaped(data, i)
		case c < ' ':
			return "", nil, false
		}
	}
	return "", nil, false
}

// cutEscaped is cutString for one with escapes, the first of them at data[i].
func cutEscaped(data []byte, i int) (s string, rest []byte, ok bool) {
	out := make([]byte, 0, len(data))
	out = append(out, data[1:i]...)
	for ; i < len(data); i++ {
		c := data[i]
		switch {
		case c == '"':
			return string(out), data[i+1:], true
		case c < ' ':
			return "", nil, false
		case c == '\\':
			i++
			if i == len(data) {
				return "", nil, false
			}
			switch data[i] {
			case '"', '\\':
				c = data[i]
			case 'n':
				c = '\n'
			case 't':
				c = '\t'
			case 'r':
				c = '\r'
			default:
				return "", nil, false
			}
		}
		out = append(out, c)
	}
	return "", nil, false
}
