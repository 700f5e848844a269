package host

import (
	"errors"
	"strconv"
	"strings"

	"modeld/core/transport"
)

// The reasons for which a plugin can't be had. The errors around them name the
// file and say what to do.
var (
	// ErrNotPlugin: the binary is not a backend of modeld.
	ErrNotPlugin = errors.New("not a modeld backend")
	// ErrVersion: the binary speaks another version of the contract.
	ErrVersion = errors.New("backend of another version")
	// ErrStart: the plugin crashed, hung or failed as it started.
	ErrStart = errors.New("backend did not start")
	// ErrDown: there is no plugin to take the call just now.
	ErrDown = errors.New("backend is down")
	// ErrClosed: the Host is closed, or was never started.
	ErrClosed = errors.New("plugin host is closed")
)

// isHandshake tells whether line is one of go-plugin's, and its version.
func isHandshake(line string) (version string, ok bool) {
	parts := strings.Split(line, "|")
	if len(parts) < 5 || parts[0] != "1" {
		return "", false
	}
	return parts[1], true
}

// supported tells whether a handshake's version is one that this build speaks.
func supported(version string) bool {
	v, err := strconv.Atoi(version)
	return err == nil && transport.Supported(v)
}
