//go:build unix && !linux

package host

import (
	"os"
	"os/exec"
	"syscall"
)

// processAttr puts the plugin into a group of its own. Without a parent-death
// signal the lifeline alone ends it with the host.
func processAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// waitExit waits for the process's end.
func waitExit(cmd *exec.Cmd) { _ = cmd.Wait() }

// execVerified executes the path: this system can't execute a descriptor. A
// file put in its place between reading and starting is not noticed.
func execVerified(*exec.Cmd, *os.File) {}
