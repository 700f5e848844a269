package natslease

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// BootTime is the time since boot, suspended time included (CLOCK_BOOTTIME).
func BootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// Cannot happen since Linux 2.6.39. Failing safe: past every deadline.
		return 1 << 62
	}
	return time.Duration(ts.Nano())
}

// bootID tells this boot of the host from any other.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
