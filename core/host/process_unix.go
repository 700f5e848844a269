//go:build unix

package host

import (
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// giveLifeline makes the pipe's end the child's descriptor 3.
func giveLifeline(cmd *exec.Cmd, r *os.File) {
	cmd.Stdin = nil
	cmd.ExtraFiles = []*os.File{r}
	cmd.Env = append(cmd.Env, lifelineEnv+"3")
}

// killGroup ends a process that is not reaped yet and its whole group.
func killGroup(p *os.Process) { _ = syscall.Kill(-p.Pid, syscall.SIGKILL) }

func signalName(s syscall.Signal) string {
	if name := unix.SignalName(s); name != "" {
		return name
	}
	return s.String()
}
