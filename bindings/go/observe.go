package yinian

// #include "yinian.h"
import "C"

import (
	"context"
	"encoding/json"
	"time"
)

// State is what an engine is up to.
type State uint32

const (
	StateLoading  State = C.YN_STATE_LOADING
	StateReady    State = C.YN_STATE_READY
	StateDraining State = C.YN_STATE_DRAINING
	StateFailed   State = C.YN_STATE_FAILED
)

// Stats are counters since Open, and gauges.
type Stats struct {
	State                                           State
	Waiting, Running, BlocksTotal, BlocksFree       uint64
	Finished, Rejected, Preempted, Steps            uint64
	PromptTokens, PrefixHitTokens, CompletionTokens uint64
}

// Stats never blocks.
func (e *Engine) Stats() (Stats, error) {
	s := C.yn_stats{struct_size: C.sizeof_yn_stats}
	if status := C.yn_engine_stats(e.handle, &s); status != C.YN_OK {
		return Stats{}, check(status, nil)
	}
	return Stats{
		State:   State(s.state),
		Waiting: uint64(s.waiting), Running: uint64(s.running), BlocksTotal: uint64(s.blocks_total), BlocksFree: uint64(s.blocks_free),
		Finished: uint64(s.finished), Rejected: uint64(s.rejected), Preempted: uint64(s.preempted), Steps: uint64(s.steps),
		PromptTokens: uint64(s.prompt_tokens), PrefixHitTokens: uint64(s.prefix_hit_tokens), CompletionTokens: uint64(s.completion_tokens),
	}, nil
}

// Metrics is Prometheus text exposition. It never blocks.
func (e *Engine) Metrics() (string, error) {
	var out C.yn_buf
	if status := C.yn_engine_metrics(e.handle, &out); status != C.YN_OK {
		return "", check(status, nil)
	}
	return string(taken(&out)), nil
}

// Info is model, limits, memory and device as a JSON object. It never blocks.
func (e *Engine) Info() (json.RawMessage, error) {
	var out C.yn_buf
	var cErr C.yn_error
	if err := check(C.yn_engine_info(e.handle, &out, &cErr), &cErr); err != nil {
		return nil, err
	}
	return taken(&out), nil
}

// Drain refuses new requests from now on, with ErrShutdown, and waits until the accepted ones have ended. It gives up with
// ctx, and goes on when called again.
func (e *Engine) Drain(ctx context.Context) error {
	const slice = 20 * time.Millisecond
	for {
		status := C.yn_engine_drain(e.handle, C.int32_t(slice.Milliseconds()))
		if status != C.YN_E_TIMEOUT {
			return check(status, nil)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
