// Package grpc is the wire: it carries core/transport's contract over gRPC with
// JSON payloads, and is used twice, between clients and the daemon and between
// the daemon and its backend plugin.
//
// # On the wire
//
// The service is contenox.transport.v1.Compute. Every call asks for the codec
// by its content-subtype, contenoxtransportjson; a message is one JSON object
// of at most 512 MiB; see bodies.go for their keys.
//
// # The fence
//
// Every call but Health carries the metadata x-contenox-owner-instance: the
// instance id of the owner that it is meant for. A server with another id
// refuses it with ErrStaleFence. A server without an id ("") checks nothing.
//
// # Sessions
//
// A session belongs to the connection that opened it. It is closed with it, and
// its handle is of no use on another one.
//
// # Errors
//
// The sentinels of core/transport cross as a status whose message is
// "<token>: <text>". On the client's side errors.Is finds the sentinel again,
// and Error gives the text.
package grpc
