package grpc

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"modeld/core/transport"
)

type plainSession struct{ transport.Session }

type generationSession struct{ transport.Session }

func (generationSession) SlotGeneration() uint64 { return 7 }

func TestMakeHandle(t *testing.T) {
	for _, c := range []struct {
		instance string
		sess     transport.Session
		want     string
	}{
		{"a", plainSession{}, "a/3"},
		{"a", generationSession{}, "a/7/3"},
		{"", plainSession{}, "/3"},
		{"", generationSession{}, "/7/3"},
	} {
		if got := makeHandle(c.instance, c.sess, 3); got != c.want {
			t.Errorf("makeHandle(%q, %T) = %q, want %q", c.instance, c.sess, got, c.want)
		}
	}
}

func TestUnknownHandle(t *testing.T) {
	for _, c := range []struct {
		instance, handle string
		want             error
	}{
		{"a", "a/1", transport.ErrSessionClosed},
		{"a", "a/7/1", transport.ErrSessionClosed},
		{"a", "a/", transport.ErrSessionClosed},
		{"a", "a/x/../1", transport.ErrSessionClosed},
		{"a", "", transport.ErrSessionClosed},
		{"a", "nonsense", transport.ErrSessionClosed},
		{"a", "b/1", transport.ErrStaleFence},
		{"a", "ab/1", transport.ErrStaleFence},
		{"a", "/1", transport.ErrStaleFence},
		{"", "/1", transport.ErrSessionClosed},
		{"", "b/1", transport.ErrStaleFence},
	} {
		if err := unknownHandle(c.instance, c.handle); !errors.Is(err, c.want) {
			t.Errorf("handle %q at %q: %v, want %v", c.handle, c.instance, err, c.want)
		}
	}
}

func TestHandleGeneration(t *testing.T) {
	for _, c := range []struct {
		instance, handle string
		want             uint64
		ok               bool
	}{
		{"a", "a/7/3", 7, true},
		{"", "a/7/3", 7, true},
		{"", "/7/3", 7, true},
		{"a", "a/3", 0, false},
		{"", "a/3", 0, false},
		{"", "/3", 0, false},
		{"a", "b/7/3", 0, false},
		{"a", "ab/7/3", 0, false},
		{"a", "a/5/7/3", 0, false},
		{"a", "a/-7/3", 0, false},
		{"a", "a/7/x", 0, false},
		{"a/5", "a/5/3", 0, false},
		{"a/5", "a/5/7/3", 7, true},
		{"a", "a/18446744073709551616/3", 0, false},
		{"", "", 0, false},
	} {
		got, ok := handleGeneration(c.instance, c.handle)
		if got != c.want || ok != c.ok {
			t.Errorf("handleGeneration(%q, %q) = %d, %t; want %d, %t", c.instance, c.handle, got, ok, c.want, c.ok)
		}
	}
}

func FuzzHandle(f *testing.F) {
	f.Add("a", "a/7/3", uint64(3))
	f.Add("", "/3", uint64(0))
	f.Add("host-1-x", strings.Repeat("é", 100), uint64(1)<<63)
	f.Fuzz(func(t *testing.T, instance, handle string, seq uint64) {
		err := unknownHandle(instance, handle)
		if !errors.Is(err, transport.ErrStaleFence) && !errors.Is(err, transport.ErrSessionClosed) {
			t.Fatalf("%q at %q: %v", handle, instance, err)
		}
		if len(err.Error()) > 1000+4*len(instance) {
			t.Fatalf("the error repeats all of %d bytes", len(handle))
		}
		handleGeneration(instance, handle)
		made := makeHandle(instance, generationSession{}, seq)
		if g, ok := handleGeneration(instance, made); !ok || g != 7 {
			t.Fatalf("the generation in %q is %d, %t", made, g, ok)
		}
		if errors.Is(unknownHandle(instance, made), transport.ErrStaleFence) {
			t.Fatalf("our own %q is stale at %q", made, instance)
		}
	})
}

func TestClip(t *testing.T) {
	long := strings.Repeat("é", 200)
	got := clip(long)
	if len(got) > 140 || !utf8.ValidString(got) || !strings.HasSuffix(got, "...") {
		t.Errorf("clip gave %q", got)
	}
	if clip("short") != "short" {
		t.Error("clip changed a short text")
	}
}
