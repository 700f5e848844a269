package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/nikolalohinski/gonja/v2/exec"
)

// keyOrder remembers the order of the keys of decoded JSON objects, by the
// identity of their maps: the models were trained on prompts that keep it, and
// Go's maps don't.
type keyOrder map[uintptr][]string

func (o keyOrder) of(m map[string]any) []string {
	if keys, ok := o[reflect.ValueOf(m).Pointer()]; ok && len(keys) == len(m) {
		return keys
	}
	return slices.Sorted(maps.Keys(m))
}

// decodeJSON decodes one JSON value and remembers the order of its keys.
func (o keyOrder) decodeJSON(text string) (any, error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	v, err := o.value(d)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("something follows the JSON value at byte %d", d.InputOffset())
	}
	return v, nil
}

func (o keyOrder) value(d *json.Decoder) (any, error) {
	tok, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t := tok.(type) {
	case json.Delim:
		if t == '[' {
			return o.list(d)
		}
		return o.object(d)
	case json.Number:
		if n, err := strconv.Atoi(t.String()); err == nil {
			return n, nil
		}
		return t.Float64()
	}
	return tok, nil
}

func (o keyOrder) list(d *json.Decoder) (any, error) {
	list := []any{}
	for d.More() {
		v, err := o.value(d)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err := d.Token()
	return list, err
}

func (o keyOrder) object(d *json.Decoder) (any, error) {
	m := make(map[string]any)
	var keys []string
	for d.More() {
		tok, err := d.Token()
		if err != nil {
			return nil, err
		}
		key, ok := tok.(string)
		if !ok {
			return nil, fmt.Errorf("an object's key is %v", tok)
		}
		v, err := o.value(d)
		if err != nil {
			return nil, err
		}
		if _, twice := m[key]; !twice {
			keys = append(keys, key)
		}
		m[key] = v
	}
	o[reflect.ValueOf(m).Pointer()] = keys
	_, err := d.Token()
	return m, err
}

// filterToJSON is tojson as the Hugging Face renderer has it: Python's
// json.dumps with ensure_ascii off.
func filterToJSON(e *exec.Evaluator, in *exec.Value, params *exec.VarArgs) *exec.Value {
	if in.IsError() {
		return in
	}
	w := &pythonJSON{item: ", ", key: ": "}
	if g, ok := e.Environment.Context.Get(guardName); ok {
		w.order = g.(*guard).order
	}
	indent := params.KwArgs["indent"]
	if indent == nil && len(params.Args) > 0 {
		indent = params.Args[0]
	}
	if indent != nil && indent.IsInteger() {
		if n := indent.Integer(); n < 0 || n > 16 {
			return exec.AsValue(fmt.Errorf("tojson with an indent of %d", n))
		}
		w.indent, w.item = strings.Repeat(" ", indent.Integer()), ","
		w.pretty = true
	}
	if s := params.KwArgs["separators"]; s != nil && s.Len() == 2 {
		w.item, w.key = s.Index(0).String(), s.Index(1).String()
	}
	if s := params.KwArgs["sort_keys"]; s != nil {
		w.sorted = s.IsTrue()
	}
	if s := params.KwArgs["ensure_ascii"]; s != nil {
		w.ascii = s.IsTrue()
	}
	w.write(in.Interface(), 0)
	if w.err != nil {
		return exec.AsValue(w.err)
	}
	return exec.AsSafeValue(w.b.String())
}

// pythonJSON writes JSON as Python's json.dumps does.
type pythonJSON struct {
	b             strings.Builder
	order         keyOrder
	indent        string
	item, key     string
	pretty, ascii bool
	sorted        bool
	err           error
}

const maxJSONDepth = 128

func (w *pythonJSON) write(v any, depth int) {
	if depth > maxJSONDepth || w.b.Len() > maxRenderedBytes {
		w.err = errors.New("tojson: the value is nested too deeply or too large")
	}
	if w.err != nil {
		return
	}
	switch t := v.(type) {
	case nil:
		w.b.WriteString("null")
	case *exec.Value:
		w.write(t.Interface(), depth)
	case string:
		w.string(t)
	case float64:
		w.float(t)
	case map[string]any:
		keys := w.order.of(t)
		w.pairs(len(keys), depth, func(i int) (string, any) { return keys[i], t[keys[i]] }, keys)
	case *exec.Dict:
		w.dict(*t, depth)
	case exec.Dict:
		w.dict(t, depth)
	default:
		w.reflected(v, depth)
	}
}

func (w *pythonJSON) dict(d exec.Dict, depth int) {
	keys := make([]string, len(d.Pairs))
	for i, p := range d.Pairs {
		keys[i] = p.Key.String()
	}
	w.pairs(len(keys), depth, func(i int) (string, any) { return keys[i], d.Pairs[i].Value }, keys)
}

// reflected writes other kinds of values.
func (w *pythonJSON) reflected(v any, depth int) {
	rv := reflect.ValueOf(v)
	switch rv.Kind() {
	case reflect.Slice, reflect.Array:
		w.b.WriteByte('[')
		for i := range rv.Len() {
			w.separate(i, depth+1)
			w.write(rv.Index(i).Interface(), depth+1)
		}
		w.end(rv.Len(), depth, ']')
	case reflect.Pointer, reflect.Interface:
		if rv.IsNil() {
			w.b.WriteString("null")
			return
		}
		w.write(rv.Elem().Interface(), depth)
	default:
		data, err := json.Marshal(v)
		if err != nil {
			w.err = fmt.Errorf("tojson: %w", err)
			return
		}
		w.b.Write(data)
	}
}

func (w *pythonJSON) pairs(n, depth int, at func(int) (string, any), keys []string) {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	if w.sorted {
		slices.SortStableFunc(order, func(a, b int) int { return strings.Compare(keys[a], keys[b]) })
	}
	w.b.WriteByte('{')
	for pos, i := range order {
		w.separate(pos, depth+1)
		k, v := at(i)
		w.string(k)
		w.b.WriteString(w.key)
		w.write(v, depth+1)
	}
	w.end(n, depth, '}')
}

func (w *pythonJSON) separate(i, depth int) {
	if i > 0 {
		w.b.WriteString(w.item)
	}
	if w.pretty {
		w.b.WriteByte('\n')
		w.b.WriteString(strings.Repeat(w.indent, depth))
	}
}

func (w *pythonJSON) end(n, depth int, closing byte) {
	if w.pretty && n > 0 {
		w.b.WriteByte('\n')
		w.b.WriteString(strings.Repeat(w.indent, depth))
	}
	w.b.WriteByte(closing)
}

func (w *pythonJSON) string(s string) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		w.err = fmt.Errorf("tojson: %w", err)
		return
	}
	text := strings.TrimSuffix(buf.String(), "\n")
	// Go escapes two line separators that Python leaves alone.
	text = strings.NewReplacer(`\\`, `\\`, `\u2028`, "\u2028", `\u2029`, "\u2029").Replace(text)
	if !w.ascii {
		w.b.WriteString(text)
		return
	}
	for _, r := range text {
		switch {
		case r < 0x80:
			w.b.WriteRune(r)
		case r < 0x10000:
			fmt.Fprintf(&w.b, `\u%04x`, r)
		default:
			r -= 0x10000
			fmt.Fprintf(&w.b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		}
	}
}

// float writes as Python's repr: always with a point or an exponent.
func (w *pythonJSON) float(f float64) {
	text := strconv.FormatFloat(f, 'g', -1, 64)
	if a := max(f, -f); a >= 1e-4 && a < 1e16 || f == 0 {
		text = strconv.FormatFloat(f, 'f', -1, 64)
		if !strings.Contains(text, ".") {
			text += ".0"
		}
	}
	w.b.WriteString(text)
}
