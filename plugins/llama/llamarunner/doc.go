// Package llamarunner runs GGUF models with llama.cpp: an engine.Backend over
// the prebuilt shared libraries, which it opens when they are first needed.
//
// llama.cpp aborts the process on some damaged files. Three gates stand before
// it: the header is checked in Go (package gguf), then a child process builds
// the model without its weights (see ProbeMain), and only then is it loaded
// here.
package llamarunner
