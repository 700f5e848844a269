package natslease

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// BootTime is the time since boot, time asleep included: on macOS that is
// CLOCK_MONOTONIC.
func BootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		// Cannot happen since macOS 10.12. Failing safe: past every deadline.
		return 1 << 62
	}
	return time.Duration(ts.Nano())
}

// bootID tells this boot of the host from any other.
func bootID() string {
	id, err := unix.Sysctl("kern.bootsessionuuid")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(id)
}
