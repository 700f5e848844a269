package engine

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/nikolalohinski/gonja/v2/builtins"
	controls "github.com/nikolalohinski/gonja/v2/builtins/control_structures"
	"github.com/nikolalohinski/gonja/v2/config"
	"github.com/nikolalohinski/gonja/v2/exec"
	"github.com/nikolalohinski/gonja/v2/loaders"
	"github.com/nikolalohinski/gonja/v2/nodes"
	"github.com/nikolalohinski/gonja/v2/parser"
)

// A chat template comes out of a model file: it gets no files and bounded time,
// output, loops and recursion.
const (
	maxTemplateBytes = 128 << 10
	maxRenderedBytes = 64 << 20
	maxRenderTime    = 5 * time.Second
	maxTemplateRange = 1 << 16
	maxTemplateDepth = 64
	guardName        = "render guard" // no template can name it
	rootTemplate     = "chat template"
	generationTag    = "generation"
	endGenerationTag = "endgeneration"
)

// chatTemplate is a model's Jinja chat template, rendered as the Hugging Face
// libraries do: trimmed blocks, raise_exception, strftime_now, and a tojson that
// writes what Python's json writes. It is safe for concurrent use.
type chatTemplate struct {
	template *exec.Template
	config   *config.Config
	bos, eos string
	now      func() time.Time
}

// chatInput is what one rendering gets.
type chatInput struct {
	messages        []message
	tools           any
	prompt          bool // add_generation_prompt
	enableThinking  *bool
	reasoningEffort string
	order           keyOrder
}

func parseChatTemplate(source, bos, eos string, now func() time.Time) (t *chatTemplate, err error) {
	if len(source) > maxTemplateBytes {
		return nil, fmt.Errorf("the chat template has %d bytes, the most is %d", len(source), maxTemplateBytes)
	}
	defer func() {
		if p := recover(); p != nil {
			t, err = nil, fmt.Errorf("the chat template can't be parsed: %v", p)
		}
	}()
	if source, err = portable(source); err != nil {
		return nil, fmt.Errorf("the chat template can't be parsed: %w", err)
	}
	cfg := config.New()
	cfg.TrimBlocks, cfg.LeftStripBlocks = true, true
	template, err := exec.NewTemplate(rootTemplate, cfg, templateLoader(source), templateEnvironment())
	if err != nil {
		// The library's text repeats the whole template.
		text := err.Error()
		if at := strings.LastIndex(text, "': "); at >= 0 {
			text = text[at+3:]
		}
		return nil, fmt.Errorf("the chat template can't be parsed: %s", text)
	}
	return &chatTemplate{template: template, config: cfg, bos: bos, eos: eos, now: now}, nil
}

// render renders messages.
func (t *chatTemplate) render(in chatInput) (text string, err error) {
	g := &guard{deadline: time.Now().Add(maxRenderTime)}
	defer func() {
		if p := recover(); p != nil {
			text, err = "", fmt.Errorf("chat template: %v", p)
		}
	}()
	data := map[string]any{
		guardName:               g,
		"messages":              listOf(in.messages),
		"add_generation_prompt": in.prompt,
		"bos_token":             t.bos,
		"eos_token":             t.eos,
		"raise_exception":       g.raise,
		"strftime_now": func(format string) string {
			return strftime(t.now(), format)
		},
	}
	if in.tools != nil {
		data["tools"] = in.tools
	}
	if in.enableThinking != nil {
		data["enable_thinking"] = *in.enableThinking
	}
	if in.reasoningEffort != "" {
		data["reasoning_effort"] = in.reasoningEffort
	}
	g.order = in.order
	shared := templateEnvironment()
	err = exec.NewRenderer(&exec.Environment{
		Context: shared.Context.Inherit().Update(exec.NewContext(data)),
		Filters: shared.Filters, Tests: shared.Tests, ControlStructures: shared.ControlStructures,
		Methods: methods(in.order),
	}, g, t.config, templateLoader(""), t.template).Execute()
	switch {
	case g.raised != "":
		return "", fmt.Errorf("chat template: %s", g.raised)
	case g.err != nil:
		return "", fmt.Errorf("chat template: %w", g.err)
	case err != nil:
		return "", fmt.Errorf("chat template: %w", lastCause(err))
	}
	return g.out.String(), nil
}

