package main

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// The first signal lets work end, the second one does not wait for it.
func TestSecondSignal(t *testing.T) {
	for _, tt := range []struct {
		second syscall.Signal
		code   int
	}{
		{syscall.SIGINT, 130}, {syscall.SIGTERM, 143},
	} {
		t.Run(tt.second.String(), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), untilSecondSignal+"=1")
			cmd.WaitDelay = time.Second
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(stderr)
			for _, step := range []struct {
				says string
				then syscall.Signal
			}{
				{"ready", syscall.SIGTERM}, {"draining", tt.second},
			} {
				if !lines.Scan() || lines.Text() != step.says {
					t.Fatalf("it said %q, %v; want %q", lines.Text(), lines.Err(), step.says)
				}
				if err := cmd.Process.Signal(step.then); err != nil {
					t.Fatal(err)
				}
			}
			for lines.Scan() {
			}
			exit, ok := errors.AsType[*exec.ExitError](cmd.Wait())
			if !ok || exit.ExitCode() != tt.code {
				t.Errorf("it ended with %v, want exit code %d", exit, tt.code)
			}
		})
	}
}
