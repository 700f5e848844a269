package natslease

import (
	"context"
	"time"
)

// store is the little that the protocol needs of a bucket, for one slot.
// Implementations are safe for concurrent use.
type store interface {
	// write replaces the record if its revision is still rev; 0 means that
	// there is none. It returns the new revision, or errConflict (the record
	// has another revision, data was not written), errNotApplied (data was not
	// and will not be written), ErrBucketGone, ErrDenied, ErrBucketConfig; any
	// other error means that data may be written, now or later.
	write(ctx context.Context, data []byte, rev uint64) (uint64, error)
	// read returns the record as the stream's leader has it.
	read(ctx context.Context) (snapshot, error)
	// watch calls put for every change that it learns of, from one goroutine,
	// until ctx ends or the watch breaks. It may miss or repeat changes.
	watch(ctx context.Context, put func(snapshot)) error
	// create makes the bucket if there is none.
	create(ctx context.Context) error
}

// kind is what a slot's key holds.
type kind int

const (
	absent     kind = iota // nothing, as far as the stream knows
	deleted                // a marker: deleted, purged or expired
	unreadable             // something that is no lease record
	readable               // a record
)

// snapshot is what was seen at the slot's key at one time.
type snapshot struct {
	kind kind
	rev  uint64
	// created is the bucket's time of creation; zero where not known.
	created time.Time
	// untouched: nothing was ever written to the bucket.
	untouched bool
	rec       Record
	err       error // why it is unreadable
}

// fromValue makes the snapshot of a value found at revision rev.
func fromValue(rev uint64, data []byte, marker bool) snapshot {
	if marker {
		return snapshot{kind: deleted, rev: rev}
	}
	rec, err := ParseRecord(data)
	if err != nil {
		return snapshot{kind: unreadable, rev: rev, err: err}
	}
	return snapshot{kind: readable, rev: rev, rec: rec}
}
