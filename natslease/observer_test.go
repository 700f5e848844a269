package natslease

import (
	"testing"
	"time"
)

func TestWhenTheSlotIsFree(t *testing.T) {
	const s = time.Second
	released := testRecord("o", "r")
	released.State = Released
	longer := testRecord("o", "l")
	longer.WaitMS = 10_000
	born := time.Unix(1, 0)
	in := func(created time.Time, sn snapshot) snapshot { sn.created = created; return sn }
	type seen struct {
		at time.Duration
		sn snapshot
	}
	for _, c := range []struct {
		name  string
		fresh bool
		dead  bool
		ended string
		seen  []seen
		want  time.Duration
	}{
		{name: "owned: silent for the wait", seen: []seen{{5 * s, at(7, testRecord("o", "1"))}}, want: 8 * s},
		{name: "every new revision starts anew", seen: []seen{{5 * s, at(7, testRecord("o", "1"))}, {6 * s, at(8, testRecord("o", "2"))}}, want: 9 * s},
		{name: "the same revision does not", seen: []seen{{5 * s, at(7, testRecord("o", "1"))}, {6 * s, at(7, testRecord("o", "1"))}}, want: 8 * s},
		{name: "the owner's longer wait counts", seen: []seen{{5 * s, at(7, longer)}}, want: 15 * s},
		{name: "released: at once", seen: []seen{{5 * s, at(7, released)}}, want: 0},
		{name: "an ended lease of our own: at once", ended: "o", seen: []seen{{5 * s, at(7, testRecord("o", "1"))}}, want: 0},
		{name: "another's ended lease", ended: "p", seen: []seen{{5 * s, at(7, testRecord("o", "1"))}}, want: 8 * s},
		{name: "proven dead: at once", dead: true, seen: []seen{{5 * s, at(7, testRecord("o", "1"))}}, want: 0},
		{name: "purged: the owner may not know yet", seen: []seen{{5 * s, at(7, released)}, {6 * s, snapshot{kind: deleted, rev: 8}}}, want: 9 * s},
		{name: "unreadable", seen: []seen{{5 * s, snapshot{kind: unreadable, rev: 8}}}, want: 8 * s},
		{name: "absent", seen: []seen{{5 * s, snapshot{kind: absent, untouched: true}}}, want: 8 * s},
		{name: "absent in a fresh store: at once", fresh: true, seen: []seen{{5 * s, snapshot{kind: absent, untouched: true}}}, want: 0},
		{name: "absent in a fresh store that was used", fresh: true, seen: []seen{{5 * s, snapshot{kind: absent}}}, want: 8 * s},
		{name: "an older copy, though released", seen: []seen{{5 * s, at(7, testRecord("o", "1"))}, {6 * s, at(3, released)}}, want: 9 * s},
		{name: "an older copy, then released", seen: []seen{
			{5 * s, at(7, testRecord("o", "1"))}, {6 * s, at(3, testRecord("o", "0"))}, {7 * s, at(4, released)}}, want: 9 * s},
		{name: "another bucket, though released", seen: []seen{
			{5 * s, in(born, at(7, testRecord("o", "1")))}, {6 * s, in(born.Add(1), at(8, released))}}, want: 9 * s},
		{name: "another bucket, fresh store", fresh: true, seen: []seen{
			{5 * s, in(born, snapshot{kind: absent, untouched: true})},
			{6 * s, in(born.Add(1), snapshot{kind: absent, untouched: true})}}, want: 9 * s},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := observer{wait: 3 * s, freshStore: c.fresh, provenDead: func(Record) bool { return c.dead }}
			if c.ended != "" {
				o.endOf(c.ended)
			}
			for _, x := range c.seen {
				o.observe(x.at, x.sn)
			}
			if got := o.freeAt(); got != c.want {
				t.Errorf("free at %s, want %s", got, c.want)
			}
		})
	}
}

// Watches and replicas may be behind: only what is newer counts.
func TestOldHintsAreIgnored(t *testing.T) {
	o := observer{wait: time.Second}
	if o.hint(1, at(7, testRecord("o", "1"))) {
		t.Error("a hint before the first read")
	}
	o.observe(1, at(7, testRecord("o", "1")))
	if o.hint(2, at(6, testRecord("o", "0"))) || o.hint(2, at(7, testRecord("o", "1"))) {
		t.Error("an old hint")
	}
	if !o.hint(3, at(9, testRecord("o", "3"))) || o.since != 3 {
		t.Error("a new hint was ignored")
	}
}

// A bucket that disappears is not made again while it may be being deleted;
// one that never was is made at once.
func TestWhenTheBucketIsMade(t *testing.T) {
	const s = time.Second
	o := observer{wait: 3 * s}
	if !o.gone(5 * s) {
		t.Error("the first bucket is not made at once")
	}
	there := at(7, testRecord("o", "1"))
	there.created = time.Unix(1, 0)
	o.observe(6*s, there)
	if o.gone(10 * s) {
		t.Error("made while it may be being deleted")
	}
	o.observe(10*s, snapshot{kind: absent})
	if o.gone(12*s) || !o.gone(13*s) {
		t.Error("want it made 3 s after it was found gone")
	}
	there.created = time.Unix(2, 0)
	o.observe(14*s, there)
	if o.gone(20 * s) {
		t.Error("the time of the bucket before counts")
	}
}

func TestEpochsAreRemembered(t *testing.T) {
	o := observer{wait: time.Second}
	r := testRecord("o", "1")
	r.Epoch = 41
	o.observe(1, at(7, r))
	o.observe(2, snapshot{kind: deleted, rev: 8})
	if o.epoch != 41 {
		t.Errorf("epoch %d after a purge, want 41", o.epoch)
	}
}
