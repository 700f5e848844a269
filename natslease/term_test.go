package natslease

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func testRecord(instance, nonce string) Record {
	return Record{State: Owned, Epoch: 1, Instance: instance, Host: "h", PID: 1, WaitMS: 3000, Nonce: nonce}
}

func at(rev uint64, r Record) snapshot { return snapshot{kind: readable, rev: rev, rec: r} }

// The table of renewal results. The lease was renewed at 0 (revision 7), so
// it lasts until 2250 ms; the renewal under test is sent at 500 ms.
func TestRenewalResults(t *testing.T) {
	const ms = time.Millisecond
	type step struct {
		at   time.Duration // of the result, after a try sent at 500 ms, or at sent
		sent time.Duration
		rev  uint64
		err  error
		read *snapshot // answer to the read back
		rerr error
		want verdict
	}
	mine := func(rev uint64, nonce string) *snapshot { s := at(rev, testRecord("me", nonce)); return &s }
	other := at(8, testRecord("other", "x"))
	timeout := fmt.Errorf("%w: timeout", errUnknown)
	for _, c := range []struct {
		name     string
		steps    []step
		deadline time.Duration
		lost     error
	}{
		{"acknowledged in time", []step{{at: 501 * ms, rev: 8, want: extended}}, 2750 * ms, nil},
		{"slowly, but in time: measured from sending", []step{{at: 2249 * ms, rev: 8, want: extended}}, 2750 * ms, nil},
		{"acknowledged at the deadline", []step{{at: 2250 * ms, rev: 8, want: over}}, 2250 * ms, ErrExpired},
		{"acknowledged after it", []step{{at: 4000 * ms, rev: 8, want: over}}, 2250 * ms, ErrExpired},
		{"conflict, nothing unresolved", []step{{at: 501 * ms, err: errConflict, want: over}}, 2250 * ms, ErrSuperseded},
		{"time-out, then acknowledged", []step{
			{at: 1000 * ms, err: timeout, want: again},
			{sent: 1050 * ms, at: 1051 * ms, rev: 8, want: extended}}, 3300 * ms, nil},
		{"time-out, conflict, it was ours", []step{
			{at: 1000 * ms, err: timeout, want: again},
			{sent: 1050 * ms, at: 1051 * ms, err: errConflict, read: mine(8, "n1"), want: adopted}}, 2750 * ms, nil},
		{"time-out, conflict, another's", []step{
			{at: 1000 * ms, err: timeout, want: again},
			{sent: 1050 * ms, at: 1051 * ms, err: errConflict, read: &other, want: over}}, 2250 * ms, ErrSuperseded},
		{"time-out, conflict, an older copy of ours", []step{
			{at: 1000 * ms, err: timeout, want: again},
			{sent: 1050 * ms, at: 1051 * ms, err: errConflict, read: mine(5, "old"), want: over}}, 2250 * ms, ErrSuperseded},
		{"time-out, conflict, still under way in the cluster", []step{
			{at: 1000 * ms, err: timeout, want: again},
			{sent: 1050 * ms, at: 1051 * ms, err: errConflict, read: mine(7, "n0"), want: again},
			{sent: 1100 * ms, at: 1101 * ms, err: errConflict, read: mine(8, "n1"), want: adopted}}, 2750 * ms, nil},
		{"time-out, conflict, no answer to the read", []step{
			{at: 1000 * ms, err: timeout, want: again},
			{sent: 1050 * ms, at: 1051 * ms, err: errConflict, rerr: timeout, want: again}}, 2250 * ms, nil},
		{"time-out, conflict, purged", []step{
			{at: 1000 * ms, err: timeout, want: again},
			{sent: 1050 * ms, at: 1051 * ms, err: errConflict, read: &snapshot{kind: deleted, rev: 8}, want: over}}, 2250 * ms, ErrSuperseded},
		{"adopted too late", []step{
			{at: 1000 * ms, err: timeout, want: again},
			{sent: 2000 * ms, at: 2251 * ms, err: errConflict, want: over}}, 2250 * ms, ErrExpired},
		{"not applied leaves nothing unresolved", []step{
			{at: 501 * ms, err: errNotApplied, want: again},
			{sent: 600 * ms, at: 601 * ms, err: errConflict, want: over}}, 2250 * ms, ErrSuperseded},
		{"not applied, then acknowledged", []step{
			{at: 501 * ms, err: errNotApplied, want: again},
			{sent: 600 * ms, at: 601 * ms, rev: 8, want: extended}}, 2850 * ms, nil},
		{"not applied, time-out, adopted from the first send that may count", []step{
			{at: 501 * ms, err: errNotApplied, want: again},
			{sent: 600 * ms, at: 1100 * ms, err: timeout, want: again},
			{sent: 1200 * ms, at: 1201 * ms, err: errConflict, read: mine(8, "n1"), want: adopted}}, 2850 * ms, nil},
		{"an unclassified error is of unknown outcome", []step{
			{at: 501 * ms, err: errors.New("?"), want: again},
			{sent: 600 * ms, at: 601 * ms, err: errConflict, read: mine(8, "n1"), want: adopted}}, 2750 * ms, nil},
		{"bucket gone", []step{{at: 501 * ms, err: ErrBucketGone, want: over}}, 2250 * ms, ErrBucketGone},
		{"permission denied", []step{{at: 501 * ms, err: ErrDenied, want: over}}, 2250 * ms, ErrDenied},
	} {
		t.Run(c.name, func(t *testing.T) {
			tm := &term{length: 2250 * ms, rev: 7, nonce: "n0", deadline: 2250 * ms}
			nonces := 0
			for i, s := range c.steps {
				sent := s.sent
				if sent == 0 {
					sent = 500 * ms
				}
				tm.begin(sent, func() Record { nonces++; return testRecord("me", fmt.Sprint("n", nonces)) })
				got := tm.result(s.at, s.rev, s.err)
				if got == readBack {
					var snap snapshot
					if s.read != nil {
						snap = *s.read
					}
					got = tm.resolve(s.at, snap, s.rerr)
				} else if s.read != nil {
					t.Fatalf("step %d: not read back", i)
				}
				if got != s.want {
					t.Fatalf("step %d: verdict %d, want %d", i, got, s.want)
				}
			}
			if nonces != 1 {
				t.Errorf("%d different renewals, want the same bytes again", nonces)
			}
			if tm.deadline != c.deadline || !errors.Is(tm.lost, c.lost) {
				t.Errorf("deadline %s, lost %v; want %s, %v", tm.deadline, tm.lost, c.deadline, c.lost)
			}
		})
	}
}

// Whatever comes after the end, the term stays over, with its first reason.
func TestTermEndIsFinal(t *testing.T) {
	tm := &term{length: time.Second, rev: 1, deadline: time.Second}
	tm.begin(0, func() Record { return testRecord("me", "n") })
	if err := tm.check(time.Second); !errors.Is(err, ErrExpired) {
		t.Fatalf("at the deadline: %v", err)
	}
	if v := tm.result(time.Second, 2, nil); v != over {
		t.Fatalf("late acknowledgement: %d", v)
	}
	tm.end(ErrReleased)
	if err := tm.check(0); !errors.Is(err, ErrExpired) {
		t.Fatalf("then: %v", err)
	}
}
