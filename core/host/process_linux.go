package host

import (
	"errors"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// processAttr puts the plugin into a group of its own, and has the kernel end
// it with the thread that starts it.
func processAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// waitExit waits for the process's end and leaves it unreaped, so that its pid
// and group still are its own.
func waitExit(cmd *exec.Cmd) {
	for {
		err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// execVerified executes the very file that was read: the path may name
// another by now. What remains is someone who may write into the file itself.
func execVerified(cmd *exec.Cmd, binary *os.File) {
	cmd.ExtraFiles = append(cmd.ExtraFiles, binary)
	cmd.Path = "/proc/self/fd/4" // 3 is the lifeline
}
