package natslease

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strconv"
	"time"
)

// DefaultBucket is the key-value bucket of the leases.
const DefaultBucket = "modeld-leases"

// DefaultWait suits a single NATS server. With three replicas, whose leader
// change takes up to about 7 s, use 15 s.
const DefaultWait = 3 * time.Second

// Clock tells the time since some fixed point. It must never go back and must
// count while the machine is suspended.
type Clock func() time.Duration

// Info is what an owner tells its clients in the record.
type Info struct {
	// Endpoint is where the owner serves, for clients to dial.
	Endpoint string
	// Backend names what serves there.
	Backend string
	// Version is the owner's software version.
	Version string
}

// Options of a [Manager]. Only Slot is required.
type Options struct {
	// Bucket is the key-value bucket; DefaultBucket if empty. It is created
	// when it does not exist. Letters, digits, - and _.
	Bucket string
	// Replicas of a bucket that has to be created; 1 if zero.
	Replicas int
	// Slot is the name of what is owned: 1 to 64 letters, digits, - and _.
	Slot string
	// Host names this host in instance ids and in the record; os.Hostname if
	// empty. Letters, digits, dots, - and _.
	Host string
	// Info is published in the record; see also [Manager.SetInfo].
	Info

	// Wait is how long a record must stay unchanged, as seen from here, before
	// this process takes the slot from its owner; DefaultWait if zero. An owner
	// that asks for a longer wait in its record gets it.
	Wait time.Duration
	// Deadline is how long after sending an acknowledged renewal the owner
	// still owns: at most three quarters of Wait, which is the default.
	Deadline time.Duration
	// Renew is the time from one renewal to the next; a sixth of Wait if zero.
	Renew time.Duration
	// Try bounds one request to the server; a sixth of Wait if zero. Renew and
	// Try together fit into Deadline.
	Try time.Duration

	// EpochFile keeps the highest epoch of this node across restarts, so that
	// epochs grow even if the bucket is lost. One file per slot; none if empty.
	EpochFile string
	// FreshStore says that this very process has just created the NATS
	// server's store, so that a bucket nobody ever wrote to proves that nobody
	// owns the slot. Without it an absent record is waited out like a silent
	// owner, since an owner may have lost its bucket a moment ago.
	FreshStore bool
	// ProvenDead, if set, is asked about an owner other than this manager's:
	// true means that the owner and all it drives are known to be dead (not
	// merely silent), and its slot is taken over at once.
	ProvenDead func(Record) bool

	// Clock is [BootTime] if nil.
	Clock Clock
	// Logger is slog.Default if nil.
	Logger *slog.Logger
	// OnEvent, if set, is called for every event, in order and from one
	// goroutine at a time for a lease. It must return quickly and must not
	// call the lease or the manager.
	OnEvent func(Event)

	policy policy
}

// policy holds deliberate mistakes, for tests that prove that they would be
// found. All false is the protocol.
type policy struct {
	deadlineFromAck  bool // deadline from the acknowledgement's time
	unfenceOnLateAck bool // a late acknowledgement revives a lost lease
	ignoreNonce      bool // any record of the instance is taken for the pending one
	noWait           bool // a standby does not wait out the silence
}

var (
	nameRE = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	hostRE = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,253}$`)
)

// withDefaults fills in the defaults and checks every option.
func (o Options) withDefaults() (Options, error) {
	setDefault(&o.Bucket, DefaultBucket)
	setDefault(&o.Replicas, 1)
	setDefault(&o.Wait, DefaultWait)
	setDefault(&o.Deadline, o.Wait/4*3)
	setDefault(&o.Renew, o.Wait/6)
	setDefault(&o.Try, o.Wait/6)
	if o.Clock == nil {
		o.Clock = BootTime
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	if o.Host == "" {
		host, err := os.Hostname()
		if err != nil {
			return o, &OptionError{"Host", fmt.Sprintf("is empty and the host's name is unknown (%v): set it", err)}
		}
		o.Host = host
	}
	return o, o.check()
}

func setDefault[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

func (o Options) check() error {
	bad := func(option, format string, args ...any) error {
		return &OptionError{option, fmt.Sprintf(format, args...)}
	}
	switch {
	case !nameRE.MatchString(o.Bucket):
		return bad("Bucket", "%q: use 1 to 64 letters, digits, - and _", o.Bucket)
	case !nameRE.MatchString(o.Slot):
		return bad("Slot", "%q: use 1 to 64 letters, digits, - and _", o.Slot)
	case !hostRE.MatchString(o.Host):
		return bad("Host", "%q: use 1 to 253 letters, digits, dots, - and _", o.Host)
	case o.Replicas < 1 || o.Replicas > 5:
		return bad("Replicas", "%d is not within 1 to 5", o.Replicas)
	case o.Wait < 10*time.Millisecond || o.Wait > MaxWait:
		return bad("Wait", "%s is not within 10ms to %s", o.Wait, MaxWait)
	case o.Wait%time.Millisecond != 0:
		return bad("Wait", "%s is not a whole number of milliseconds", o.Wait)
	case o.Deadline <= 0 || o.Deadline > o.Wait/4*3:
		return bad("Deadline", "%s is not above 0 and at most three quarters of Wait (%s)", o.Deadline, o.Wait)
	case o.Renew <= 0 || o.Renew >= o.Deadline:
		return bad("Renew", "%s is not above 0 and below Deadline (%s)", o.Renew, o.Deadline)
	case o.Try <= 0 || o.Renew+o.Try > o.Deadline:
		return bad("Try", "%s is not above 0 and, with Renew (%s), at most Deadline (%s)", o.Try, o.Renew, o.Deadline)
	}
	return o.Info.check()
}

func (i Info) check() error {
	for _, f := range []struct{ name, value string }{
		{"Endpoint", i.Endpoint}, {"Backend", i.Backend}, {"Version", i.Version},
	} {
		if reason := textProblem(f.value, maxText); reason != "" {
			return &OptionError{f.name, reason}
		}
	}
	return nil
}

func key(slot string) string { return "slot." + slot }

// newInstance names one acquisition.
func newInstance(host string, epoch uint64) string {
	return host + "-" + strconv.FormatUint(epoch, 10) + "-" + randomHex()
}

func randomHex() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}
