package grpc

import (
	"fmt"
	"strconv"
	"strings"

	"modeld/core/transport"
)

// makeHandle names a session: "<instance>/<seq>", or
// "<instance>/<generation>/<seq>" for a session of a slot's generation.
func makeHandle(instanceID string, sess transport.Session, seq uint64) string {
	if g, ok := sess.(transport.SlotGenerationer); ok {
		return fmt.Sprintf("%s/%d/%d", instanceID, g.SlotGeneration(), seq)
	}
	return fmt.Sprintf("%s/%d", instanceID, seq)
}

// unknownHandle says why there is no session with this handle.
func unknownHandle(instanceID, handle string) error {
	if strings.Contains(handle, "/") && !strings.HasPrefix(handle, instanceID+"/") {
		return fmt.Errorf("%w: session %q is of another instance than %q; open a new one with the owner",
			transport.ErrStaleFence, clip(handle), instanceID)
	}
	return fmt.Errorf("%w: there is no session %q on this connection", transport.ErrSessionClosed, clip(handle))
}

// handleGeneration returns the generation in a handle, if it has one. The
// instance id may be unknown ("").
func handleGeneration(instanceID, handle string) (uint64, bool) {
	if instanceID != "" {
		rest, ours := strings.CutPrefix(handle, instanceID+"/")
		if !ours || strings.Count(rest, "/") != 1 {
			return 0, false
		}
	}
	parts := strings.Split(handle, "/")
	if len(parts) < 3 {
		return 0, false
	}
	numbers := parts[len(parts)-2:]
	if _, err := strconv.ParseUint(numbers[1], 10, 64); err != nil {
		return 0, false
	}
	generation, err := strconv.ParseUint(numbers[0], 10, 64)
	if err != nil {
		return 0, false
	}
	return generation, true
}

// clip bounds what a client sent before it is repeated in an error.
func clip(s string) string {
	const limit = 128
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "..."
}
