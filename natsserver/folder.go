package natsserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Names within the state folder.
const (
	lockName  = "nats.lock" // held while a server runs; content: its pid
	urlName   = "nats.url"  // where it is, with credentials
	storeName = "nats"      // its data
)

// lockPatience is how long a start waits for the lock: a client that looks
// whether it is held holds it for some microseconds itself.
const lockPatience = 300 * time.Millisecond

// lockFolder takes the folder for this process. The file is never removed:
// somebody else might lock the removed one.
func lockFolder(ctx context.Context, stateDir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(stateDir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockPatience); ; {
		held, err := tryLock(f, false)
		if err == nil && held {
			err = writePID(f)
			if err == nil {
				return f, nil
			}
		}
		if err == nil && time.Now().After(end) {
			err = &InUseError{StateDir: stateDir, PID: readPID(f.Name())}
		}
		if err == nil {
			select {
			case <-ctx.Done():
				err = ctx.Err()
			case <-time.After(10 * time.Millisecond):
				continue
			}
		}
		return nil, errors.Join(err, f.Close())
	}
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

func readPID(path string) int {
	data, err := os.ReadFile(path)
	if err != nil || len(data) > 32 {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// empty reports whether dir has no entries, or does not exist.
func empty(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return len(entries) == 0, err
}

// writeURL puts the URL in place at once, readable by this user only.
func writeURL(stateDir, clientURL string) error {
	tmp, err := os.CreateTemp(stateDir, urlName+".tmp*") // mode 0600
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(clientURL + "\n")
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(stateDir, urlName))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

func removeURL(stateDir string) error {
	err := os.Remove(filepath.Join(stateDir, urlName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// ReadURL returns the client URL, credentials included, of the server that
// runs from the state folder. It returns ErrNotServing where none does, also
// when one died there and left its file.
func ReadURL(stateDir string) (string, error) {
	path := filepath.Join(stateDir, urlName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", notServing(stateDir)
	}
	if err != nil {
		return "", fmt.Errorf("natsserver: %w", err)
	}
	serving, err := locked(stateDir)
	if err != nil {
		return "", fmt.Errorf("natsserver: %w", err)
	}
	if !serving {
		return "", notServing(stateDir)
	}
	text := strings.TrimSpace(string(data))
	// The parser's own error would quote the credentials.
	if u, err := url.Parse(text); err != nil || u.Scheme != "nats" || u.Host == "" || len(data) > 1024 {
		return "", fmt.Errorf("natsserver: %s does not hold a nats:// URL: restart the modeld that serves from there", path)
	}
	return text, nil
}

// locked reports whether a server holds the folder.
func locked(stateDir string) (bool, error) {
	f, err := os.Open(filepath.Join(stateDir, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	free, err := tryLock(f, true)
	return !free, errors.Join(err, f.Close())
}
