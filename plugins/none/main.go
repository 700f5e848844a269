// Command modeld-none is the backend that has no model. By itself it lets a
// daemon own its lease and answer health, not ready; with the setting echo it
// serves a deterministic text, for tests and for measuring the wire.
package main

import (
	"modeld/core/plugin"
	"modeld/core/transport"
	"modeld/plugins/none/echo"
)

// settings are the configuration's `none:` section.
type settings struct {
	// Echo serves package echo instead of nothing.
	Echo bool `json:"echo"`
	echo.Settings
}

func main() {
	var s settings
	if err := plugin.Settings(&s); err != nil {
		plugin.Fail(err)
	}
	svc, err := newService(s)
	if err != nil {
		plugin.Fail(err)
	}
	plugin.Serve(svc, plugin.WithBackend("none"))
}

func newService(s settings) (transport.Service, error) {
	if s.Echo {
		return echo.New(s.Settings)
	}
	return noBackend{}, nil
}
