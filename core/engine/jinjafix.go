package engine

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// What chat templates use of Jinja and Python and the library lacks.

// portable rewrites what the library gets wrong. Conditional expressions
// (A if C else B), which it takes at the top of an output alone, become
// ((C) and [A] or [B])[0]: "and" and "or" give an operand and evaluate no more
// than they need. An index from the end, which fails for a list's first item,
// becomes a slice's first item.
//
// It refuses brackets nested so deep that the parser's recursion could take the
// process down.
func portable(source string) (string, error) {
	var out strings.Builder
	for source != "" {
		open := indexTag(source)
		if open < 0 || open+2 > len(source) {
			break
		}
		closing := map[byte]string{'{': "}}", '%': "%}", '#': "#}"}[source[open+1]]
		end := endOfTag(source[open+2:], closing, source[open+1] == '#')
		if end < 0 {
			break
		}
		end += open + 2
		out.WriteString(source[:open+2])
		body := source[open+2 : end]
		if source[open+1] != '#' && depthOf(body) > maxBracketDepth {
			return "", fmt.Errorf("brackets are nested more than %d deep", maxBracketDepth)
		}
		switch source[open+1] {
		case '{':
			body = rewriteAround(body, 0)
		case '%':
			body = rewriteStatement(body)
		}
		if source[open+1] != '#' {
			body = rewriteNegative(body)
		}
		out.WriteString(body)
		out.WriteString(closing)
		source = source[end+2:]
	}
	out.WriteString(source)
	return out.String(), nil
}

const maxBracketDepth = 100

func depthOf(s string) (deepest int) {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\'' || c == '"':
			i = endOfString(s, i)
		case strings.IndexByte("([{", c) >= 0:
			depth++
			deepest = max(deepest, depth)
		case strings.IndexByte(")]}", c) >= 0:
			depth--
		}
	}
	return deepest
}

var negativeIndex = regexp.MustCompile(`^\[\s*-\s*(\d+)\s*\]`)

// rewriteNegative rewrites x[-n] as x[-n:][0].
func rewriteNegative(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\'' || c == '"':
			end := min(endOfString(s, i)+1, len(s))
			out.WriteString(s[i:end])
			i = end - 1
		case c == '[' && i > 0 && (isWord(s[i-1]) || s[i-1] == ')' || s[i-1] == ']'):
			if m := negativeIndex.FindStringSubmatch(s[i:]); m != nil {
				out.WriteString("[-" + m[1] + ":][0]")
				i += len(m[0]) - 1
				continue
			}
			out.WriteByte(c)
		default:
			out.WriteByte(c)
		}
	}
	return out.String()
}

func indexTag(s string) int {
	for i := 0; i+1 < len(s); i++ {
		if s[i] == '{' && (s[i+1] == '{' || s[i+1] == '%' || s[i+1] == '#') {
			return i
		}
	}
	return -1
}

// endOfTag returns where closing stands outside of strings.
func endOfTag(s, closing string, comment bool) int {
	if comment {
		return strings.Index(s, closing)
	}
	depth := 0
	for i := 0; i < len(s); i++ {
		if depth <= 0 && strings.HasPrefix(s[i:], closing) {
			return i
		}
		switch s[i] {
		case '\'', '"':
			i = endOfString(s, i)
		case '{':
			depth++
		case '}':
			depth--
		}
	}
	return -1
}

// endOfString returns the index of the quote that ends the string at i.
func endOfString(s string, i int) int {
	quote := s[i]
	for i++; i < len(s) && s[i] != quote; i++ {
		if s[i] == '\\' {
			i++
		}
	}
	return i
}

// rewriteStatement rewrites the expression of a statement: what follows its
// name and, for set, the assignment.
func rewriteStatement(body string) string {
	trimmed := strings.TrimLeft(body, "-+ \t\r\n")
	at := len(body) - len(trimmed)
	name := trimmed
	if i := strings.IndexFunc(trimmed, func(r rune) bool { return !unicode.IsLetter(r) }); i >= 0 {
		name = trimmed[:i]
	}
	at += len(name)
	if name == "for" {
		// "if" is the loop's filter here, but not within brackets.
		return body[:at] + rewriteBrackets(body[at:])
	}
	if name == "set" {
		for _, p := range splitTop(body[at:]) {
			if p.separator == "=" {
				at += p.end + 1
				break
			}
		}
	}
	return rewriteAround(body, at)
}

