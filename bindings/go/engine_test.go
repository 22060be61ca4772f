package yinian

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

var background = context.Background()

func open(t *testing.T, model string, more ...any) *Engine {
	t.Helper()
	cfg := Config{"model": model, "log_level": "off"}
	for i := 0; i < len(more); i += 2 {
		cfg[more[i].(string)] = more[i+1]
	}
	e, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

func demo(t *testing.T) string {
	t.Helper()
	model := os.Getenv("YINIAN_TEST_MODEL")
	if model == "" {
		t.Skip("YINIAN_TEST_MODEL names no model directory")
	}
	return model
}

func generate(t *testing.T, e *Engine, ctx context.Context, r Request) *Stream {
	t.Helper()
	s, err := e.Generate(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func endless() Request { return Request{Prompt: "hello", MaxTokens: Ptr(30000), IgnoreEOS: true} }

func short(i int) Request {
	return Request{Prompt: fmt.Sprint("prompt ", i), MaxTokens: Ptr(40 + i), IgnoreEOS: true}
}

func result(t *testing.T, s *Stream) Result {
	t.Helper()
	r, err := s.Result(background)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func waitIdle(t *testing.T, e *Engine) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s, err := e.Stats()
		if err != nil || time.Now().After(end) {
			t.Fatal("not idle", s, err)
		}
		if s.Waiting+s.Running == 0 && s.BlocksFree == s.BlocksTotal {
			return
		}
	}
}

func TestAStreamSaysWhatTheWholeAnswerSays(t *testing.T) {
	for _, c := range []struct{ name, model, expected string }{
		{"mock", "mock:words", os.Getenv("YINIAN_TEST_MOCK_TEXT")},
		{"demo", os.Getenv("YINIAN_TEST_MODEL"), os.Getenv("YINIAN_TEST_MODEL_TEXT")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name == "demo" {
				demo(t)
			}
			e := open(t, c.model)
			r := Request{Prompt: "Once upon a time", MaxTokens: Ptr(48), Temperature: Ptr(float32(0)), IgnoreEOS: true, WantTokens: true}
			s := generate(t, e, background, r)
			var text strings.Builder
			tokens := 0
			for {
				chunk, err := s.Next(background)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				text.WriteString(chunk.Text)
				tokens += len(chunk.Tokens)
			}
			got := result(t, s)
			if tokens != 48 || got.CompletionTokens != 48 || got.Finish != FinishLength || got.TimeToFirst <= 0 || got.Total < got.TimeToFirst {
				t.Error(tokens, got)
			}
			r.FinalOnly, r.WantTokens = true, false
			whole, err := generate(t, e, background, r).All(background)
			if err != nil || whole == "" || whole != text.String() {
				t.Errorf("%q and %q, %v", text.String(), whole, err)
			}
			if c.expected != "" && whole != c.expected {
				t.Errorf("%q, and the C API says %q", whole, c.expected)
			}
			if _, err := s.Next(background); err != io.EOF {
				t.Error("after the end:", err)
			}
		})
	}
}

func TestErrorsHaveATypeAndAMessage(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want Status
		says string
	}{
		{Config{"model": "mock:words", "max_num_seq": 4}, ErrInvalid, "max_num_seqs"},
		{Config{"model": "mock:words", "modél🦊": 1}, ErrInvalid, "modél🦊"},
		{Config{"model": "/no/such/model"}, ErrNotFound, "/no/such/model"},
		{Config{"model": func() {}}, ErrInvalid, "config"},
	} {
		_, err := Open(c.cfg)
		var typed *Error
		if !errors.Is(err, c.want) || !errors.As(err, &typed) || !strings.Contains(typed.Message, c.says) {
			t.Error(c.want, err)
		}
	}
	if ErrBusy.Error() != "YN_E_BUSY" {
		t.Error(ErrBusy)
	}
	e := open(t, "mock:words,delay_us=1000", "max_num_seqs", 1, "max_waiting", 1)
	for _, r := range []Request{{}, {Prompt: "x", Chat: "{}"}, {Chat: "{"}, {Prompt: "x", MaxTokens: Ptr(0)}, {Prompt: "x", MaxTokens: Ptr(-1)}, {Prompt: "\xff"}} {
		if _, err := e.Generate(background, r); !errors.Is(err, ErrInvalid) {
			t.Error(r, err)
		}
	}
	s := generate(t, e, background, Request{Tokens: []uint32{1, 99999}})
	if _, err := s.Next(background); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "99999") {
		t.Error(err)
	}
	var busy *Error
	for busy == nil {
		if _, err := e.Generate(background, endless()); err != nil && !errors.As(err, &busy) {
			t.Fatal(err)
		}
	}
	if busy.Status != ErrBusy || !busy.Retry || busy.Unusable {
		t.Error(busy)
	}
}