// lastCause is the innermost error of a chain, which says what went wrong; the
// others repeat the template.
func lastCause(err error) error {
	for {
		if c, ok := err.(interface{ Cause() error }); ok && c.Cause() != nil {
			err = c.Cause()
		} else if next := errors.Unwrap(err); next != nil {
			err = next
		} else {
			return err
		}
	}
}

// listOf copies the messages: a template can set their fields.
func listOf(messages []message) []any {
	list := make([]any, len(messages))
	for i, m := range messages {
		list[i] = maps.Clone(m)
	}
	return list
}

// guard is one rendering's output and its bounds.
type guard struct {
	out      strings.Builder
	deadline time.Time
	depth    int
	raised   string
	err      error
	order    keyOrder
}

// Write takes rendered text, up to the bounds.
func (g *guard) Write(p []byte) (int, error) {
	if err := g.check(); err != nil {
		return 0, err
	}
	if g.out.Len()+len(p) > maxRenderedBytes {
		g.err = fmt.Errorf("the rendered text exceeds %d bytes", maxRenderedBytes)
		return 0, g.err
	}
	return g.out.Write(p)
}

func (g *guard) check() error {
	if g.err == nil && time.Now().After(g.deadline) {
		g.err = fmt.Errorf("rendering takes longer than %v", maxRenderTime)
	}
	return g.err
}

// raise is raise_exception.
func (g *guard) raise(text string) (string, error) {
	g.raised = text
	if text == "" {
		g.raised = "the template refuses these messages"
	}
	return "", errors.New(g.raised)
}

func guardOf(r *exec.Renderer) *guard {
	g, _ := r.Environment.Context.Get(guardName)
	return g.(*guard)
}

// templateEnvironment is Jinja without access to other templates.
var templateEnvironment = sync.OnceValue(func() *exec.Environment {
	statements := make(map[string]parser.ControlStructureParser)
	for _, name := range []string{"for", "if", "set", "macro", "filter", "with", "do", "call", "raw", "break", "continue"} {
		if parse, ok := builtins.ControlStructures.Get(name); ok {
			statements[name] = guarded(parse)
		}
	}
	statements[generationTag] = parseGeneration
	filters := exec.NewFilterSet(map[string]exec.FilterFunction{}).Update(builtins.Filters)
	_ = filters.Replace("tojson", filterToJSON)
	globals := exec.EmptyContext().Update(builtins.GlobalFunctions).Update(builtins.GlobalVariables)
	globals.Set("range", boundedRange)
	return &exec.Environment{
		Context: globals, Filters: filters, Tests: builtins.Tests,
		ControlStructures: exec.NewControlStructureSet(statements), Methods: builtins.Methods,
	}
})

// guarded makes what parse returns check the rendering's bounds.
func guarded(parse parser.ControlStructureParser) parser.ControlStructureParser {
	return func(p, args *parser.Parser) (nodes.ControlStructure, error) {
		statement, err := parse(p, args)
		if err != nil {
			return nil, err
		}
		if loop, ok := statement.(*controls.ForControlStructure); ok && loop.Recursive {
			return nil, errors.New("recursive loops are not supported")
		}
		inner, ok := statement.(exec.ControlStructure)
		if !ok {
			return statement, nil
		}
		return &guardedStatement{inner}, nil
	}
}

type guardedStatement struct{ exec.ControlStructure }

