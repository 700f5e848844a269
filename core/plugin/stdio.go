package plugin

import (
	"fmt"
	"os"
	"sync"
)

var guardStdout = sync.OnceValue(func() error {
	real, err := redirectStdout()
	if err != nil {
		return fmt.Errorf("keep standard output for the handshake: %w", err)
	}
	os.Stdout = real
	return nil
})

// GuardStdout sends what native code prints to standard output to standard
// error instead, and keeps the real one for the handshake, as os.Stdout. Serve
// calls it; a plugin whose libraries print while they load, before Serve, calls
// it first of all. Only its first call does anything.
func GuardStdout() error { return guardStdout() }
