package engine

import (
	"bufio"
	"os"
	"strconv"
	"strings"
)

// FreeMemory returns how many bytes a load may take now: what the kernel holds
// available, or less where a cgroup says so. ok is false if neither is known.
func FreeMemory() (n int64, ok bool) {
	free := statField("/proc/meminfo", "MemAvailable:") * 1024
	if limit, err := readInt("/sys/fs/cgroup/memory.max"); err == nil {
		used, err := readInt("/sys/fs/cgroup/memory.current")
		if err == nil {
			// Page cache counts as used but is given back.
			used -= statField("/sys/fs/cgroup/memory.stat", "inactive_file")
			if left := max(limit-used, 0); free == 0 || left < free {
				free = left
			}
		}
	}
	return free, free > 0
}

func readInt(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64) // "max" is an error: no limit
}

// statField returns the number after name in a file of "name number" lines, 0
// where there is none.
func statField(path, name string) int64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 1 && fields[0] == name {
			n, _ := strconv.ParseInt(fields[1], 10, 64)
			return n
		}
	}
	return 0
}
