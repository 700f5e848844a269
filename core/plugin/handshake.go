package plugin

import (
	goplugin "github.com/hashicorp/go-plugin"

	"modeld/core/transport"
)

// The names by which host and plugin find each other.
const (
	// CookieKey and CookieValue tell a launch by a host from one by a person.
	// They are no secret.
	CookieKey   = "MODELD_PLUGIN"
	CookieValue = "modeld-backend-d7c1a7e0"
	// EnvConfig holds the backend's settings as JSON; see [Settings].
	EnvConfig = "MODELD_PLUGIN_CONFIG"
	// EnvLogLevel holds the least level to log.
	EnvLogLevel = "MODELD_PLUGIN_LOG_LEVEL"
	// EnvLifeline holds the descriptor of the lifeline pipe.
	EnvLifeline = "MODELD_PLUGIN_LIFELINE"
	// Name is the one entry in the set of go-plugin's plugins.
	Name = "compute"
	// BinaryPrefix and a backend's name are its binary's name.
	BinaryPrefix = "modeld-"
)

// Handshake is go-plugin's, for both sides. Versions are in [Versions].
func Handshake() goplugin.HandshakeConfig {
	return goplugin.HandshakeConfig{MagicCookieKey: CookieKey, MagicCookieValue: CookieValue}
}

// Versions offers p under every version of the contract that this build speaks.
func Versions(p goplugin.Plugin) map[int]goplugin.PluginSet {
	versions := map[int]goplugin.PluginSet{}
	for v := transport.MinProtocol; v <= transport.ProtocolVersion; v++ {
		versions[v] = goplugin.PluginSet{Name: p}
	}
	return versions
}
