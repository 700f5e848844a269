// Package transporttest checks implementations of the contract and stands in
// for one: [Run] is a conformance suite that every transport.Service must pass,
// and [Fake] is a Service without a model that tests can script.
package transporttest
