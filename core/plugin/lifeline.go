package plugin

import (
	"io"
	"os"
	"strconv"
	"time"
)

// lifelineGrace is how long a service may take to close once the host is gone;
// with it the process ends well within the 2 seconds that the protocol allows.
const lifelineGrace = 1500 * time.Millisecond

// lifeline returns the pipe that ends with the host, nil where there is none.
func lifeline() *os.File {
	fd, err := strconv.ParseUint(os.Getenv(EnvLifeline), 10, 16)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), "lifeline")
}

// watchLifeline blocks until the host is gone, gives closing a moment, and
// ends the process whether or not it came to its end.
func watchLifeline(pipe *os.File, closing func(), exit func(int)) {
	_, _ = io.Copy(io.Discard, pipe)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		closing()
	}()
	timer := time.NewTimer(lifelineGrace)
	defer timer.Stop()
	select {
	case <-closed:
	case <-timer.C:
	}
	exit(1)
}