func TestCancelEndsAStream(t *testing.T) {
	e := open(t, "mock:words,delay_us=1000")
	ctx, cancel := context.WithCancel(background)
	byContext, byCall := generate(t, e, ctx, endless()), generate(t, e, background, endless())
	for _, s := range []*Stream{byContext, byCall} {
		if _, err := s.Next(background); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	byCall.Cancel()
	for _, s := range []*Stream{byContext, byCall} {
		text, err := s.All(background)
		if !errors.Is(err, FinishCancelled) || !errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if r := result(t, s); r.Finish != FinishCancelled || r.CompletionTokens == 0 || len(text) > 10000 {
			t.Error(r, len(text))
		}
	}
	if _, err := e.Generate(ctx, endless()); err != context.Canceled {
		t.Error(err)
	}
	waiting, stop := context.WithTimeout(background, 5*time.Millisecond)
	defer stop()
	s := generate(t, e, background, Request{Prompt: "x", MaxTokens: Ptr(5000), IgnoreEOS: true, FinalOnly: true})
	if _, err := s.Next(waiting); err != context.DeadlineExceeded {
		t.Error("Next outlived its context:", err)
	}
	s.Cancel()
	waitIdle(t, e)
}

func TestTheDeadlineOfTheContextIsTheRequests(t *testing.T) {
	e := open(t, "mock:words,delay_us=1000")
	ctx, cancel := context.WithTimeout(background, 40*time.Millisecond)
	defer cancel()
	long := endless()
	long.Timeout = time.Hour
	quick := endless()
	quick.Timeout = 40 * time.Millisecond
	for _, s := range []*Stream{generate(t, e, ctx, long), generate(t, e, background, quick)} {
		_, err := s.All(background)
		if !errors.Is(err, FinishDeadline) || !errors.Is(err, context.DeadlineExceeded) || result(t, s).Finish != FinishDeadline {
			t.Error(err)
		}
	}
	far, stop := context.WithTimeout(background, 100*24*time.Hour)
	defer stop()
	if ms, timed := timeoutMS(far, 0); ms != 0 || timed {
		t.Error(ms, "for a deadline beyond 32 bits")
	}
	if ms, timed := timeoutMS(far, time.Microsecond); ms != 1 || timed {
		t.Error(ms, timed)
	}
	waitIdle(t, e)
}

func TestFiftyStreamsAtOnceSayWhatOneSays(t *testing.T) {
	e := open(t, "mock:words")
	var wg sync.WaitGroup
	for i := 0; i < 50; i++ {
		alone, err := generate(t, e, background, short(i)).All(background)
		if err != nil || len(alone) != 40+i {
			t.Fatal(alone, err)
		}
		wg.Add(1)
		go func(i int) {
			defer wg.Done()
			s, err := e.Generate(background, short(i))
			if err != nil {
				t.Error(err)
				return
			}
			if text, err := s.All(background); err != nil || text != alone {
				t.Error(i, text, alone, err)
			}
		}(i)
	}
	wg.Wait()
	waitIdle(t, e)
}

func TestCloseUnderTrafficEndsEveryStream(t *testing.T) {
	e := open(t, "mock:words,delay_us=1000", "max_num_seqs", 8)
	first := make(chan struct{}, 40)
	var wg sync.WaitGroup
	for i := 0; i < 20; i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				s, err := e.Generate(background, endless())
				if err == nil {
					select {
					case first <- struct{}{}:
					default:
					}
					_, err = s.All(background)
				}
				if errors.Is(err, ErrShutdown) || errors.Is(err, ErrBadHandle) {
					return
				}
				if !errors.Is(err, FinishCancelled) {
					t.Error(err)
					return
				}
			}
		}()
	}
	for i := 0; i < 20; i++ {
		<-first
	}
	var closers sync.WaitGroup
	for i := 0; i < 3; i++ {
		closers.Add(1)
		go func() { defer closers.Done(); e.Close() }()
	}
	closers.Wait()
	wg.Wait()
	if len(e.streams) != 0 {
		t.Error(len(e.streams), "streams are left")
	}
	if _, err := e.Generate(background, endless()); !errors.Is(err, ErrBadHandle) {
		t.Error(err)
	}
}