// Execute executes the statement within the bounds; the macros that it defines
// get theirs.
func (s *guardedStatement) Execute(r *exec.Renderer, block *nodes.ControlStructureBlock) error {
	g := guardOf(r)
	if err := g.check(); err != nil {
		return err
	}
	if err := s.ControlStructure.Execute(r, block); err != nil {
		return err
	}
	if def, ok := s.ControlStructure.(*controls.MacroControlStructure); ok {
		if m, _ := r.Environment.Context.Get(def.Name); m != nil {
			r.Environment.Context.Set(def.Name, g.boundMacro(m.(exec.Macro)))
		}
	}
	return nil
}

// boundMacro limits the depth of calls: a stack overflow can't be recovered from.
func (g *guard) boundMacro(m exec.Macro) exec.Macro {
	return func(params *exec.VarArgs) *exec.Value {
		if g.depth++; g.depth > maxTemplateDepth {
			g.err = fmt.Errorf("macros call each other more than %d deep", maxTemplateDepth)
		}
		defer func() { g.depth-- }()
		if err := g.check(); err != nil {
			return exec.AsValue(err)
		}
		return m(params)
	}
}

// generationBlock is {% generation %}, which marks text for training and
// renders as its body.
type generationBlock struct {
	*nodes.Wrapper
}

func parseGeneration(p, args *parser.Parser) (nodes.ControlStructure, error) {
	if !args.End() {
		return nil, args.Error("generation takes no arguments", args.Current())
	}
	body, _, err := p.WrapUntil(endGenerationTag)
	if err != nil {
		return nil, err
	}
	return &generationBlock{body}, nil
}

func (b *generationBlock) Execute(r *exec.Renderer, _ *nodes.ControlStructureBlock) error {
	return r.ExecuteWrapper(b.Wrapper)
}

// boundedRange is range, as a list of bounded length.
func boundedRange(_ *exec.Evaluator, args *exec.VarArgs) ([]int, error) {
	var n []int
	for _, a := range args.Args {
		if a.IsInteger() {
			n = append(n, a.Integer())
		}
	}
	if len(n) != len(args.Args) {
		return nil, errors.New("range takes integers")
	}
	start, stop, step := 0, 0, 1
	switch len(n) {
	case 1:
		stop = n[0]
	case 2:
		start, stop = n[0], n[1]
	case 3:
		start, stop, step = n[0], n[1], n[2]
	}
	if len(n) == 0 || len(n) > 3 || step == 0 {
		return nil, errors.New("range takes [start,] stop [, step], and no step of 0")
	}
	list := []int{}
	for i := start; step > 0 && i < stop || step < 0 && i > stop; i += step {
		if len(list) == maxTemplateRange {
			return nil, fmt.Errorf("a range has more than %d numbers", maxTemplateRange)
		}
		list = append(list, i)
	}
	return list, nil
}

// templateLoader knows one template and no files.
type templateLoader string

func (l templateLoader) Read(name string) (io.Reader, error) {
	if name != rootTemplate {
		return nil, fmt.Errorf("a chat template can't read %q", name)
	}
	return strings.NewReader(string(l)), nil
}

func (l templateLoader) Resolve(name string) (string, error) { return name, nil }

func (l templateLoader) Inherit(string) (loaders.Loader, error) { return l, nil }

// strftime formats as C's does, as far as templates use it.
func strftime(t time.Time, format string) string {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		if layout, ok := strftimeLayouts[format[i]]; ok {
			b.WriteString(t.Format(layout))
		} else if format[i] == '%' {
			b.WriteByte('%')
		} else {
			b.WriteString(format[i-1 : i+1])
		}
	}
	return b.String()
}

// strftimeLayouts maps directives to Go's layouts.
var strftimeLayouts = map[byte]string{
	'a': "Mon", 'A': "Monday", 'b': "Jan", 'B': "January", 'd': "02", 'e': "_2", 'H': "15", 'I': "03",
	'j': "002", 'm': "01", 'M': "04", 'p': "PM", 'S': "05", 'y': "06", 'Y': "2006", 'Z': "MST", 'z': "-0700",
	'F': "2006-01-02", 'T': "15:04:05",
}
