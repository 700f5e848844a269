package natslease

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of what is accepted from the bucket, which anyone with access to the
// NATS account may write.
const (
	// MaxRecordBytes is the largest record that is read.
	MaxRecordBytes = 8 << 10
	// MaxEpoch is the largest epoch; every JSON reader can represent it.
	MaxEpoch = 1<<53 - 1
	// MaxWait is the longest wait that a record or an option may ask for.
	MaxWait = 10 * time.Minute

	maxText     = 512 // bytes of any text field
	maxInstance = 320
)

// State is what a record says about its slot.
type State string

// The states of a record.
const (
	Owned    State = "owned"
	Released State = "released"
)

// Record is the slot's document in the bucket. It is written as a whole,
// always by compare-and-set.
type Record struct {
	State State `json:"state"`
	// Epoch grows by at least one with every acquisition.
	Epoch uint64 `json:"epoch"`
	// Instance names one acquisition: <host>-<epoch>-<random>.
	Instance string `json:"instance"`
	Host     string `json:"host"`
	// BootID changes with every boot of the host; empty where unknown.
	BootID   string `json:"boot_id,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	Backend  string `json:"backend,omitempty"`
	PID      int    `json:"pid"`
	Version  string `json:"version,omitempty"`
	// WaitMS is how long, in milliseconds, the record must stay unchanged
	// before another may take the slot over.
	WaitMS int64 `json:"wait_ms"`
	// Nonce is new with every write; a write is told from another by it.
	Nonce string `json:"nonce"`
}

// Wait is WaitMS as a duration.
func (r Record) Wait() time.Duration { return time.Duration(r.WaitMS) * time.Millisecond }

// Info is what the owner tells its clients.
func (r Record) Info() Info {
	return Info{Endpoint: r.Endpoint, Backend: r.Backend, Version: r.Version}
}

// ParseRecord reads a record and checks every bound. Unknown fields are
// allowed, so that later versions may add some. Its errors are ErrBadRecord
// and name the field.
func ParseRecord(data []byte) (Record, error) {
	if len(data) > MaxRecordBytes {
		return Record{}, badRecord("%d bytes, at most %d allowed", len(data), MaxRecordBytes)
	}
	// encoding/json would quietly replace invalid bytes.
	if !utf8.Valid(data) {
		return Record{}, badRecord("invalid UTF-8")
	}
	var r Record
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&r); err != nil {
		return Record{}, badRecord("%v", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return Record{}, badRecord("data after the JSON document")
	}
	if err := r.check(); err != nil {
		return Record{}, err
	}
	return r, nil
}

func (r Record) check() error {
	switch {
	case r.State != Owned && r.State != Released:
		return badRecord("state %.32q is neither %q nor %q", r.State, Owned, Released)
	case r.Epoch == 0 || r.Epoch > MaxEpoch:
		return badRecord("epoch %d is not within 1 to %d", r.Epoch, uint64(MaxEpoch))
	case r.WaitMS < 1 || r.WaitMS > MaxWait.Milliseconds():
		return badRecord("wait_ms %d is not within 1 to %d", r.WaitMS, MaxWait.Milliseconds())
	case r.PID < 0:
		return badRecord("pid %d is negative", r.PID)
	case r.Instance == "":
		return badRecord("instance is missing")
	case r.Nonce == "":
		return badRecord("nonce is missing")
	}
	for _, f := range []struct {
		name, value string
		limit       int
	}{
		{"instance", r.Instance, maxInstance},
		{"nonce", r.Nonce, maxText},
		{"host", r.Host, maxText},
		{"boot_id", r.BootID, maxText},
		{"endpoint", r.Endpoint, maxText},
		{"backend", r.Backend, maxText},
		{"version", r.Version, maxText},
	} {
		if reason := textProblem(f.value, f.limit); reason != "" {
			return badRecord("%s %s", f.name, reason)
		}
	}
	return nil
}

// textProblem returns what is wrong with a text field, "" if nothing is.
func textProblem(s string, limit int) string {
	if len(s) > limit {
		return fmt.Sprintf("has %d bytes, at most %d allowed", len(s), limit)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) {
		return "contains characters that are not printable"
	}
	return ""
}

func badRecord(format string, args ...any) error {
	return fmt.Errorf("natslease: %w: %s", ErrBadRecord, fmt.Sprintf(format, args...))
}

func (r Record) encode() []byte {
	data, _ := json.Marshal(r) // strings and integers always encode
	return data
}
