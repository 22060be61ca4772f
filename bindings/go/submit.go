package yinian

// #include "flat_request.h"
import "C"

import (
	"fmt"
	"math"
	"time"
	"unsafe"
)

// Request says what to generate. Exactly one of Prompt, Chat and Tokens is given; nil and zero fields take the model's
// defaults.
type Request struct {
	Prompt string
	Chat   string // {"messages": [...], ...}, rendered with the model's chat template
	Tokens []uint32

	MaxTokens, TopK                                                               *int
	Temperature, TopP, MinP, RepetitionPenalty, PresencePenalty, FrequencyPenalty *float32
	MinTokens, Priority                                                           int
	Seed                                                                          *uint64
	StopTexts                                                                     []string
	StopTokens                                                                    []uint32
	IgnoreEOS, NoSpecialTokens                                                    bool
	N                                                                             int           // choices of one prompt; 0 is one
	WantTokens                                                                    bool          // Chunk.Tokens are filled
	Logprobs                                                                      *int          // Chunk.Logprobs are filled, with as many most probable tokens
	PromptLogprobs                                                                *int          // Result.PromptLogprobs are, likewise
	FinalOnly                                                                     bool          // output arrives at the end
	Timeout                                                                       time.Duration // from Generate to the end; 0 is the config's
	CacheSalt                                                                     []byte
	ExtraJSON                                                                     string
}

// Ptr makes the pointers that Request wants.
func Ptr[T any](v T) *T { return &v }

func bit(on bool, b C.uint32_t) C.uint32_t {
	if on {
		return b
	}
	return 0
}

func setFloat(f *C.yn_flat_request, b C.uint32_t, to *C.float, v *float32) {
	if v != nil {
		*to = C.float(*v)
		f.set |= b
	}
}

// fields is a request without its texts and lists.
func (r *Request) fields(engine C.yn_engine, key uint64, timeoutMS uint32) C.yn_flat_request {
	f := C.yn_flat_request{
		engine: C.uint64_t(engine.id), user_data: C.uint64_t(key), timeout_ms: C.uint32_t(timeoutMS),
		min_tokens: C.uint32_t(r.MinTokens), priority: C.int32_t(r.Priority),
	}
	f.output = C.YN_OUT_TEXT | bit(r.WantTokens, C.YN_OUT_TOKENS) | bit(r.Logprobs != nil, C.YN_OUT_LOGPROBS) |
		bit(r.PromptLogprobs != nil, C.YN_OUT_PROMPT_LOGPROBS) | bit(r.FinalOnly, C.YN_OUT_FINAL_ONLY)
	f.flags = bit(r.IgnoreEOS, C.YN_REQ_IGNORE_EOS) | bit(r.NoSpecialTokens, C.YN_REQ_NO_SPECIAL_TOKENS)
	f.choices = C.uint16_t(r.N)
	if r.Logprobs != nil {
		f.n_logprobs = C.uint16_t(*r.Logprobs)
	}
	if r.PromptLogprobs != nil {
		f.n_prompt_logprobs = C.uint16_t(*r.PromptLogprobs)
	}
	if r.Seed != nil {
		f.seed = C.uint64_t(*r.Seed)
		f.flags |= C.YN_REQ_SEEDED
	}
	if r.MaxTokens != nil {
		f.max_tokens = C.uint32_t(*r.MaxTokens)
		f.set |= C.YN_SET_MAX_TOKENS
	}
	if r.TopK != nil {
		f.top_k = C.int32_t(*r.TopK)
		f.set |= C.YN_SET_TOP_K
	}
	setFloat(&f, C.YN_SET_TEMPERATURE, &f.temperature, r.Temperature)
	setFloat(&f, C.YN_SET_TOP_P, &f.top_p, r.TopP)
	setFloat(&f, C.YN_SET_MIN_P, &f.min_p, r.MinP)
	setFloat(&f, C.YN_SET_REPETITION, &f.repetition_penalty, r.RepetitionPenalty)
	setFloat(&f, C.YN_SET_PRESENCE, &f.presence_penalty, r.PresencePenalty)
	setFloat(&f, C.YN_SET_FREQUENCY, &f.frequency_penalty, r.FrequencyPenalty)
	return f
}

// ranges refuses what would not survive the narrowing to 32 or 16 bits.
func (r *Request) ranges() error {
	within := func(name string, n, min, max int) error {
		if n >= min && n <= max {
			return nil
		}
		return &Error{Status: ErrInvalid, Message: fmt.Sprintf("%s is %d; expected %d to %d", name, n, min, max)}
	}
	check := func(name string, n, min int) error { return within(name, n, min, math.MaxInt32) }
	err := check("MinTokens", r.MinTokens, 0)
	if err == nil {
		err = check("Priority", r.Priority, math.MinInt32)
	}
	if err == nil && r.MaxTokens != nil {
		err = check("MaxTokens", *r.MaxTokens, 0)
	}
	if err == nil && r.TopK != nil {
		err = check("TopK", *r.TopK, math.MinInt32)
	}
	if err == nil {
		err = within("N", r.N, 0, 128)
	}
	if err == nil && r.Logprobs != nil {
		err = within("Logprobs", *r.Logprobs, 0, 20)
	}
	if err == nil && r.PromptLogprobs != nil {
		err = within("PromptLogprobs", *r.PromptLogprobs, 0, 20)
	}
	return err
}

func (e *Engine) submit(r *Request, key uint64, timeoutMS uint32) (C.yn_request_id, error) {
	if err := r.ranges(); err != nil {
		return 0, err
	}
	f := r.fields(e.handle, key, timeoutMS)
	bytes := make([]byte, 0, len(r.Prompt)+len(r.Chat)+len(r.CacheSalt)+len(r.ExtraJSON)+1)
	bytes = append(append(bytes, r.Prompt...), r.Chat...)
	bytes = append(append(bytes, r.CacheSalt...), r.ExtraJSON...)
	words := make([]uint32, 0, len(r.Tokens)+len(r.StopTokens)+len(r.StopTexts)+1)
	words = append(append(words, r.Tokens...), r.StopTokens...)
	for _, s := range r.StopTexts {
		bytes = append(bytes, s...)
		words = append(words, uint32(len(s)))
	}
	if uint64(len(bytes)) > math.MaxUint32 || uint64(len(words)) > math.MaxUint32 {
		return 0, &Error{Status: ErrInvalid, Message: "the request is longer than 4 GiB"}
	}
	f.prompt_len, f.chat_len = C.uint32_t(len(r.Prompt)), C.uint32_t(len(r.Chat))
	f.salt_len, f.extra_len = C.uint32_t(len(r.CacheSalt)), C.uint32_t(len(r.ExtraJSON))
	f.n_prompt_tokens, f.n_stop_tokens = C.uint32_t(len(r.Tokens)), C.uint32_t(len(r.StopTokens))
	f.n_stop_texts = C.uint32_t(len(r.StopTexts))
	// One spare element each, so that there is an address to pass.
	bytes, words = append(bytes, 0), append(words, 0)
	var id C.yn_request_id
	var cErr C.yn_error
	status := C.yn_flat_submit(f, (*C.uint8_t)(unsafe.Pointer(&bytes[0])), (*C.uint32_t)(unsafe.Pointer(&words[0])), &id, &cErr)
	return id, check(status, &cErr)
}
