// Package ovrunner is the engine's Runner over OpenVINO: a language model in
// OpenVINO's IR, transformed to paged attention, whose KV blocks and block
// tables are kept here. The C++ core is reached through the shim of
// native/openvino, without cgo.
package ovrunner
