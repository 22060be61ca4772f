package yinian

// #include <stdlib.h>
// #include "yinian.h"
import "C"

import "unsafe"

// Tokenizer turns text into token ids and back. It outlives the engine it came from. Close it.
type Tokenizer struct{ handle C.yn_tokenizer }

// OpenTokenizer opens the tokenizer of a model directory, or a tokenizer.json.
func OpenTokenizer(path string) (*Tokenizer, error) {
	text := C.CString(path)
	defer C.free(unsafe.Pointer(text))
	t := new(Tokenizer)
	var cErr C.yn_error
	b := C.yn_bytes{data: (*C.uint8_t)(unsafe.Pointer(text)), len: C.size_t(len(path))}
	status := C.yn_tokenizer_open(b, &t.handle, &cErr)
	if err := check(status, &cErr); err != nil {
		return nil, err
	}
	return t, nil
}

// Tokenizer is the one of the engine's model.
func (e *Engine) Tokenizer() (*Tokenizer, error) {
	t := new(Tokenizer)
	if status := C.yn_engine_tokenizer(e.handle, &t.handle); status != C.YN_OK {
		return nil, check(status, nil)
	}
	return t, nil
}

// Close retires the tokenizer; calls that are inside finish.
func (t *Tokenizer) Close() { C.yn_tokenizer_free(t.handle) }

// Encode makes token ids, with the tokenizer's own begin and end tokens when special.
func (t *Tokenizer) Encode(text string, special bool) ([]uint32, error) {
	raw := C.CBytes([]byte(text))
	defer C.free(raw)
	var flags C.uint32_t
	if !special {
		flags = C.YN_TOKENIZE_NO_SPECIAL
	}
	ids := make([]uint32, len(text)+8)
	for {
		n := C.size_t(len(ids))
		var cErr C.yn_error
		b := C.yn_bytes{data: (*C.uint8_t)(raw), len: C.size_t(len(text))}
		status := C.yn_tokenize(t.handle, b, flags, (*C.uint32_t)(unsafe.Pointer(&ids[0])), &n, &cErr)
		if status == C.YN_E_TOO_SMALL && int(n) > len(ids) {
			ids = make([]uint32, n)
			continue
		}
		if err := check(status, &cErr); err != nil {
			return nil, err
		}
		return ids[:n], nil
	}
}

// Decode makes text.
func (t *Tokenizer) Decode(ids []uint32) (string, error) { return t.decode(ids, 0) }

// Show makes text in which special tokens are named.
func (t *Tokenizer) Show(ids []uint32) (string, error) {
	return t.decode(ids, C.YN_DETOKENIZE_SHOW_SPECIAL)
}

func (t *Tokenizer) decode(ids []uint32, flags C.uint32_t) (string, error) {
	var first *C.uint32_t
	if len(ids) > 0 {
		first = (*C.uint32_t)(unsafe.Pointer(&ids[0]))
	}
	var out C.yn_buf
	var cErr C.yn_error
	status := C.yn_detokenize(t.handle, first, C.size_t(len(ids)), flags, &out, &cErr)
	if err := check(status, &cErr); err != nil {
		return "", err
	}
	return string(taken(&out)), nil
}
