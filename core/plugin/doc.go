// Package plugin is what the author of a backend imports: it serves a
// [transport.Service] to modeld from a process of its own.
//
//	func main() {
//		var s settings
//		if err := plugin.Settings(&s); err != nil {
//			plugin.Fail(err)
//		}
//		plugin.Serve(newService(s), plugin.WithBackend("mine"))
//	}
//
// Built as modeld-mine and put into the daemon's plugins folder, this is what
// `modeld --backend mine` runs. Nothing of modeld has to be rebuilt.
//
// # The protocol, for other languages
//
// A plugin needs gRPC, JSON and the handshake of hashicorp/go-plugin. The host
// starts the binary modeld-NAME without arguments, in a process group of its
// own, with this environment and little else:
//
//	MODELD_PLUGIN             the value of [CookieValue]; anything else means
//	                          that a person started the binary: say so, exit 1
//	MODELD_PLUGIN_CONFIG      the backend's settings, a JSON object
//	MODELD_PLUGIN_LOG_LEVEL   debug, info, warn or error
//	MODELD_PLUGIN_LIFELINE    the number of a file descriptor, see below
//	PLUGIN_PROTOCOL_VERSIONS  the contract versions that the host speaks, as
//	                          decimal numbers with commas between
//	PLUGIN_UNIX_SOCKET_DIR    the folder for the plugin's Unix socket
//	PLUGIN_CLIENT_CERT        the host's certificate (PEM) for mutual TLS
//
// The plugin listens on a Unix socket in that folder (on Windows on loopback
// TCP between PLUGIN_MIN_PORT and PLUGIN_MAX_PORT) and then prints its
// handshake, which must be the first line on standard output, within the
// host's start timeout:
//
//	1|VERSION|unix|SOCKET|grpc|CERTIFICATE
//
// The leading 1 is go-plugin's own protocol; VERSION is the newest contract
// version that both know (transport.ProtocolVersion); CERTIFICATE is the
// plugin's own self-signed certificate for "localhost", DER in unpadded base64.
// The connection is TLS 1.2 or newer and each side accepts only the other's
// certificate.
//
// On it the plugin serves:
//
//   - contenox.transport.v1.Compute with content-subtype
//     contenoxtransportjson, as core/grpc documents it. No fence is sent: the
//     host has checked it already. Messages of up to 512 MiB must be taken.
//     Sessions end with the connection that opened them.
//   - grpc.health.v1.Health, with "plugin" SERVING. The host kills a plugin
//     that does not answer it. (core/plugin registers it; a Go backend must
//     not do so again.)
//   - plugin.GRPCController/Shutdown: end soon, having closed the service.
//     A host that waits in vain kills the process group.
//   - plugin.GRPCStdio and plugin.GRPCBroker may be left out.
//
// The lifeline is a pipe whose other end only the host holds. When it reads
// end-of-file the host is gone, and the plugin must exit within 2 seconds.
// (On Windows it is standard input, descriptor 0.)
//
// After the handshake standard output is only logged. Lines on standard error
// are logged too: a JSON object with the strings "@level", "@message" and
// "@timestamp" (2006-01-02T15:04:05.000000Z07:00) at its level with its other
// keys as attributes, anything else at debug level. Lines should be shorter
// than 64 KiB. The last ones are shown to the user when a plugin dies.
package plugin
