// Command modeld-openvino is the plugin that runs OpenVINO models.
// `modeld --backend openvino` starts it.
package main

import (
	"modeld/core/engine"
	"modeld/core/plugin"
	"modeld/plugins/openvino/ovrunner"
)

// settings are the configuration's `openvino:` section, and the engine's limits.
type settings struct {
	ovrunner.Settings
	Engine engine.Settings `json:"engine"`
}

func main() {
	var s settings
	if err := plugin.Settings(&s); err != nil {
		plugin.Fail(err)
	}
	if err := s.Validate(); err != nil {
		plugin.Fail(err)
	}
	opts := s.Engine.Options()
	opts.Logger = plugin.Logger()
	plugin.Serve(engine.New(ovrunner.New(s.Settings), opts), plugin.WithBackend("openvino"))
}
