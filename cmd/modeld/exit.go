package main

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"modeld/cmd/modeld/internal/config"
	"modeld/core/transport"
	"modeld/natslease"
	"modeld/natsserver"
)

// The exit codes. They are documented in the help text and the README.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2 // flags or configuration
	exitUnreachable = 3 // no owner, or it does not answer
	exitRefused     = 4 // the model or its owner refused: context, memory, fence
	exitInterrupted = 130
)

// usageError is one of flags or configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// errUnreachable: NATS, or the owner, does not answer.
var errUnreachable = errors.New("unreachable")

const again = "run it again; modeld status shows who owns the slot"

// outcomes say for every error that has a name how modeld ends and what to do
// next, where the error's text doesn't say.
var outcomes = []struct {
	is   error
	code int
	next string
}{
	{config.ErrInvalid, exitUsage, ""},
	{natslease.ErrNoOwner, exitUnreachable, "start one with modeld serve"},
	{natsserver.ErrNotServing, exitUnreachable, ""},
	{errUnreachable, exitUnreachable, ""},
	{transport.ErrStaleFence, exitRefused, again},
	{transport.ErrNotOwner, exitRefused, again},
	{transport.ErrSessionClosed, exitRefused, again},
	{transport.ErrSessionFatal, exitRefused, again},
	{transport.ErrModelBusy, exitRefused, "try again in a moment"},
	{transport.ErrDeviceBusy, exitRefused, "try again in a moment"},
	{transport.ErrModelNotActive, exitRefused, again},
	{transport.ErrModelSwitchRequired, exitRefused, again},
	{transport.ErrSlotGenerationStale, exitRefused, again},
	{transport.ErrModelNotFound, exitRefused, "modeld config shows models, on the machine that serves"},
	{transport.ErrModelLoadFailed, exitRefused, "modeld serve logs more"},
	{transport.ErrBackendMismatch, exitRefused, "choose another --backend or model"},
	{transport.ErrUnsupportedModelType, exitRefused, "choose another --backend or model"},
	{transport.ErrUnsupportedFeature, exitRefused, "modeld describe shows what the model can do"},
	{transport.ErrContextOverflow, exitRefused, "shorten the input, or serve with a larger num_ctx"},
	{transport.ErrInsufficientMemory, exitRefused, "serve with a smaller num_ctx or model"},
	{transport.ErrManifestMismatch, exitRefused, again},
	{transport.ErrDigestMismatch, exitRefused, "fetch the model anew, or correct its digest"},
	{context.Canceled, exitInterrupted, ""},
}

// outcome classifies an error.
func outcome(err error) (code int, next string) {
	if err == nil {
		return exitOK, ""
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage, ""
	}
	for _, o := range outcomes {
		if errors.Is(err, o.is) {
			return o.code, o.next
		}
	}
	if status.Code(err) == codes.Unavailable {
		return exitUnreachable, "modeld status shows whether the owner is there"
	}
	return exitFailure, ""
}

// oneLine is an error as a line, with what to do next.
func oneLine(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	text := strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	if _, next := outcome(err); next != "" {
		text += "; " + next
	}
	return text
}
