package natslease

import (
	"errors"
	"fmt"
	"time"
)

// Why a lease ended, or could not be had. All work with errors.Is.
var (
	// ErrLost: the lease has ended. Every error of [Lease.Valid] is this one;
	// the reason is one of the errors below it.
	ErrLost = errors.New("lease lost")
	// ErrExpired: no renewal was acknowledged before the owner's deadline.
	ErrExpired = errors.New("no renewal was acknowledged in time")
	// ErrSuperseded: the record is not the owner's last one any more: another
	// instance took it, or an operator wrote, purged or restored it.
	ErrSuperseded = errors.New("the record was changed by someone else")
	// ErrReleased: the owner itself released the lease.
	ErrReleased = errors.New("released")
	// ErrClosed: the manager was closed.
	ErrClosed = errors.New("manager closed")

	// ErrBucketGone: the bucket's stream does not exist (any more).
	ErrBucketGone = errors.New("the lease bucket does not exist")
	// ErrBucketConfig: the bucket is configured so that it cannot hold leases.
	ErrBucketConfig = errors.New("the bucket cannot hold leases")
	// ErrDenied: the NATS user may not do what a lease needs.
	ErrDenied = errors.New("permission denied by the NATS server")

	// ErrHeld: another instance owns the slot; see [HeldError].
	ErrHeld = errors.New("the slot is held")
	// ErrAlreadyHeld: this manager itself holds a valid lease.
	ErrAlreadyHeld = errors.New("this manager already holds the lease")
	// ErrNoOwner: nobody owns the slot: it was released, or never owned.
	ErrNoOwner = errors.New("the slot has no owner")
	// ErrBadRecord: the record in the bucket is not one of a lease.
	ErrBadRecord = errors.New("not a lease record")
	// ErrEpochFile: the epoch file cannot be read or written.
	ErrEpochFile = errors.New("epoch file")
)

// What a store says about a compare-and-set. An error that is neither these
// nor an exported one above counts as errUnknown.
var (
	errConflict   = errors.New("conflict: the record has another revision")
	errUnknown    = errors.New("outcome unknown")
	errNotApplied = errors.New("not applied")
)

// LostError says which lease ended and why. errors.Is(err, ErrLost) holds for
// it, and errors.Is with the reason (ErrExpired, ErrSuperseded, ErrReleased,
// ErrBucketGone, ErrDenied, ErrClosed).
type LostError struct {
	Slot     string
	Instance string
	Epoch    uint64
	Reason   error
}

func (e *LostError) Error() string {
	return fmt.Sprintf("natslease: slot %s: lease of %s (epoch %d) lost: %v", e.Slot, e.Instance, e.Epoch, e.Reason)
}

// Is makes errors.Is(err, ErrLost) true.
func (e *LostError) Is(target error) bool { return target == ErrLost }

// Unwrap returns the reason.
func (e *LostError) Unwrap() error { return e.Reason }

// HeldError says who holds the slot. errors.Is(err, ErrHeld) holds for it.
type HeldError struct {
	Slot string
	// Owner is the record as last seen; zero where the slot has none and its
	// silence is still being waited out (purged, recreated, unreadable).
	Owner Record
	// RetryAfter is how long the record must stay silent from now on before
	// the slot may be taken over.
	RetryAfter time.Duration
}

func (e *HeldError) Error() string {
	who := "no readable owner"
	if e.Owner.Instance != "" {
		who = fmt.Sprintf("%s (epoch %d, %s)", e.Owner.Instance, e.Owner.Epoch, e.Owner.State)
	}
	return fmt.Sprintf("natslease: slot %s: %v: %s; free at the earliest in %s",
		e.Slot, ErrHeld, who, e.RetryAfter.Round(time.Millisecond))
}

// Is makes errors.Is(err, ErrHeld) true.
func (e *HeldError) Is(target error) bool { return target == ErrHeld }

// OptionError names the option that is wrong and what it should be.
type OptionError struct {
	Option string
	Reason string
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("natslease: option %s: %s", e.Option, e.Reason)
}
