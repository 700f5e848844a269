package host

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	runDirPrefix = "modeld-"
	lockName     = "lock"
	// maxRunDirBase leaves room in a Unix socket's path, at most 103 bytes,
	// for this folder's name and what go-plugin appends.
	maxRunDirBase = 45
)

// runDir is the folder of a host's plugin sockets. Its lock tells other hosts
// that it is in use.
type runDir struct {
	path string
	lock *os.File
}

// newRunDir makes a folder in base and removes those that dead hosts left there.
func newRunDir(base string) (*runDir, error) {
	if base == "" {
		if base = os.TempDir(); len(base) > maxRunDirBase {
			base = "/tmp"
		}
	}
	if len(base) > maxRunDirBase {
		return nil, fmt.Errorf("folder for plugin sockets: %s is longer than %d bytes, too long for a Unix socket's path: choose a shorter one", base, maxRunDirBase)
	}
	sweepRunDirs(base)
	path, err := os.MkdirTemp(base, runDirPrefix) // mode 0700
	if err != nil {
		return nil, fmt.Errorf("folder for plugin sockets: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = lockFile(lock)
	}
	if err != nil {
		_ = os.RemoveAll(path)
		return nil, fmt.Errorf("folder for plugin sockets: %w", err)
	}
	return &runDir{path: path, lock: lock}, nil
}

func (d *runDir) remove() error {
	err := os.RemoveAll(d.path)
	_ = d.lock.Close()
	return err
}

// clear removes what a launch left in the folder.
func (d *runDir) clear() {
	entries, _ := filepath.Glob(filepath.Join(d.path, "plugin*"))
	for _, e := range entries {
		_ = os.RemoveAll(e)
	}
}

// sweepRunDirs removes folders whose hosts are dead: their locks are free. A
// young folder may just not be locked yet.
func sweepRunDirs(base string) {
	locks, _ := filepath.Glob(filepath.Join(base, runDirPrefix+"*", lockName))
	for _, name := range locks {
		info, err := os.Stat(name)
		if err != nil || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if lockFile(f) == nil {
			_ = os.RemoveAll(filepath.Dir(name))
		}
		_ = f.Close()
	}
}
