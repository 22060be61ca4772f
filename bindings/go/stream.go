package yinian

// #include "flat_request.h"
import "C"

import (
	"context"
	"io"
	"iter"
	"math"
	"strings"
	"sync"
	"time"
)

// Chunk is new output of one choice: whole code points, and what was asked for of the tokens behind it.
type Chunk struct {
	Choice   int
	Text     string
	Tokens   []uint32
	Logprobs []Logprob // one for each token
	// Finish is FinishEOS, FinishStop or FinishLength in the choice's last chunk, and FinishNone before it. A choice that ended
	// early has none: Next's error tells.
	Finish Finish
}

// Logprob is how probable a token was by the model alone, before temperature, penalties and every other processor.
type Logprob struct {
	TokenProb
	Top     []TokenProb // the most probable tokens, best first
	TextEnd int         // where the token's text ends in Chunk.Text; 0 of a prompt's
}

// TokenProb is a token with the natural logarithm of its probability. Rank 1 is the most probable.
type TokenProb struct {
	Token   uint32
	Rank    int
	Logprob float32
}

// Result is what is known of a request that has ended.
type Result struct {
	Finish                                       Finish
	PromptTokens, CachedTokens, CompletionTokens int
	// TimeToFirst is zero when no token was made.
	TimeToFirst, Total time.Duration
	// PromptLogprobs are of the prompt's tokens from its second on, where the request asked for them.
	PromptLogprobs []Logprob
}

// Stream is one request's output. What is not read is kept, up to the config's max_unread_bytes; above it the request ends
// with FinishOverrun.
type Stream struct {
	engine *Engine
	id     C.yn_request_id
	limit  int           // bytes that may be unread
	ready  chan struct{} // holds at most one: there is something to read, or the end
	ended  chan struct{} // closed: result and err are set

	mu      sync.Mutex
	unread  []unread // by choice
	next    int      // the choice to look at first
	overrun bool
	result  Result
	err     error
	prompts []Logprob
	forget  func() bool // lets go of the context
}

// unread is what a choice has made since it was last read.
type unread struct {
	text     []byte
	tokens   []uint32
	logprobs []Logprob
	size     int // bytes of the three
	finish   Finish
}

// Generate hands in a request; it never waits for the device. Cancelling ctx cancels the request, and ctx's deadline is the
// request's deadline.
func (e *Engine) Generate(ctx context.Context, r Request) (*Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	timeout, timed := timeoutMS(ctx, r.Timeout)
	if err := r.ranges(); err != nil {
		return nil, err
	}
	s := &Stream{engine: e, limit: e.maxUnread, ready: make(chan struct{}, 1), ended: make(chan struct{})}
	if r.FinalOnly {
		s.limit = math.MaxInt
	}
	if r.N > 1 {
		s.unread = make([]unread, r.N)
	} else {
		s.unread = make([]unread, 1)
	}
	key := e.lastKey.Add(1)
	e.mu.Lock()
	e.streams[key] = s
	e.mu.Unlock()
	id, err := e.submit(&r, key, timeout)
	if err != nil {
		e.mu.Lock()
		delete(e.streams, key)
		e.mu.Unlock()
		return nil, err
	}
	s.id = id
	if ctx.Done() != nil {
		s.watch(ctx, timed)
	}
	return s, nil
}

// timeoutMS is the shorter of the context's and the request's time, rounded up, and whether the context's counts.
func timeoutMS(ctx context.Context, timeout time.Duration) (ms uint32, timed bool) {
	if at, ok := ctx.Deadline(); ok {
		left := time.Until(at)
		if left <= 0 {
			left = 1
		}
		if timeout <= 0 || left < timeout {
			timeout, timed = left, true
		}
	}
	if timeout <= 0 {
		return 0, false
	}
	whole := (timeout-1)/time.Millisecond + 1
	if whole > math.MaxUint32 {
		return 0, false
	}
	return uint32(whole), timed
}

// watch cancels the request with its context. A deadline that travelled is the engine's to keep.
func (s *Stream) watch(ctx context.Context, timed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ended:
	default:
		s.forget = context.AfterFunc(ctx, func() {
			if !timed || ctx.Err() != context.DeadlineExceeded {
				s.Cancel()
			}
		})
	}
}

// Cancel asks the request to end; what was made until then and the end can still be read. Idempotent.
func (s *Stream) Cancel() { C.yn_engine_cancel(s.engine.handle, s.id) }

// Next waits for output, of several choices in turn. It ends in io.EOF when the answer is whole, and otherwise in a Finish (FinishCancelled,
// FinishDeadline, FinishOverrun) or an *Error. This ctx limits the wait alone; it does not cancel the request.
func (s *Stream) Next(ctx context.Context) (Chunk, error) {
	for {
		chunk, some, ended, err := s.take()
		if ended {
			s.wake() // the next one who waits
		}
		if some {
			return chunk, nil
		}
		if ended {
			return Chunk{}, err
		}
		if ctx.Done() == nil {
			<-s.ready // costs less than a select
			continue
		}
		select {
		case <-s.ready:
		case <-ctx.Done():
			return Chunk{}, ctx.Err()
		}
	}
}

