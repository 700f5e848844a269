package host

import (
	"os"
	"os/exec"
	"syscall"
)

func processAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}

// giveLifeline makes the pipe's end the child's standard input: Windows passes
// on no other descriptors.
func giveLifeline(cmd *exec.Cmd, r *os.File) {
	cmd.Stdin = r
	cmd.Env = append(cmd.Env, lifelineEnv+"0")
}

func killGroup(p *os.Process) { _ = p.Kill() }

// waitExit waits for the process's end.
func waitExit(cmd *exec.Cmd) { _ = cmd.Wait() }

func signalName(s syscall.Signal) string { return s.String() }

// execVerified executes the path: this system can't execute a descriptor. A
// file put in its place between reading and starting is not noticed.
func execVerified(*exec.Cmd, *os.File) {}
