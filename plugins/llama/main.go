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

// settings are the configuration's `llama:` section, and the engine's limits.
type settings struct {
	llamarunner.Settings
	Engine engine.Settings `json:"engine"`
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == llamarunner.ProbeArg {
		os.Exit(llamarunner.ProbeMain(os.Args[2:], os.Stderr))
	}
	log := plugin.Logger()
	slog.SetDefault(log) // llama.cpp's own lines go there
	var s settings
	if err := plugin.Settings(&s); err != nil {
		plugin.Fail(err)
	}
	if err := s.Validate(); err != nil {
		plugin.Fail(err)
	}
	if exe, err := os.Executable(); err == nil {
		s.ProbeCommand = []string{exe, llamarunner.ProbeArg}
	}
	opts := s.Engine.Options()
	opts.Logger = log
	plugin.Serve(engine.New(llamarunner.New(s.Settings), opts), plugin.WithBackend("llama"))
}