func (s *Stream) wake() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// Chunks yields output until the answer is whole, or at last the error that Next would return. Leaving the loop before that
// cancels the request.
//
//	for chunk, err := range stream.Chunks() {
//		if err != nil {
//			return err
//		}
//		fmt.Print(chunk.Text)
//	}
func (s *Stream) Chunks() iter.Seq2[Chunk, error] {
	return func(yield func(Chunk, error) bool) {
		defer s.Cancel()
		for {
			chunk, err := s.Next(context.Background())
			if err == io.EOF || !yield(chunk, err) || err != nil {
				return
			}
		}
	}
}

// All reads to the end: the text of the first choice, and an error unless the answer is whole.
func (s *Stream) All(ctx context.Context) (string, error) {
	var text strings.Builder
	for {
		chunk, err := s.Next(ctx)
		if chunk.Choice == 0 {
			text.WriteString(chunk.Text)
		}
		if err == io.EOF {
			return text.String(), nil
		}
		if err != nil {
			return text.String(), err
		}
	}
}

// Result waits until the request has ended.
func (s *Stream) Result(ctx context.Context) (Result, error) {
	select {
	case <-s.ended:
		return s.result, nil
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
}

// take is what there is to read of one choice, and whether no more will come.
func (s *Stream) take() (chunk Chunk, some, ended bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ended:
		ended = true
	default:
	}
	for range s.unread {
		choice := s.next
		s.next = (s.next + 1) % len(s.unread)
		if u := &s.unread[choice]; u.size != 0 || u.finish != FinishNone {
			chunk = Chunk{Choice: choice, Text: string(u.text), Tokens: u.tokens, Logprobs: u.logprobs, Finish: u.finish}
			*u = unread{text: u.text[:0]}
			return chunk, true, ended, nil
		}
	}
	return chunk, false, ended, s.err
}

// push appends output. True: there is too much now, and the request is to be cancelled.
func (s *Stream) push(event *C.yn_event, text []byte) (over bool) {
	tokens := payload[uint32](event, event.tokens_off, event.n_tokens)
	probs := payload[C.yn_logprob](event, event.logprobs_off, event.n_logprobs)
	size := len(text) + 4*len(tokens) + C.sizeof_yn_logprob*len(probs)
	s.mu.Lock()
	u := &s.unread[event.choice]
	if !s.overrun && u.size+size > s.limit {
		s.overrun, over = true, true
	}
	if !s.overrun {
		u.size += size
		u.logprobs = appendLogprobs(u.logprobs, probs, len(tokens), len(u.text))
		u.text = append(u.text, text...)
		u.tokens = append(u.tokens, tokens...)
		if f := Finish(event.finish); f.whole() {
			u.finish = f
		}
	}
	s.mu.Unlock()
	s.wake()
	return over
}

// appendLogprobs takes each token's own, and the most probable ones that follow it. `before` is how much text was there.
func appendLogprobs(to []Logprob, probs []C.yn_logprob, tokens, before int) []Logprob {
	if len(probs) == 0 {
		return to
	}
	each := len(probs) / tokens
	for ; len(probs) >= each; probs = probs[each:] {
		p := Logprob{TokenProb: tokenProb(probs[0]), TextEnd: before + int(probs[0].text_end)}
		for _, top := range probs[1:each] {
			p.Top = append(p.Top, tokenProb(top))
		}
		to = append(to, p)
	}
	return to
}

// prompt takes logprobs of the prompt.
func (s *Stream) prompt(event *C.yn_event) {
	probs := payload[C.yn_logprob](event, event.logprobs_off, event.n_logprobs)
	s.mu.Lock()
	s.prompts = appendLogprobs(s.prompts, probs, int(event.n_tokens), 0)
	s.mu.Unlock()
}

func tokenProb(p C.yn_logprob) TokenProb {
	return TokenProb{Token: uint32(p.token), Rank: int(p.rank), Logprob: float32(p.logprob)}
}

func (s *Stream) end(event *C.yn_event, message string) {
	r := Result{
		Finish:           Finish(event.finish),
		PromptTokens:     int(event.prompt_tokens),
		CachedTokens:     int(event.cached_tokens),
		CompletionTokens: int(event.completion_tokens),
		Total:            time.Duration(event.t_event_ns - event.t_submit_ns),
	}
	if event.t_first_ns != 0 {
		r.TimeToFirst = time.Duration(event.t_first_ns - event.t_submit_ns)
	}
	err := io.EOF
	if event.status != C.YN_OK {
		err = &Error{Status: Status(event.status), Message: message}
	} else if !r.Finish.whole() {
		err = r.Finish
	}
	s.finish(r, err)
}

func (s *Stream) finish(r Result, err error) {
	s.mu.Lock()
	if s.overrun {
		r.Finish, err = FinishOverrun, FinishOverrun
	}
	// The library names the end of a choice only where there are several.
	if len(s.unread) == 1 && r.Finish.whole() {
		s.unread[0].finish = r.Finish
	}
	r.PromptLogprobs = s.prompts
	s.result, s.err = r, err
	close(s.ended)
	forget := s.forget
	s.mu.Unlock()
	s.wake()
	if forget != nil {
		forget()
	}
}
