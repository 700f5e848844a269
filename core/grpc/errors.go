package grpc

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"modeld/core/transport"
)

// errorRow is how one sentinel crosses the wire.
type errorRow struct {
	token    string
	code     codes.Code
	sentinel error
}

// errorRows is searched in order. The rows of contexts come last: where an
// error is also something else, that says more.
var errorRows = []errorRow{
	{"stale_fence", codes.FailedPrecondition, transport.ErrStaleFence},
	{"not_owner", codes.FailedPrecondition, transport.ErrNotOwner},
	{"session_closed", codes.FailedPrecondition, transport.ErrSessionClosed},
	{"model_busy", codes.FailedPrecondition, transport.ErrModelBusy},
	{"model_not_active", codes.FailedPrecondition, transport.ErrModelNotActive},
	{"model_switch_required", codes.FailedPrecondition, transport.ErrModelSwitchRequired},
	{"slot_generation_stale", codes.FailedPrecondition, transport.ErrSlotGenerationStale},
	{"backend_mismatch", codes.FailedPrecondition, transport.ErrBackendMismatch},
	{"manifest_mismatch", codes.FailedPrecondition, transport.ErrManifestMismatch},
	{"digest_mismatch", codes.FailedPrecondition, transport.ErrDigestMismatch},
	{"context_overflow", codes.ResourceExhausted, transport.ErrContextOverflow},
	{"device_busy", codes.ResourceExhausted, transport.ErrDeviceBusy},
	{"insufficient_memory", codes.ResourceExhausted, transport.ErrInsufficientMemory},
	{"session_fatal", codes.Aborted, transport.ErrSessionFatal},
	{"model_load_failed", codes.Internal, transport.ErrModelLoadFailed},
	{"unsupported_feature", codes.Unimplemented, transport.ErrUnsupportedFeature},
	{"model_not_found", codes.NotFound, transport.ErrModelNotFound},
	{"unsupported_model_type", codes.InvalidArgument, transport.ErrUnsupportedModelType},
	{"context_canceled", codes.Canceled, context.Canceled},
	{"deadline_exceeded", codes.DeadlineExceeded, context.DeadlineExceeded},
}

// internalRow is for every error without a sentinel.
var internalRow = errorRow{token: "internal", code: codes.Internal}

const (
	overflowReason = "context_overflow"
	errorDomain    = "contenox.transport"
)

func rowOf(err error) errorRow {
	for _, row := range errorRows {
		if errors.Is(err, row.sentinel) {
			return row
		}
	}
	return internalRow
}

func rowOfToken(token string) (errorRow, bool) {
	for _, row := range errorRows {
		if row.token == token {
			return row, true
		}
	}
	return internalRow, token == internalRow.token
}

// toStatus makes what the server sends of an error.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	row := rowOf(err)
	st := status.New(row.code, row.token+": "+strings.ToValidUTF8(err.Error(), "\uFFFD"))
	if d, ok := transport.ContextOverflowDetailFromError(err); ok {
		if with, err := st.WithDetails(overflowInfo(d)); err == nil {
			st = with
		}
	}
	return st.Err()
}

func overflowInfo(d transport.ContextOverflowDetail) *errdetails.ErrorInfo {
	return &errdetails.ErrorInfo{
		Reason: overflowReason,
		Domain: errorDomain,
		Metadata: map[string]string{
			"stage":             d.Stage,
			"resident_tokens":   strconv.Itoa(d.ResidentTokens),
			"additional_tokens": strconv.Itoa(d.AdditionalTokens),
			"num_ctx":           strconv.Itoa(d.NumCtx),
		},
	}
}

// fromStatus makes what the client returns of a failed call.
func fromStatus(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	if token, text, found := strings.Cut(st.Message(), ": "); found {
		if row, known := rowOfToken(token); known {
			return &wireError{text: text, cause: causeOf(row, detailOf(st)), status: st}
		}
	}
	return &wireError{text: st.Message(), cause: causeOfCode(st.Code()), status: st}
}

// rebuild makes the error of a stream's last chunk.
func rebuild(token, text string, d *transport.ContextOverflowDetail) error {
	row, known := rowOfToken(token)
	if !known && text == "" {
		text = token
	}
	return &wireError{text: text, cause: causeOf(row, d), status: status.New(row.code, token+": "+text)}
}

// causeOf returns what errors.Is and errors.As are to find.
func causeOf(row errorRow, d *transport.ContextOverflowDetail) error {
	if d != nil && row.sentinel == transport.ErrContextOverflow { //nolint:errorlint // a table's value
		return &transport.ContextOverflowError{Detail: *d}
	}
	return row.sentinel
}

// causeOfCode is for the errors that gRPC makes itself, which have no token.
func causeOfCode(code codes.Code) error {
	switch code {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	case codes.Unimplemented:
		return transport.ErrUnsupportedFeature
	}
	return nil
}

// detailOf returns the counts of an overflow, nil where there are none.
func detailOf(st *status.Status) *transport.ContextOverflowDetail {
	for _, detail := range st.Details() {
		info, ok := detail.(*errdetails.ErrorInfo)
		if !ok || info.GetReason() != overflowReason || info.GetDomain() != errorDomain {
			continue
		}
		m := info.GetMetadata()
		number := func(key string) int {
			n, _ := strconv.Atoi(m[key]) // 0, the zero value, where a foreign server sends none
			return n
		}
		return &transport.ContextOverflowDetail{
			Stage:            m["stage"],
			ResidentTokens:   number("resident_tokens"),
			AdditionalTokens: number("additional_tokens"),
			NumCtx:           number("num_ctx"),
		}
	}
	return nil
}

// wireError is an error that came over the wire: it reads as on the other side
// and is the same sentinel.
type wireError struct {
	text   string
	cause  error // nil without a sentinel
	status *status.Status
}

func (e *wireError) Error() string { return e.text }

func (e *wireError) Unwrap() error { return e.cause }

// GRPCStatus lets status.Code tell why a call failed on its way.
func (e *wireError) GRPCStatus() *status.Status { return e.status }
