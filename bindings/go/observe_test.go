package yinian

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"
)

// choices reads to the end.
func choices(t *testing.T, s *Stream, n int) []Chunk {
	t.Helper()
	whole := make([]Chunk, n)
	for {
		chunk, err := s.Next(background)
		if err == io.EOF {
			return whole
		}
		if err != nil {
			t.Fatal(err)
		}
		w := &whole[chunk.Choice]
		if w.Finish != FinishNone {
			t.Error("choice", chunk.Choice, "goes on after its end")
		}
		for _, p := range chunk.Logprobs {
			if p.TextEnd > len(chunk.Text) {
				t.Error(p, chunk.Text)
			}
			p.TextEnd += len(w.Text)
			w.Logprobs = append(w.Logprobs, p)
		}
		w.Text += chunk.Text
		w.Tokens = append(w.Tokens, chunk.Tokens...)
		w.Finish = chunk.Finish
	}
}

func TestEveryChoiceHasItsOwnOutputAndEnd(t *testing.T) {
	for _, model := range []string{"mock:words", demo(t)} {
		e := open(t, model)
		r := Request{Prompt: "Once upon a time", N: 3, MaxTokens: Ptr(20), Seed: Ptr(uint64(7)), Temperature: Ptr(float32(1)), IgnoreEOS: true, WantTokens: true}
		s := generate(t, e, background, r)
		whole := choices(t, s, 3)
		for i, c := range whole {
			if c.Text == "" || len(c.Tokens) != 20 || c.Finish != FinishLength {
				t.Error(model, i, c)
			}
		}
		if whole[0].Text == whole[1].Text || whole[1].Text == whole[2].Text {
			t.Error("equal choices", whole)
		}
		if got := result(t, s); got.CompletionTokens != 60 {
			t.Error(got)
		}
	}
	e := open(t, "mock:words")
	for _, final := range []bool{false, true} {
		r := short(1)
		r.FinalOnly = final
		if c := choices(t, generate(t, e, background, r), 1)[0]; len(c.Text) != 41 || c.Finish != FinishLength {
			t.Error(c)
		}
	}
	if _, err := e.Generate(background, Request{Prompt: "x", N: 200}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "N is 200") {
		t.Error(err)
	}
}

func TestLogprobsComeWithTheirTokens(t *testing.T) {
	e := open(t, demo(t))
	r := Request{Prompt: "Once upon a time", MaxTokens: Ptr(24), Temperature: Ptr(float32(0)), WantTokens: true, Logprobs: Ptr(3)}
	tokenizer, err := e.Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	defer tokenizer.Close()
	for _, n := range []int{1, 2} {
		r.N = n
		for _, c := range choices(t, generate(t, e, background, r), n) {
			if len(c.Tokens) == 0 || len(c.Logprobs) != len(c.Tokens) {
				t.Fatal(len(c.Tokens), len(c.Logprobs))
			}
			for i, p := range c.Logprobs {
				if text, err := tokenizer.Decode(c.Tokens[:i+1]); err != nil || p.TextEnd > len(text) || c.Text[:p.TextEnd] != text[:p.TextEnd] {
					t.Error(i, p.TextEnd, text, err)
				}
				greedy := p.Token == c.Tokens[i] && p.Rank == 1 && len(p.Top) == 3 && p.Top[0] == p.TokenProb
				if !greedy || p.Logprob > 0 || p.Top[2].Logprob > p.Top[1].Logprob || math.IsNaN(float64(p.Logprob)) {
					t.Error(i, p)
				}
			}
		}
	}
	r.Logprobs = Ptr(0)
	r.WantTokens = false
	for _, p := range choices(t, generate(t, e, background, r), 2)[0].Logprobs {
		if p.Rank != 1 || p.Top != nil {
			t.Error(p)
		}
	}
	r.Logprobs = Ptr(21)
	if _, err := e.Generate(background, r); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "Logprobs is 21") {
		t.Error(err)
	}
}

func TestAChatIsAPrompt(t *testing.T) {
	e := open(t, demo(t))
	chat, err := json.Marshal(map[string]any{"messages": []map[string]string{{"role": "user", "content": strings.Repeat("Tell me a story about a \"fox\". ", 20)}}})
	if err != nil {
		t.Fatal(err)
	}
	r := Request{Chat: string(chat), MaxTokens: Ptr(8), Temperature: Ptr(float32(0))}
	first := generate(t, e, background, r)
	a, errA := first.All(background)
	second := generate(t, e, background, r)
	b, errB := second.All(background)
	if a == "" || a != b || errA != nil || errB != nil {
		t.Error(a, b, errA, errB)
	}
	if x, y := result(t, first), result(t, second); x.CachedTokens != 0 || y.CachedTokens == 0 || y.CachedTokens >= y.PromptTokens {
		t.Error("cached tokens", x, y)
	}
	_, err = generate(t, e, background, Request{Chat: `{"messages": [{"role": "fox", "content": "x"}]}`}).All(background)
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "Unknown role: fox") {
		t.Error(err)
	}
	tokenizer, err := e.Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	defer tokenizer.Close()
	ids, err := tokenizer.Encode("<|end|>", false)
	if err != nil {
		t.Fatal(err)
	}
	shown, errA := tokenizer.Show(ids)
	hidden, errB := tokenizer.Decode(ids)
	if shown != "<|end|>" || hidden != "" || errA != nil || errB != nil {
		t.Error(shown, hidden, errA, errB)
	}
}

func TestAnEngineTellsAboutItself(t *testing.T) {
	e := open(t, "mock:words", "served_model_name", "fox")
	if _, err := generate(t, e, background, short(2)).All(background); err != nil {
		t.Fatal(err)
	}
	text, err := e.Metrics()
	if err != nil || !strings.Contains(text, `{model_name="fox"`) || !strings.Contains(text, "# TYPE ") {
		t.Error(text, err)
	}
	info, err := e.Info()
	var read struct{ Model struct{ Name string } }
	if err != nil || json.Unmarshal(info, &read) != nil || read.Model.Name != "fox" {
		t.Error(string(info), err)
	}
	if s, err := e.Stats(); err != nil || s.State != StateReady || s.Steps == 0 || s.CompletionTokens != 42 {
		t.Error(s, err)
	}
	e.Close()
	_, errA := e.Metrics()
	_, errB := e.Info()
	if !errors.Is(errA, ErrBadHandle) || !errors.Is(errB, ErrBadHandle) {
		t.Error(errA, errB)
	}
}

func TestDrainLetsWhatRunsEnd(t *testing.T) {
	e := open(t, "mock:words,delay_us=1000")
	s, long := generate(t, e, background, short(1)), generate(t, e, background, endless())
	soon, cancel := context.WithTimeout(background, 50*time.Millisecond)
	defer cancel()
	if err := e.Drain(soon); err != context.DeadlineExceeded {
		t.Error(err)
	}
	if _, err := e.Generate(background, short(1)); !errors.Is(err, ErrShutdown) {
		t.Error(err)
	}
	if stats, err := e.Stats(); err != nil || stats.State != StateDraining {
		t.Error(stats, err)
	}
	if text, err := s.All(background); err != nil || len(text) != 41 {
		t.Error(text, err)
	}
	long.Cancel()
	if err := e.Drain(background); err != nil {
		t.Error(err)
	}
	if r := result(t, long); r.Finish != FinishCancelled {
		t.Error(r)
	}
}
