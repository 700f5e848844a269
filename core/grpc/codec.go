package grpc

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

// CodecName is the content-subtype of every call.
const CodecName = "contenoxtransportjson"

const (
	serviceName = "contenox.transport.v1.Compute"
	// maxMessageBytes is the largest message that either side takes.
	maxMessageBytes = 512 << 20
)

func init() { encoding.RegisterCodecV2(codec{}) }

// codec carries messages as JSON.
type codec struct{}

func (codec) Name() string { return CodecName }

// appender is a message with an encoder of its own.
type appender interface {
	appendJSON(dst []byte) ([]byte, error)
}

// parser is a message with a decoder of its own for the common form; it reports
// false, and leaves the message alone, for any other.
type parser interface {
	parseJSON(data []byte) bool
}

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	var data []byte
	var err error
	if a, ok := v.(appender); ok {
		data, err = a.appendJSON(nil)
	} else {
		data, err = json.Marshal(v)
	}
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", v, err)
	}
	return mem.BufferSlice{mem.SliceBuffer(data)}, nil
}

var errNotUTF8 = errors.New("the message is not valid UTF-8")

// Unmarshal refuses invalid UTF-8, which encoding/json would replace silently.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	if len(data) == 1 {
		return unmarshal(data[0].ReadOnlyData(), v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	return unmarshal(buf.ReadOnlyData(), v)
}

func unmarshal(data []byte, v any) error {
	if !utf8.Valid(data) {
		return errNotUTF8
	}
	if p, ok := v.(parser); ok && p.parseJSON(data) {
		return nil
	}
	if len(data) == 0 {
		return nil
	}
	return json.Unmarshal(data, v)
}
