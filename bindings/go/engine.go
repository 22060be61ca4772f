// Package yinian runs language models inside this process: a thin layer over libyinian.so.
//
//	engine, err := yinian.Open(yinian.Config{"model": "path/to/model"})
//	stream, err := engine.Generate(ctx, yinian.Request{Prompt: "Once upon a time"})
//	for chunk, err := range stream.Chunks() {
//		...
//	}
//
// Everything may be called from any goroutine at any time, unless it says otherwise.
//
// How the library gets into the program is a choice of build tags:
//   - Without one, the linker finds libyinian.so by pkg-config, or, where PKG_CONFIG=true keeps that out, by CGO_LDFLAGS=-L....
//   - yinian_static links libyinian.a in the same two ways (pkg-config's yinian-static).
//   - yinian_dlopen needs no library to build. The first call loads it: the file that the environment variable YINIAN_LIBRARY
//     names, and nothing else if it is set; else libyinian.so.0.1 beside the program, in ../lib from there, where the dynamic
//     loader looks (LD_LIBRARY_PATH, rpath, system), in /usr/local/lib. When none is fit, the error is ErrNotFound and
//     says what was searched, and why each was not taken.
package yinian

// #include "yinian.h"
import "C"

import (
	"encoding/json"
	"iter"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"
)

const defaultMaxUnread = 1 << 20

// Config is the engine's configuration; the README of the project lists its keys.
type Config map[string]any

func (cfg Config) text() ([]byte, error) {
	text, err := json.Marshal(cfg)
	if err != nil {
		return nil, &Error{Status: ErrInvalid, Message: "config: " + err.Error()}
	}
	return text, nil
}

// Engine is a loaded model. Close it: an engine that is only forgotten stays loaded.
type Engine struct {
	handle    C.yn_engine
	maxUnread int
	lastKey   atomic.Uint64
	polled    chan struct{} // closed when the poller is gone

	mu             sync.Mutex
	streams        map[uint64]*Stream // by user_data, until their end was polled
	loading        Progress
	loadingChanged chan struct{} // closed and replaced with every change of loading and loadingErr
	loadingErr     error
}

// Open loads a model; it returns when the model is loaded, or at once with "async_load": true (see Loading).
func Open(cfg Config) (*Engine, error) {
	if err := library(); err != nil {
		return nil, err
	}
	text, err := cfg.text()
	if err != nil {
		return nil, err
	}
	// The library sees every record read at once, so its limit for unread output is kept here. A wrong type is its to tell.
	limit := struct {
		MaxUnread int `json:"max_unread_bytes"`
	}{defaultMaxUnread}
	_ = json.Unmarshal(text, &limit)
	e := &Engine{
		maxUnread: limit.MaxUnread, polled: make(chan struct{}), streams: make(map[uint64]*Stream),
		loading: Progress{State: StateLoading, Message: "loading"}, loadingChanged: make(chan struct{}),
	}
	var cErr C.yn_error
	c := cBytes(text)
	defer c.free()
	if status := C.yn_engine_create(c.b, &e.handle, &cErr); status != C.YN_OK {
		return nil, check(status, &cErr)
	}
	// What a load has told that is over by now is old news.
	if s, err := e.Stats(); err == nil && s.State == StateReady {
		e.loading = Progress{State: StateReady, Share: 1, Message: "ready"}
	}
	go e.poll()
	return e, nil
}

// Close cancels what is left and frees the engine; when it returns, every stream has ended. Idempotent.
func (e *Engine) Close() {
	C.yn_engine_free(e.handle)
	if e.polled != nil {
		<-e.polled
	}
}

// poll hands every record to its stream. It blocks in the library and never on a consumer, and ends with the engine.
func (e *Engine) poll() {
	defer close(e.polled)
	buf := make([]uint64, 8192)
	for {
		var used C.size_t
		switch status := C.yn_engine_poll(e.handle, unsafe.Pointer(&buf[0]), C.size_t(len(buf)*8), -1, &used); status {
		case C.YN_OK:
			for event := range events(buf, used) {
				e.route(event)
			}
			// Who was woken runs here and now, rather than on a thread that has to be woken too.
			runtime.Gosched()
		case C.YN_E_TIMEOUT:
		default:
			e.abandon(check(status, nil))
			return
		}
	}
}

// events are the records of a poll.
func events(buf []uint64, used C.size_t) iter.Seq[*C.yn_event] {
	return func(yield func(*C.yn_event) bool) {
		for at := uintptr(0); at < uintptr(used); {
			event := (*C.yn_event)(unsafe.Add(unsafe.Pointer(&buf[0]), at))
			if !yield(event) {
				return
			}
			at += uintptr(event.size)
		}
	}
}

// payload lies in the poll buffer. Nothing has no address: it might be behind the buffer's end.
func payload[T any](event *C.yn_event, off, n C.uint32_t) []T {
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*T)(unsafe.Add(unsafe.Pointer(event), off)), n)
}

func eventText(event *C.yn_event) []byte { return payload[byte](event, event.text_off, event.text_len) }

func (e *Engine) route(event *C.yn_event) {
	switch event.kind {
	case C.YN_EV_OUTPUT, C.YN_EV_PROMPT, C.YN_EV_DONE:
	case C.YN_EV_ENGINE:
		e.setProgress(event, nil)
		return
	default:
		return
	}
	key := uint64(event.user_data)
	e.mu.Lock()
	s := e.streams[key]
	if event.kind == C.YN_EV_DONE {
		delete(e.streams, key)
	}
	e.mu.Unlock()
	switch {
	case s == nil:
	case event.kind == C.YN_EV_DONE:
		s.end(event, string(eventText(event)))
	case event.kind == C.YN_EV_PROMPT:
		s.prompt(event)
	default:
		if s.push(event, eventText(event)) {
			C.yn_engine_cancel(e.handle, event.request_id)
		}
	}
}

// abandon ends the streams that got no last record. There are none unless the library broke its word or the process forked.
func (e *Engine) abandon(err error) {
	e.setProgress(nil, err)
	e.mu.Lock()
	left := e.streams
	e.streams = make(map[uint64]*Stream)
	e.mu.Unlock()
	for _, s := range left {
		s.finish(Result{Finish: FinishError}, err)
	}
}
