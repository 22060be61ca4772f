// Package yinian runs language models inside this process: a thin layer over libyinian.so.
//
//	engine, err := yinian.Open(yinian.Config{"model": "path/to/model"})
//	stream, err := engine.Generate(ctx, yinian.Request{Prompt: "Once upon a time"})
//	for {
//		chunk, err := stream.Next(ctx)
//		if err == io.EOF { break } // the answer is whole
//		...
//	}
//
// Everything may be called from any goroutine at any time. The compiler finds yinian.h and the linker libyinian.so by
// pkg-config, or, where PKG_CONFIG=true keeps it out, by CGO_CFLAGS=-I... and CGO_LDFLAGS=-L....
package yinian

// #cgo CFLAGS: -std=c99 -Wall -Wextra -I${SRCDIR}/..
// #cgo LDFLAGS: -lyinian
// #cgo pkg-config: yinian
// #include <stdlib.h>
// #include "yinian.h"
import "C"

import (
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Before 1.0 each minor version of the library may change its ABI.
const abiVersion = 0x0001

const defaultMaxUnread = 1 << 20

// Config is the engine's configuration; the README of the project lists its keys.
type Config map[string]any

// Engine is a loaded model. Close it: an engine that is only forgotten stays loaded.
type Engine struct {
	handle    C.yn_engine
	maxUnread int
	lastKey   atomic.Uint64
	polled    chan struct{} // closed when the poller is gone

	mu      sync.Mutex
	streams map[uint64]*Stream // by user_data, until their end was polled
}

// Open loads a model; it returns when the model is loaded, or at once with "async_load": true.
func Open(cfg Config) (*Engine, error) {
	if v := uint32(C.yn_version()); v>>16 != abiVersion {
		return nil, &Error{Status: ErrUnsupported, Message: fmt.Sprintf(
			"package yinian is for libyinian 0.1, the loaded library is %d.%d", v>>24, v>>16&0xff)}
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		return nil, &Error{Status: ErrInvalid, Message: "config: " + err.Error()}
	}
	// The library sees every record read at once, so its limit for unread output is kept here. A wrong type is its to tell.
	limit := struct {
		MaxUnread int `json:"max_unread_bytes"`
	}{defaultMaxUnread}
	_ = json.Unmarshal(text, &limit)
	e := &Engine{maxUnread: limit.MaxUnread, polled: make(chan struct{}), streams: make(map[uint64]*Stream)}
	var cErr C.yn_error
	if status := engineCreate(text, &e.handle, &cErr); status != C.YN_OK {
		return nil, check(status, &cErr)
	}
	go e.poll()
	return e, nil
}

// Close cancels what is left and frees the engine; when it returns, every stream has ended. Idempotent.
func (e *Engine) Close() {
	C.yn_engine_free(e.handle)
	<-e.polled
}

// poll hands every record to its stream. It blocks in the library and never on a consumer, and ends with the engine.
func (e *Engine) poll() {
	defer close(e.polled)
	buf := make([]uint64, 8192)
	for {
		var used C.size_t
		switch status := C.yn_engine_poll(e.handle, unsafe.Pointer(&buf[0]), C.size_t(len(buf)*8), -1, &used); status {
		case C.YN_OK:
			for at := uintptr(0); at < uintptr(used); {
				event := (*C.yn_event)(unsafe.Add(unsafe.Pointer(&buf[0]), at))
				e.route(event)
				at += uintptr(event.size)
			}
		case C.YN_E_TIMEOUT:
		default:
			e.abandon(check(status, nil))
			return
		}
	}
}

func (e *Engine) route(event *C.yn_event) {
	if event.kind != C.YN_EV_OUTPUT && event.kind != C.YN_EV_DONE {
		return
	}
	key := uint64(event.user_data)
	e.mu.Lock()
	s := e.streams[key]
	if event.kind == C.YN_EV_DONE {
		delete(e.streams, key)
	}
	e.mu.Unlock()
	if s == nil {
		return
	}
	base := unsafe.Pointer(event)
	text := unsafe.Slice((*byte)(unsafe.Add(base, event.text_off)), event.text_len)
	if event.kind == C.YN_EV_DONE {
		s.end(event, string(text))
		return
	}
	if s.push(event, text) {
		C.yn_engine_cancel(e.handle, event.request_id)
	}
}

// abandon ends the streams that got no last record. There are none unless the library broke its word or the process forked.
func (e *Engine) abandon(err error) {
	e.mu.Lock()
	left := e.streams
	e.streams = make(map[uint64]*Stream)
	e.mu.Unlock()
	for _, s := range left {
		s.finish(Result{Finish: FinishError}, err)
	}
}

func engineCreate(config []byte, to *C.yn_engine, err *C.yn_error) C.yn_status {
	// yn_bytes holds a pointer, and no struct with a Go pointer inside crosses to C.
	text := C.CBytes(config)
	defer C.free(text)
	return C.yn_engine_create(C.yn_bytes{data: (*C.uint8_t)(text), len: C.size_t(len(config))}, to, err)
}
