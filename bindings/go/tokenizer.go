package yinian

// #include "yinian.h"
import "C"

import "unsafe"

// Tokenizer turns text into token ids and back. It outlives the engine it came from. Close it.
type Tokenizer struct{ handle C.yn_tokenizer }

// OpenTokenizer opens the tokenizer of a model directory, or a tokenizer.json.
func OpenTokenizer(path string) (*Tokenizer, error) {
	if err := library(); err != nil {
		return nil, err
	}
	c := cBytes([]byte(path))
	defer c.free()
	t := new(Tokenizer)
	var cErr C.yn_error
	status := C.yn_tokenizer_open(c.b, &t.handle, &cErr)
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
	c := cBytes([]byte(text))
	defer c.free()
	var flags C.uint32_t
	if !special {
		flags = C.YN_TOKENIZE_NO_SPECIAL
	}
	ids := make([]uint32, len(text)+8)
	for {
		n := C.size_t(len(ids))
		var cErr C.yn_error
		status := C.yn_tokenize(t.handle, c.b, flags, (*C.uint32_t)(unsafe.Pointer(&ids[0])), &n, &cErr)
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

// RenderChat renders {"messages": [...], ...} with the model's chat template to the text that would be tokenized. A model
// without a template is ErrUnsupported.
func (t *Tokenizer) RenderChat(chat string) (string, error) {
	c := cBytes([]byte(chat))
	defer c.free()
	var out C.yn_buf
	var cErr C.yn_error
	if err := check(C.yn_chat_render(t.handle, c.b, &out, &cErr), &cErr); err != nil {
		return "", err
	}
	return string(taken(&out)), nil
}
