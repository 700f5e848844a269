// Package natslease gives one owner at a time to a named slot, by a lease
// that lives in a NATS JetStream key-value bucket.
//
// The slot's record is a JSON document that is written by compare-and-set
// only, never expires and is never deleted. The owner rewrites it every
// Renew. Everybody else watches it: when its revision has stood still for
// Wait, measured on the watcher's own clock from the moment the watcher saw
// it, the next one takes the slot over. The owner stops by itself before
// that: its own deadline is the time at which it *sent* its last acknowledged
// renewal, plus Deadline. No clock of another host or of the server takes
// part, and Deadline is at most three quarters of Wait, which leaves room for
// clocks that run at different rates.
//
// # Use
//
//	m, err := natslease.New(nc, natslease.Options{
//		Slot: "default",
//		Info: natslease.Info{Endpoint: addr},
//	})
//	lease, err := m.Acquire(ctx)   // blocks as a standby until the slot is ours
//	serve(lease.Context())         // cancelled the moment the lease ends
//	...                            // before every act: lease.Valid() == nil
//	err = lease.Release(ctx)       // hand over at once
//
// A lease is a context: work started under [Lease.Context] ends with it, and
// [context.Cause] tells why. A timer alone cannot end work of a process that
// is stopped or suspended, so an owner also calls [Lease.Valid] before it
// accepts a call, before it sends a chunk of a stream, and before it writes
// shared state. Between that check and the act a process may still pause;
// this gap is closed by the fencing token: every request names the instance
// it is meant for ([Lease.Instance]), and shared state keeps the highest
// [Lease.Epoch] that wrote to it.
//
// # What it promises
//
// At most one lease of a slot is valid at any time, as long as clocks that
// count through suspend run at rates within a third of each other and the
// server does not forget acknowledged writes. A lost lease never becomes
// valid again: the next acquisition has a new instance and a higher epoch.
// Operators may purge the record or delete the bucket: the owner then stops,
// and the rest wait for Wait before anyone takes over. An older copy of the
// store that is put back is treated the same way where it is noticed; a
// standby that never saw the newer state cannot notice.
//
// Connect with [ConnectOptions]: with the client's defaults a lease is just
// as safe, but it notices dead servers late.
package natslease
