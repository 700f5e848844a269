package engine

// chatTemplate renders chat messages.
type chatTemplate struct{}
