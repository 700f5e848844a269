package slot

import "modeld/core/transport"

// session counts a backend's session as one of the slot.
type session struct {
	transport.Session
	slot       *Slot
	generation uint64
}

// SlotGeneration is the generation of the slot that the session belongs to.
func (s *session) SlotGeneration() uint64 { return s.generation }

// Close closes the backend's session and lets the model go.
func (s *session) Close() error {
	defer s.slot.letGo(s)
	return s.Session.Close()
}
