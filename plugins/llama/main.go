// Command modeld-llama is the plugin that runs GGUF models with llama.cpp.
// `modeld --backend llama` starts it.
package main

import (
	"log/slog"
	"os"

	"modeld/core/engine"
	"modeld/core/plugin"
	"modeld/plugins/llama/llamarunner"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == llamarunner.ProbeArg {
		os.Exit(llamarunner.ProbeMain(os.Args[2:], os.Stderr))
	}
	log := plugin.Logger()
	slog.SetDefault(log) // llama.cpp's own lines go there
	var s llamarunner.Settings
	if err := plugin.Settings(&s); err != nil {
		plugin.Fail(err)
	}
	if err := s.Validate(); err != nil {
		plugin.Fail(err)
	}
	if exe, err := os.Executable(); err == nil {
		s.ProbeCommand = []string{exe, llamarunner.ProbeArg}
	}
	plugin.Serve(engine.New(llamarunner.New(s), engine.Options{Logger: log}), plugin.WithBackend("llama"))
}
