//go:build unix

package host

import (
	"os"

	"golang.org/x/sys/unix"
)

// lockFile takes f's lock or fails at once. It ends with f or the process.
func lockFile(f *os.File) error {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}
