package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"modeld/core/plugin"
)

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

// Find returns the path of the backend's binary in dir, which is modeld-NAME.
// Its errors say which backends there are and what to do; a missing one is an
// fs.ErrNotExist, one that may not be run an fs.ErrPermission.
func Find(dir, name string) (string, error) {
	if !validName.MatchString(name) {
		return "", fmt.Errorf("backend name %q: only letters, digits, '-' and '_' may be in it", name)
	}
	path := filepath.Join(dir, plugin.BinaryPrefix+name+exeSuffix())
	if err := checkBinary(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", missing(dir, name)
		}
		return "", err
	}
	return path, nil
}

// Backends lists the names of the backends in dir, sorted.
func Backends(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("plugins folder: %w", err)
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutPrefix(strings.TrimSuffix(e.Name(), exeSuffix()), plugin.BinaryPrefix)
		if ok && validName.MatchString(name) && checkBinary(filepath.Join(dir, e.Name())) == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func missing(dir, name string) error {
	names, err := Backends(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("backend %q: the plugins folder %s does not exist (%w): create it with %s%s in it, or set plugins.dir",
			name, dir, fs.ErrNotExist, plugin.BinaryPrefix, name)
	case err != nil:
		return err
	case len(names) == 0:
		names = []string{"none at all"}
	}
	return fmt.Errorf("backend %q: %s has no %s%s (%w); backends there: %s: install it, choose another with --backend, or set plugins.dir",
		name, dir, plugin.BinaryPrefix, name, fs.ErrNotExist, strings.Join(names, ", "))
}

// checkBinary returns an error where path can't be run as a plugin.
func checkBinary(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("backend %s does not exist (%w): install it there, or configure its path", path, fs.ErrNotExist)
	case err != nil:
		return fmt.Errorf("backend: %w", err)
	case info.IsDir():
		return fmt.Errorf("backend %s is a folder, not a program: put the binary itself there", path)
	case !info.Mode().IsRegular():
		return fmt.Errorf("backend %s is not a regular file", path)
	case runtime.GOOS != "windows" && info.Mode()&0o111 == 0:
		return fmt.Errorf("backend %s is not executable (%w): run chmod +x %s", path, fs.ErrPermission, path)
	}
	return nil
}

func exeSuffix() string {
	if runtime.GOOS == "windows" {
		return ".exe"
	}
	return ""
}
