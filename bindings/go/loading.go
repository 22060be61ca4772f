package yinian

// #include "yinian.h"
import "C"

import (
	"context"
	"iter"
)

// Progress is how far an engine has come: with "async_load": true, Open returns before the model is loaded.
type Progress struct {
	State   State
	Share   float64 // of the load, 0 to 1
	Message string
}

// Loading yields how far loading is whenever that changes, at last that the engine is ready, and an error when it failed, was
// closed or ctx ended. A slow reader misses steps in between. Of an engine that is loaded it yields that alone.
func (e *Engine) Loading(ctx context.Context) iter.Seq2[Progress, error] {
	return func(yield func(Progress, error) bool) {
		told := false
		for last := (Progress{}); ; {
			now, changed, err := e.progress()
			if err != nil {
				yield(now, err)
				return
			}
			if !told || now != last {
				if !yield(now, nil) {
					return
				}
				told, last = true, now
			}
			if now.State != StateLoading {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				yield(now, ctx.Err())
				return
			}
		}
	}
}

// Ready waits until the engine is loaded. It says ErrShutdown of one that drains or is closed, and why of one that has failed.
func (e *Engine) Ready(ctx context.Context) error {
	for now, err := range e.Loading(ctx) {
		if err != nil {
			return err
		}
		if now.State == StateDraining {
			return &Error{Status: ErrShutdown, Message: now.Message}
		}
	}
	return nil
}

// progress is the newest there is, a channel that is closed when there is newer, and why there will be none.
func (e *Engine) progress() (Progress, <-chan struct{}, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.loading, e.loadingChanged, e.loadingErr
}

// setProgress takes an EV_ENGINE record, or the end of all records.
func (e *Engine) setProgress(event *C.yn_event, end error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if event != nil {
		message, state := string(eventText(event)), State(event.finish)
		if state == StateLoading && e.loading.State != StateLoading {
			return
		}
		e.loading = Progress{State: state, Share: float64(event.n_tokens) / 1000, Message: message}
		if event.status != C.YN_OK {
			end = &Error{Status: Status(event.status), Message: message, Unusable: true}
		}
	}
	if e.loadingErr == nil {
		e.loadingErr = end
	}
	close(e.loadingChanged)
	e.loadingChanged = make(chan struct{})
}
