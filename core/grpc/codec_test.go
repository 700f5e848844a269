package grpc

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

	"modeld/core/transport"
)

func TestCodecIsRegistered(t *testing.T) {
	c := encoding.GetCodecV2("contenoxtransportjson")
	if c == nil || c.Name() != CodecName {
		t.Fatalf("the registered codec is %v", c)
	}
}

func TestCodecUnmarshal(t *testing.T) {
	for _, c := range []struct {
		name  string
		parts []string
		want  string // the handle; "!" and a word of the error otherwise
	}{
		{"one buffer", []string{`{"handle":"a/1"}`}, "a/1"},
		{"several buffers", []string{`{"hand`, `le":"a/`, `1"}`}, "a/1"},
		{"unknown keys are left alone", []string{`{"x":[1],"handle":"a/1"}`}, "a/1"},
		{"nothing at all", nil, ""},
		{"an empty object", []string{`{}`}, ""},
		{"not JSON", []string{`handle`}, "!invalid"},
		{"cut off", []string{`{"handle":"a`}, "!unexpected end"},
		{"another type", []string{`{"handle":7}`}, "!cannot unmarshal"},
		{"invalid UTF-8", []string{"{\"handle\":\"\xff\"}"}, "!not valid UTF-8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var data mem.BufferSlice
			for _, p := range c.parts {
				data = append(data, mem.SliceBuffer(p))
			}
			var got handleBody
			err := codec{}.Unmarshal(data, &got)
			if word, bad := strings.CutPrefix(c.want, "!"); bad {
				if err == nil || !strings.Contains(err.Error(), word) {
					t.Fatalf("error %v, want one with %q", err, word)
				}
				return
			}
			if err != nil || got.Handle != c.want {
				t.Fatalf("%q, %v; want %q", got.Handle, err, c.want)
			}
		})
	}
}

func TestCodecRefusesWhatJSONCannotSay(t *testing.T) {
	if _, err := (codec{}).Marshal(make(chan int)); err == nil {
		t.Error("a channel was encoded")
	}
}

// TestChunkForms holds the wire form of chunks still, fast encoder or not.
func TestChunkForms(t *testing.T) {
	for _, c := range []struct {
		name  string
		chunk transport.StreamChunk
		want  string
	}{
		{"empty", transport.StreamChunk{}, `{}`},
		{"text", transport.StreamChunk{Text: " sea"}, `{"text":" sea"}`},
		{"text and tokens", transport.StreamChunk{Text: "a", Tokens: 12}, `{"text":"a","tokens":12}`},
		{"end", transport.StreamChunk{FinishReason: "stop"}, `{"finish_reason":"stop"}`},
		{"thinking", transport.StreamChunk{Thinking: "hm", Tokens: 1}, `{"thinking":"hm","tokens":1}`},
		{"escapes", transport.StreamChunk{Text: "\"\\\n\t\r\x01<&>日本 😀\u2028"}, `{"text":"\"\\\n\t\r\u0001<&>日本 😀` + "\u2028" + `"}`},
		{"invalid UTF-8", transport.StreamChunk{Text: "a\xff\xfeb"}, `{"text":"a` + "\uFFFD" + `b"}`},
		{
			"tool call",
			transport.StreamChunk{ToolCalls: []transport.ToolCall{{ID: "1", Type: "function", Function: transport.ToolCallFunction{Name: "f", Arguments: "{}"}}}},
			`{"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]}`,
		},
		{
			"error",
			transport.StreamChunk{Error: transport.ErrSessionClosed},
			`{"error":"session closed","error_token":"session_closed"}`,
		},
		{
			"overflow",
			transport.StreamChunk{Error: transport.NewContextOverflowError("decode", 8, 1, 8)},
			`{"error":"context overflow at decode: 8 resident + 1 additional tokens exceed the context of 8",` +
				`"error_token":"context_overflow","error_detail":{"stage":"decode","resident_tokens":8,"additional_tokens":1,"num_ctx":8}}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b chunkBody
			b.set(&c.chunk)
			data, err := codec{}.Marshal(&b)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(data.Materialize()); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// FuzzChunkParse checks the fast decoder against encoding/json: whatever it
// takes, both read alike.
func FuzzChunkParse(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"text":"a"}`, `{"text":"a\n\"\\","tokens":1}`, `{"tokens":1,"finish_reason":"stop"}`, `{"text":"a","text":"b"}`,
		`{"thinking":"日本"}`, `{"text":"\u00e9"}`, `{"tokens":01}`, `{"tokens":1234567890123}`, `{"text":"a"}x`, `{"text":"a",}`,
		`{"text":null}`, `{"Text":"a"}`, `{"error":"x","error_token":"model_busy"}`, `{"text":"a" }`, `{"text":"\/"}`, "{\"text\":\"\x01\"}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if !utf8.Valid(data) {
			if err := unmarshal(data, &chunkBody{}); err == nil {
				t.Fatal("invalid UTF-8 was taken")
			}
			return
		}
		var fast, slow chunkBody
		if !fast.parseJSON(data) {
			if !reflect.DeepEqual(fast, chunkBody{}) {
				t.Fatalf("%q was given up and left %+v", data, fast)
			}
			return
		}
		if err := json.Unmarshal(data, &slow); err != nil {
			t.Fatalf("%q is no JSON (%v) and was taken as %+v", data, err, fast)
		}
		if !reflect.DeepEqual(fast, slow) {
			t.Fatalf("%q is %+v, was taken as %+v", data, slow, fast)
		}
	})
}

