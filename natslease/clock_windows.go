package natslease

import (
	"time"

	"golang.org/x/sys/windows"
)

// BootTime is the time since boot, sleep and hibernation included, with a
// resolution of about 16 ms.
func BootTime() time.Duration { return windows.DurationSinceBoot() }

// bootID tells this boot of the host from any other; Windows has no such id.
func bootID() string { return "" }
