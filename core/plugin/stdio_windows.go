package plugin

import (
	"os"

	"golang.org/x/sys/windows"
)

// redirectStdout changes the process's handle; os.Stdout keeps the real one.
func redirectStdout() (*os.File, error) {
	stderr, err := windows.GetStdHandle(windows.STD_ERROR_HANDLE)
	if err != nil {
		return nil, err
	}
	if err := windows.SetStdHandle(windows.STD_OUTPUT_HANDLE, stderr); err != nil {
		return nil, err
	}
	return os.Stdout, nil
}

func nameProcess() {}