// FuzzChunkRoundTrip checks that any text crosses the wire whole, also to a
// peer that knows encoding/json alone.
func FuzzChunkRoundTrip(f *testing.F) {
	f.Add("text", "thinking", 1, "stop")
	f.Add("\x00\"\\\n\u2028😀\xff", "", 0, "")
	f.Fuzz(func(t *testing.T, text, thinking string, tokens int, finish string) {
		var sent chunkBody
		sent.set(&transport.StreamChunk{Text: text, Thinking: thinking, Tokens: tokens, FinishReason: finish})
		data, err := sent.appendJSON(nil)
		if err != nil {
			t.Fatal(err)
		}
		want := chunkBody{
			Text: strings.ToValidUTF8(text, "\uFFFD"), Thinking: strings.ToValidUTF8(thinking, "\uFFFD"),
			Tokens: tokens, FinishReason: strings.ToValidUTF8(finish, "\uFFFD"),
		}
		var ours, theirs chunkBody
		if err := unmarshal(data, &ours); err != nil || !reflect.DeepEqual(ours, want) {
			t.Errorf("%s is read as %+v (%v), want %+v", data, ours, err, want)
		}
		if err := json.Unmarshal(data, &theirs); err != nil || !reflect.DeepEqual(theirs, want) {
			t.Errorf("%s is read by encoding/json as %+v (%v), want %+v", data, theirs, err, want)
		}
	})
}

// FuzzRequests feeds every request's decoder: it must never panic, and what it
// took must survive a round trip.
func FuzzRequests(f *testing.F) {
	f.Add([]byte(`{"handle":"a/1","prefix":{"Text":"x","Manifest":{"segments":[{"kind":"user"}]},"images":[{"data":"AAAA"}]}}`))
	f.Add([]byte(`{"handle":"a/1","config":{"MaxTokens":3,"Temperature":0.5}}`))
	f.Add([]byte(`{"owner_instance_id":"a","model_name":"m","config":{"NumCtx":5,"TensorSplit":[0.5]},"adapters":[{"scale":1}]}`))
	f.Add([]byte(`{"handle":"a/1","snapshot":{"resident_token_ids":[1,2],"cold_kv_blocks":[{"kv":"AA=="}]}}`))
	f.Add([]byte(`{"manifest":{"name":"m","format":"tar"},"data":"AAAA"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, body := range []any{
			&ownerBody{}, &modelBody{}, &loadBody{}, &unloadBody{}, &embedBody{}, &handleBody{}, &closeBody{}, &prefixBody{},
			&suffixBody{}, &decodeBody{}, &restoreBody{}, &removeBody{}, &pushBody{}, &chunkBody{},
		} {
			if err := unmarshal(data, body); err != nil {
				continue
			}
			encoded, err := codec{}.Marshal(body)
			if err != nil {
				t.Fatalf("%T was read from %q and can't be written: %v", body, data, err)
			}
			again := reflect.New(reflect.TypeOf(body).Elem()).Interface()
			if err := unmarshal(encoded.Materialize(), again); err != nil {
				t.Fatalf("%T was written as %q and can't be read: %v", body, encoded.Materialize(), err)
			}
		}
	})
}