func TestAThousandStreamsWithCancelsAmongThem(t *testing.T) {
	e := open(t, "mock:words", "max_num_seqs", 64)
	var wg sync.WaitGroup
	for i := 0; i < 1000; i++ {
		r := short(i % 50)
		whole := *r.MaxTokens
		ctx, cancel := context.WithCancel(background)
		wg.Add(1)
		go func(i int) {
			defer wg.Done()
			defer cancel()
			s, err := e.Generate(ctx, r)
			if err != nil {
				t.Error(err)
				return
			}
			switch i % 4 {
			case 0:
				cancel()
			case 1:
				if _, err := s.Next(background); err == nil {
					s.Cancel()
				}
			}
			text, err := s.All(background)
			if end := result(t, s); i%4 < 2 {
				if err != nil && !errors.Is(err, FinishCancelled) || (err == nil) != (end.Finish == FinishLength) {
					t.Error(i, end, err)
				}
			} else if err != nil || len(text) != whole {
				t.Error(i, len(text), whole, err)
			}
		}(i)
	}
	wg.Wait()
	waitIdle(t, e)
}

func TestAFailedEngineSaysSo(t *testing.T) {
	e := open(t, "mock:words,hang_step=20", "watchdog_ms", 50)
	s := generate(t, e, background, endless())
	var failed *Error
	if _, err := s.All(background); !errors.As(err, &failed) || failed.Status != ErrDevice || failed.Message == "" {
		t.Error(err)
	}
	if r := result(t, s); r.Finish != FinishError {
		t.Error(r)
	}
	if _, err := e.Generate(background, endless()); !errors.As(err, &failed) || failed.Status != ErrDevice || !failed.Unusable {
		t.Error(err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func TestNothingIsLeftOpen(t *testing.T) {
	count := func() (files, goroutines int) { return openFiles(t), runtime.NumGoroutine() }
	once := func() {
		e := open(t, "mock:words")
		ctx, cancel := context.WithCancel(background)
		defer cancel()
		for i := 0; i < 20; i++ {
			generate(t, e, ctx, short(i))
		}
		if _, err := generate(t, e, ctx, short(1)).All(ctx); err != nil {
			t.Error(err)
		}
		e.Close()
	}
	once()
	files, goroutines := count()
	for i := 0; i < 5; i++ {
		once()
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		f, g := count()
		if f <= files && g <= goroutines {
			return
		}
		if time.Now().After(end) {
			t.Fatal(f, "files and", g, "goroutines, before", files, goroutines)
		}
	}
}

func TestAnUnreadStreamIsOverrun(t *testing.T) {
	e := open(t, "mock:words", "max_unread_bytes", 4096)
	s := generate(t, e, background, endless())
	if r := result(t, s); r.Finish != FinishOverrun {
		t.Error(r)
	}
	text, err := s.All(background)
	if !errors.Is(err, FinishOverrun) || len(text) == 0 || len(text) > 4096 {
		t.Error(len(text), err)
	}
	whole := Request{Prompt: "x", MaxTokens: Ptr(8000), IgnoreEOS: true, FinalOnly: true}
	if text, err := generate(t, e, background, whole).All(background); err != nil || len(text) < 7500 {
		t.Error(len(text), err)
	}
}

func TestAnyTextCrossesWhole(t *testing.T) {
	e := open(t, "mock:words")
	mock, err := e.Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	defer mock.Close()
	text := "🦊\x00é 一"
	ids, err := mock.Encode(text, true)
	if err != nil || len(ids) != len(text) || ids[4] != 0 || ids[0] != 0xf0 {
		t.Error(ids, err)
	}
	s, same := generate(t, e, background, Request{Prompt: text, MaxTokens: Ptr(5)}), generate(t, e, background, Request{Tokens: ids, MaxTokens: Ptr(5)})
	a, errA := s.All(background)
	b, errB := same.All(background)
	if a != b || errA != nil || errB != nil || result(t, s).PromptTokens != len(text) {
		t.Error(a, b, errA, errB)
	}
	stops := endless()
	stops.StopTexts, stops.StopTokens = []string{text, "e"}, []uint32{'z'}
	stopped := generate(t, e, background, stops)
	if text, err := stopped.All(background); err != nil || strings.ContainsAny(text, "ez") || result(t, stopped).Finish != FinishStop {
		t.Error(text, err)
	}
	tokenizers := []*Tokenizer{mock}
	if model := os.Getenv("YINIAN_TEST_MODEL"); model != "" {
		demo, err := OpenTokenizer(model)
		if err != nil {
			t.Fatal(err)
		}
		defer demo.Close()
		tokenizers = append(tokenizers, demo)
	}
	for _, tokenizer := range tokenizers {
		ids, err := tokenizer.Encode(text, false)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := tokenizer.Decode(ids); err != nil || back != text {
			t.Errorf("%q %v", back, err)
		}
	}
	if empty, err := mock.Decode(nil); err != nil || empty != "" {
		t.Error(empty, err)
	}
	if _, err := OpenTokenizer("/no/such/model"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}
