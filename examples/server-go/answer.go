package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"yinian.ai/yinian"
)

// writePatience is how long a client may leave a streamed event unread before its connection is given up.
const writePatience = 30 * time.Second

// tokenTexts are the texts of tokens, for logprobs.
type tokenTexts struct {
	tokenizer *yinian.Tokenizer
	known     sync.Map
}

func (t *tokenTexts) of(token uint32) string {
	if text, ok := t.known.Load(token); ok {
		return text.(string)
	}
	text, err := t.tokenizer.Show([]uint32{token})
	if err != nil {
		return ""
	}
	t.known.Store(token, text)
	return text
}

type answer struct {
	*job
	model  *model
	w      http.ResponseWriter
	out    *http.ResponseController
	output *yinian.Stream
	id     string
	object string
	began  int64
	// Characters of each choice's text so far, for text_offset.
	offsets []int
}

func newAnswer(m *model, w http.ResponseWriter, j *job, stream *yinian.Stream) *answer {
	a := &answer{job: j, model: m, w: w, out: http.NewResponseController(w), output: stream, began: time.Now().Unix()}
	a.offsets = make([]int, j.N)
	switch {
	case !j.chat:
		a.id, a.object = newID("cmpl-"), "text_completion"
	case j.stream:
		a.id, a.object = newID("chatcmpl-"), "chat.completion.chunk"
	default:
		a.id, a.object = newID("chatcmpl-"), "chat.completion"
	}
	return a
}

func (a *answer) write(ctx context.Context) error {
	defer a.output.Cancel()
	if a.job.stream {
		return a.writeEvents(ctx)
	}
	whole := make([]yinian.Chunk, a.N)
	for {
		chunk, err := a.output.Next(ctx)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		c := &whole[chunk.Choice]
		c.Choice, c.Finish = chunk.Choice, chunk.Finish
		for _, p := range chunk.Logprobs {
			p.TextEnd += len(c.Text)
			c.Logprobs = append(c.Logprobs, p)
		}
		c.Text += chunk.Text
	}
	usage, err := a.usage(ctx)
	if err != nil {
		return err
	}
	choices := make([]any, a.N)
	for i, chunk := range whole {
		choices[i] = a.choice(chunk, "message", map[string]any{"role": "assistant", "content": chunk.Text})
	}
	body := a.body(choices)
	body["usage"] = usage
	writeJSON(a.w, http.StatusOK, body)
	return nil
}

// writeEvents answers as HTTP knows errors until there is output; from then on an error is an event.
func (a *answer) writeEvents(ctx context.Context) error {
	defer func() { _ = a.out.SetWriteDeadline(time.Time{}) }()
	begun := make([]bool, a.N)
	for started := false; ; started = true {
		chunk, err := a.output.Next(ctx)
		if err != nil && err != io.EOF {
			if !started {
				return err
			}
			a.event(map[string]any{"error": asAPI(err)})
			return nil
		}
		if !started {
			a.w.Header().Set("content-type", "text/event-stream")
			a.w.Header().Set("cache-control", "no-cache")
		}
		if err == io.EOF {
			break
		}
		delta := map[string]any{"content": chunk.Text}
		if !begun[chunk.Choice] {
			begun[chunk.Choice] = true
			delta["role"] = "assistant"
		}
		if !a.event(a.body([]any{a.choice(chunk, "delta", delta)})) {
			return nil
		}
	}
	if a.includeUsage {
		usage, err := a.usage(ctx)
		if err != nil {
			return nil
		}
		body := a.body([]any{})
		body["usage"] = usage
		a.event(body)
	}
	_, _ = io.WriteString(a.w, "data: [DONE]\n\n")
	return nil
}

// event reports whether the client is still there.
func (a *answer) event(value any) bool {
	text, err := json.Marshal(value)
	if err != nil {
		return false
	}
	_ = a.out.SetWriteDeadline(time.Now().Add(writePatience))
	_, err = a.w.Write(append(append([]byte("data: "), text...), "\n\n"...))
	return err == nil && a.out.Flush() == nil
}

func (a *answer) body(choices []any) map[string]any {
	body := map[string]any{"id": a.id, "object": a.object, "created": a.began, "model": a.model.name, "choices": choices}
	if a.includeUsage {
		body["usage"] = nil
	}
	return body
}

// choice is one of an answer's or an event's; the text of a chat's is under `key`.
func (a *answer) choice(c yinian.Chunk, key string, text map[string]any) map[string]any {
	out := map[string]any{"index": c.Choice, "finish_reason": nil, "logprobs": nil}
	switch c.Finish {
	case yinian.FinishEOS, yinian.FinishStop:
		out["finish_reason"] = "stop"
	case yinian.FinishLength:
		out["finish_reason"] = "length"
	}
	if a.chat {
		out[key] = text
	} else {
		out["text"] = c.Text
	}
	if a.Logprobs != nil {
		if a.chat {
			out["logprobs"] = a.chatLogprobs(c)
		} else {
			out["logprobs"] = a.textLogprobs(c)
		}
	}
	return out
}

func (a *answer) chatLogprobs(c yinian.Chunk) any {
	type token struct {
		Token       string   `json:"token"`
		Logprob     float32  `json:"logprob"`
		Bytes       []int    `json:"bytes"`
		TopLogprobs *[]token `json:"top_logprobs,omitempty"`
	}
	show := func(p yinian.TokenProb) token {
		t := token{Token: a.model.tokens.of(p.Token), Logprob: p.Logprob}
		// A part of a character has no text, and so its bytes are not known either.
		if !strings.ContainsRune(t.Token, utf8.RuneError) {
			t.Bytes = []int{}
			for _, b := range []byte(t.Token) {
				t.Bytes = append(t.Bytes, int(b))
			}
		}
		return t
	}
	content := []token{}
	for _, p := range c.Logprobs {
		top := []token{}
		for _, other := range p.Top {
			top = append(top, show(other))
		}
		t := show(p.TokenProb)
		t.TopLogprobs = &top
		content = append(content, t)
	}
	return map[string]any{"content": content, "refusal": nil}
}

func (a *answer) textLogprobs(c yinian.Chunk) any {
	tokens, probs, offsets, tops := []string{}, []float32{}, []int{}, []map[string]float32{}
	begin := 0
	for _, p := range c.Logprobs {
		text := a.model.tokens.of(p.Token)
		tokens, probs, offsets = append(tokens, text), append(probs, p.Logprob), append(offsets, a.offsets[c.Choice]+begin)
		begin = utf8.RuneCountInString(c.Text[:p.TextEnd])
		top := map[string]float32{}
		for _, other := range p.Top {
			top[a.model.tokens.of(other.Token)] = other.Logprob
		}
		tops = append(tops, top)
	}
	a.offsets[c.Choice] += utf8.RuneCountInString(c.Text)
	return map[string]any{"tokens": tokens, "token_logprobs": probs, "top_logprobs": tops, "text_offset": offsets}
}

func (a *answer) usage(ctx context.Context) (any, error) {
	r, err := a.output.Result(ctx)
	return map[string]any{
		"prompt_tokens": r.PromptTokens, "completion_tokens": r.CompletionTokens,
		"total_tokens":          r.PromptTokens + r.CompletionTokens,
		"prompt_tokens_details": map[string]int{"cached_tokens": r.CachedTokens},
	}, err
}
