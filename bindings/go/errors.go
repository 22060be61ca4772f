package yinian

// #include "yinian.h"
import "C"

import (
	"context"
	"fmt"
)

// Status is a failure's kind. errors.Is(err, yinian.ErrBusy) works on every error of this package that the library reported.
type Status int32

const (
	ErrInvalid     Status = C.YN_E_INVALID
	ErrBadHandle   Status = C.YN_E_BAD_HANDLE
	ErrUnsupported Status = C.YN_E_UNSUPPORTED
	ErrBusy        Status = C.YN_E_BUSY
	ErrTimeout     Status = C.YN_E_TIMEOUT
	ErrShutdown    Status = C.YN_E_SHUTDOWN
	ErrNotFound    Status = C.YN_E_NOT_FOUND
	ErrIO          Status = C.YN_E_IO
	ErrNoMemory    Status = C.YN_E_NO_MEMORY
	ErrDevice      Status = C.YN_E_DEVICE
	ErrInternal    Status = C.YN_E_INTERNAL
	ErrForked      Status = C.YN_E_FORKED
)

// Error is the library's name of the status.
func (s Status) Error() string { return C.GoString(C.yn_status_name(C.int32_t(s))) }

// Error is a failed call, or a request that failed.
type Error struct {
	Status  Status
	Message string
	// Retry says that the same call may succeed later, Unusable that the engine cannot be used any more.
	Retry, Unusable bool
}

func (e *Error) Error() string { return fmt.Sprintf("yinian: %v: %s", e.Status, e.Message) }

// Is makes errors.Is find the Status.
func (e *Error) Is(target error) bool { return target == e.Status }

func check(status C.yn_status, err *C.yn_error) error {
	if status == C.YN_OK {
		return nil
	}
	e := &Error{Status: Status(status), Message: "no further message"}
	if err != nil && err.status == C.int32_t(status) {
		e.Message = C.GoString(&err.message[0])
		e.Retry = err.flags&C.YN_ERROR_RETRY != 0
		e.Unusable = err.flags&C.YN_ERROR_UNUSABLE != 0
	}
	return e
}

// Finish says how a request ended. As an error it is an end before the answer was whole.
type Finish uint32

const (
	FinishNone      Finish = C.YN_FINISH_NONE
	FinishEOS       Finish = C.YN_FINISH_EOS
	FinishStop      Finish = C.YN_FINISH_STOP
	FinishLength    Finish = C.YN_FINISH_LENGTH
	FinishCancelled Finish = C.YN_FINISH_CANCELLED
	FinishDeadline  Finish = C.YN_FINISH_DEADLINE
	FinishOverrun   Finish = C.YN_FINISH_OVERRUN
	FinishError     Finish = C.YN_FINISH_ERROR
)

var finishNames = [...]string{"none", "eos", "stop", "length", "cancelled", "deadline", "overrun", "error"}

func (f Finish) String() string {
	if int(f) < len(finishNames) {
		return finishNames[f]
	}
	return fmt.Sprintf("finish %d", uint32(f))
}

// whole says that the answer is.
func (f Finish) whole() bool { return f == FinishEOS || f == FinishStop || f == FinishLength }

// Error is String's but of an early end: fmt prints an error as such.
func (f Finish) Error() string {
	if f.whole() || f == FinishNone {
		return f.String()
	}
	return "yinian: the request ended early: " + f.String()
}

// Is equates FinishCancelled with context.Canceled, and FinishDeadline with context.DeadlineExceeded.
func (f Finish) Is(target error) bool {
	return f == FinishCancelled && target == context.Canceled || f == FinishDeadline && target == context.DeadlineExceeded
}
