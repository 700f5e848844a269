//go:build !linux && !darwin && !windows

package natslease

import "time"

var processStart = time.Now()

// BootTime is the time since the process started. On this system it does not
// count suspended time: pass Options.Clock where the machine may suspend.
func BootTime() time.Duration { return time.Since(processStart) }

func bootID() string { return "" }
