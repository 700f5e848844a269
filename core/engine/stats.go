package engine

import "sync/atomic"

// Stats counts what a Service has done since it began. The counters may be read
// at any time.
type Stats struct {
	Steps           atomic.Int64 // forward passes
	PrefillTokens   atomic.Int64 // tokens computed for prefixes, suffixes and lost context
	GeneratedTokens atomic.Int64
	ReusedTokens    atomic.Int64 // tokens that calls found resident
	Preemptions     atomic.Int64 // generations and prefills put back for want of KV space
}