// rewriteAround rewrites body from at on, but for the signs that trim space.
func rewriteAround(body string, at int) string {
	inner := body[at:]
	lead := len(inner) - len(strings.TrimLeft(inner, "-+ \t\r\n"))
	if at > 0 {
		lead = len(inner) - len(strings.TrimLeft(inner, " \t\r\n"))
	}
	tail := len(strings.TrimRight(inner, "-+ \t\r\n"))
	if lead >= tail {
		return body
	}
	return body[:at] + inner[:lead] + rewriteExpression(inner[lead:tail]) + inner[tail:]
}

// part is a piece of an expression between separators at its top level.
type part struct {
	start, end int
	separator  string // what ends it: ",", ":", "=", "if", "else" or "" for the end
}

// splitTop cuts an expression at the separators outside of brackets and strings.
func splitTop(s string) []part {
	var parts []part
	start, depth := 0, 0
	cut := func(at int, sep string) {
		parts = append(parts, part{start, at, sep})
		start = at + len(sep)
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\'' || c == '"':
			i = endOfString(s, i)
		case strings.IndexByte("([{", c) >= 0:
			depth++
		case strings.IndexByte(")]}", c) >= 0:
			depth--
		case depth > 0:
		case c == ',' || c == ':':
			cut(i, string(c))
		case c == '=' || c == '!' || c == '<' || c == '>':
			if i+1 < len(s) && s[i+1] == '=' {
				i++
			} else if c == '=' {
				cut(i, "=")
			}
		case isWord(c):
			j := i
			for j < len(s) && isWord(s[j]) {
				j++
			}
			if w := s[i:j]; w == "if" || w == "else" {
				cut(i, w)
			}
			i = j - 1
		}
	}
	return append(parts, part{start, len(s), ""})
}

func isWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// rewriteExpression rewrites a list of expressions, as within brackets.
func rewriteExpression(s string) string {
	var out strings.Builder
	parts := splitTop(s)
	for i := 0; i < len(parts); i++ {
		last := i
		for parts[last].separator == "if" || parts[last].separator == "else" {
			last++
		}
		out.WriteString(rewriteTernary(s, parts[i:last+1]))
		out.WriteString(parts[last].separator)
		i = last
	}
	return out.String()
}

// rewriteTernary rewrites A if C else B, where B may be another one.
func rewriteTernary(s string, parts []part) string {
	text := func(p part) string { return rewriteBrackets(s[p.start:p.end]) }
	if len(parts) == 1 {
		return text(parts[0])
	}
	if parts[0].separator != "if" {
		return s[parts[0].start:parts[len(parts)-1].end]
	}
	other := "none"
	if parts[1].separator == "else" {
		other = rewriteTernary(s, parts[2:])
	}
	return fmt.Sprintf("((%s) and [%s] or [%s])[0]", strings.TrimSpace(text(parts[1])), strings.TrimSpace(text(parts[0])), strings.TrimSpace(other))
}

// rewriteBrackets rewrites what is within brackets in s.
func rewriteBrackets(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\'' || s[i] == '"':
			end := min(endOfString(s, i)+1, len(s))
			out.WriteString(s[i:end])
			i = end - 1
		case strings.IndexByte("([{", s[i]) >= 0:
			end := endOfBracket(s, i)
			out.WriteByte(s[i])
			out.WriteString(rewriteExpression(s[i+1 : end]))
			i = end - 1
		default:
			out.WriteByte(s[i])
		}
	}
	return out.String()
}

func endOfBracket(s string, i int) int {
	depth := 0
	for ; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\'' || c == '"':
			i = endOfString(s, i)
		case strings.IndexByte("([{", c) >= 0:
			depth++
		case strings.IndexByte(")]}", c) >= 0:
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return len(s)
}
