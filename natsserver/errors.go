package natsserver

import (
	"errors"
	"fmt"
)

var (
	// ErrInUse: another process serves from the state folder; see [InUseError].
	ErrInUse = errors.New("state folder in use")
	// ErrNotServing: no daemon serves from the state folder.
	ErrNotServing = errors.New("no modeld serves from this state folder")
)

// InUseError says which folder is in use and by whom. errors.Is(err,
// ErrInUse) holds for it.
type InUseError struct {
	StateDir string
	// PID is the process that holds the folder; 0 if unknown.
	PID int
}

func (e *InUseError) Error() string {
	holder := "another process"
	if e.PID > 0 {
		holder = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("%v: %s is held by %s: stop it, or choose another folder with --state-dir", ErrInUse, e.StateDir, holder)
}

// Is makes errors.Is(err, ErrInUse) true.
func (e *InUseError) Is(target error) bool { return target == ErrInUse }

func notServing(stateDir string) error {
	return fmt.Errorf("%w (%s): start one, or pass --nats", ErrNotServing, stateDir)
}
