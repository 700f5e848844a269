package natslease

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// epochFile keeps the highest epoch that this node has owned.
type epochFile string

// load returns 0 where there is no file yet.
func (f epochFile) load() (uint64, error) {
	if f == "" {
		return 0, nil
	}
	data, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("natslease: %w: %w", ErrEpochFile, err)
	}
	epoch, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil || epoch > MaxEpoch {
		return 0, fmt.Errorf("natslease: %w: %s holds %.40q, not a number up to %d: "+
			"write the highest epoch ever seen into it, or remove it if the bucket still has its record",
			ErrEpochFile, f, data, uint64(MaxEpoch))
	}
	return epoch, nil
}

// save replaces the file atomically and returns once it is on the disk.
func (f epochFile) save(epoch uint64) error {
	if f == "" {
		return nil
	}
	if err := f.replace(strconv.FormatUint(epoch, 10) + "\n"); err != nil {
		return fmt.Errorf("natslease: %w: %w", ErrEpochFile, err)
	}
	return nil
}

func (f epochFile) replace(text string) (err error) {
	dir := filepath.Dir(string(f))
	tmp, err := os.CreateTemp(dir, filepath.Base(string(f))+".tmp*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.WriteString(text)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), string(f)); err != nil {
		return err
	}
	return syncDir(dir)
}
