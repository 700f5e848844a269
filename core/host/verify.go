package host

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// ErrChecksum means that a plugin's binary is not the pinned one.
var ErrChecksum = errors.New("backend binary does not match its pinned SHA-256")

// openVerified opens path and checks the bytes of that very file against want,
// a hex SHA-256 with or without "sha256:" before it.
func openVerified(path, want string) (*os.File, error) {
	expected, err := hex.DecodeString(strings.TrimPrefix(want, "sha256:"))
	if err != nil || len(expected) != sha256.Size {
		return nil, fmt.Errorf("pinned SHA-256 of backend %s: %q is not 64 hex digits", path, want)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("verify backend: %w", err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("verify backend %s: %w", path, err)
	}
	if got := h.Sum(nil); string(got) != string(expected) {
		_ = f.Close()
		return nil, fmt.Errorf("%w: %s has sha256 %x, the configuration pins %x: install the pinned build, or pin this one if you trust it",
			ErrChecksum, path, got, expected)
	}
	return f, nil
}
