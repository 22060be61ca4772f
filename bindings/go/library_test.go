package yinian

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestTheLibrarySaysWhatItIs(t *testing.T) {
	version, err := Version()
	if err != nil || !strings.HasPrefix(version, "0.1.") {
		t.Error(version, err)
	}
	raw, err := BuildInfo()
	var info struct {
		Version string
		Devices []string
	}
	if err != nil || json.Unmarshal(raw, &info) != nil || info.Version != version || len(info.Devices) == 0 || info.Devices[0] != "cpu" {
		t.Error(string(raw), err)
	}
	for _, s := range []Status{ErrInvalid, ErrBadHandle, ErrNotFound, ErrUnsupported} {
		if !strings.HasPrefix(s.Error(), "YN_E_") || s.Error() == "YN_E_UNKNOWN" {
			t.Error(s.Error())
		}
	}
}

func TestAPlanOfMemoryComesBeforeTheLoad(t *testing.T) {
	raw, err := PlanMemory(Config{"model": demo(t), "max_num_seqs": 4})
	var plan map[string]any
	if err != nil || json.Unmarshal(raw, &plan) != nil || len(plan) < 3 {
		t.Error(string(raw), err)
	}
	if _, err := PlanMemory(Config{"model": "/no/such/model"}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, err := PlanMemory(Config{"model": func() {}}); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

func TestWhatIsNotOpenedIsABadHandle(t *testing.T) {
	var e Engine
	_, errStats := e.Stats()
	_, errTokenizer := e.Tokenizer()
	_, errEncode := new(Tokenizer).Encode("x", true)
	for _, err := range []error{errStats, errTokenizer, errEncode} {
		if !errors.Is(err, ErrBadHandle) {
			t.Error(err)
		}
	}
	e.Close()
}

func TestLoadingTellsHowFarItIs(t *testing.T) {
	e := open(t, "mock:words,load_ms=300", "async_load", true)
	stream := generate(t, e, background, short(1))
	short, cancel := context.WithTimeout(background, 10*time.Millisecond)
	defer cancel()
	if err := e.Ready(short); err != context.DeadlineExceeded {
		t.Error(err)
	}
	if _, err := e.Tokenizer(); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	var seen []Progress
	for p, err := range e.Loading(background) {
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, p)
	}
	first, last := seen[0], seen[len(seen)-1]
	if len(seen) < 2 || first.State != StateLoading || last.State != StateReady || last.Share != 1 || last.Message == "" {
		t.Error(seen)
	}
	for i := 1; i < len(seen); i++ {
		if seen[i].Share < seen[i-1].Share || seen[i] == seen[i-1] {
			t.Error(seen)
		}
	}
	if text, err := stream.All(background); err != nil || len(text) != 41 {
		t.Error(text, err)
	}
	for p, err := range e.Loading(background) {
		if err != nil || p.State != StateReady {
			t.Error(p, err)
		}
	}
	if err := e.Drain(background); err != nil {
		t.Error(err)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if err := e.Ready(background); errors.Is(err, ErrShutdown) {
			break
		} else if err != nil || time.Now().After(end) {
			t.Fatal("a draining engine is ready:", err)
		}
	}
}

func TestALoadThatFailsOrIsGivenUpSaysSo(t *testing.T) {
	failed := open(t, "mock:words,panic_load=1", "async_load", true)
	var typed *Error
	if err := failed.Ready(background); !errors.As(err, &typed) || typed.Status != ErrInternal || typed.Message == "" || !typed.Unusable {
		t.Error(err)
	}
	given := open(t, "mock:words,load_ms=20000", "async_load", true)
	waited := make(chan error)
	go func() { waited <- given.Ready(background) }()
	stream := generate(t, given, background, short(1))
	given.Close()
	if err := <-waited; !errors.Is(err, ErrShutdown) && !errors.Is(err, ErrBadHandle) {
		t.Error(err)
	}
	if _, err := stream.All(background); !errors.Is(err, FinishCancelled) {
		t.Error(err)
	}
}

func TestChunksAreAnIterator(t *testing.T) {
	e := open(t, "mock:words,delay_us=1000")
	var text string
	for chunk, err := range generate(t, e, background, short(2)).Chunks() {
		if err != nil {
			t.Fatal(err)
		}
		text += chunk.Text
	}
	if len(text) != 42 {
		t.Error(text)
	}
	left := generate(t, e, background, endless())
	for range left.Chunks() {
		break
	}
	if r := result(t, left); r.Finish != FinishCancelled {
		t.Error("leaving the loop does not cancel:", r)
	}
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	var ends []error
	for _, err := range generate(t, e, ctx, endless()).Chunks() {
		cancel()
		if err != nil {
			ends = append(ends, err)
		}
	}
	if len(ends) != 1 || !errors.Is(ends[0], context.Canceled) {
		t.Error(ends)
	}
	waitIdle(t, e)
}

func TestAllWhoWaitHearTheEnd(t *testing.T) {
	e := open(t, "mock:words,delay_us=1000")
	limit, stop := context.WithTimeout(background, 20*time.Second)
	defer stop()
	s := generate(t, e, background, Request{Prompt: "x", MaxTokens: Ptr(30), IgnoreEOS: true, FinalOnly: true})
	var all sync.WaitGroup
	for i := 0; i < 8; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			ctx := background
			if i%2 == 0 {
				ctx = limit
			}
			// One who leaves with the last chunk keeps nobody waiting.
			if chunk, err := s.Next(ctx); err == nil && chunk.Finish != FinishNone {
				return
			}
			if _, err := s.All(ctx); err != nil {
				t.Error(err)
			}
		}()
	}
	all.Wait()
}

func TestPromptLogprobsAreOfThePromptsTokens(t *testing.T) {
	e := open(t, demo(t))
	tokenizer, err := e.Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	defer tokenizer.Close()
	r := Request{Prompt: strings.Repeat("Once upon a time a fox went home. ", 8), MaxTokens: Ptr(2), PromptLogprobs: Ptr(2), N: 2}
	ids, err := tokenizer.Encode(r.Prompt, true)
	if err != nil {
		t.Fatal(err)
	}
	got := result(t, generate(t, e, background, r))
	if len(got.PromptLogprobs) != len(ids)-1 || got.PromptTokens != len(ids) {
		t.Fatal(len(got.PromptLogprobs), len(ids), got.PromptTokens)
	}
	for i, p := range got.PromptLogprobs {
		best := len(p.Top) == 2 && p.Top[0].Rank == 1 && p.Top[1].Rank == 2 && p.Top[0].Logprob >= p.Top[1].Logprob
		if !best || p.Token != ids[i+1] || p.Logprob > 0 || math.IsNaN(float64(p.Logprob)) || p.Rank < 1 || p.TextEnd != 0 {
			t.Error(i, p, ids[i+1])
		}
	}
	r.PromptLogprobs = nil
	if got := result(t, generate(t, e, background, r)); got.PromptLogprobs != nil {
		t.Error(got)
	}
	r.PromptLogprobs = Ptr(21)
	if _, err := e.Generate(background, r); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "PromptLogprobs is 21") {
		t.Error(err)
	}
}

func TestAChatIsRenderedAsItIsRead(t *testing.T) {
	tokenizer, err := OpenTokenizer(demo(t))
	if err != nil {
		t.Fatal(err)
	}
	defer tokenizer.Close()
	const chat = `{"messages": [{"role": "user", "content": "a \"fox\" 🦊"}]}`
	text, err := tokenizer.RenderChat(chat)
	if err != nil || !strings.Contains(text, `a "fox" 🦊`) || text == chat {
		t.Errorf("%q %v", text, err)
	}
	ids, err := tokenizer.Encode(text, false)
	if err != nil {
		t.Fatal(err)
	}
	e := open(t, os.Getenv("YINIAN_TEST_MODEL"))
	if r := result(t, generate(t, e, background, Request{Chat: chat, MaxTokens: Ptr(1)})); r.PromptTokens != len(ids) {
		t.Error(r.PromptTokens, len(ids))
	}
	for _, wrong := range []string{"{", "{}", ""} {
		if _, err := tokenizer.RenderChat(wrong); !errors.Is(err, ErrInvalid) {
			t.Error(wrong, err)
		}
	}
}

// lines is a logger's output that several goroutines may look at.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestLogsGoToALogger(t *testing.T) {
	logger := func(to *lines) *slog.Logger {
		return slog.New(slog.NewTextHandler(to, &slog.HandlerOptions{Level: LevelTrace}))
	}
	say := func(level string) {
		e := open(t, "mock:words,fail_step=2", "log_level", level)
		_ = result(t, generate(t, e, background, short(1)))
		e.Close()
	}
	var all, warnings lines
	if err := LogTo(logger(&all), LevelTrace); err != nil {
		t.Fatal(err)
	}
	say("trace")
	if err := LogTo(logger(&warnings), slog.LevelWarn); err != nil {
		t.Fatal(err)
	}
	before := all.String()
	say("trace")
	if err := LogTo(nil, slog.LevelInfo); err != nil {
		t.Fatal(err)
	}
	after := warnings.String()
	say("trace")
	if before == "" || all.String() != before || !strings.Contains(before, "level=INFO") || !strings.Contains(before, "mock:words") {
		t.Error("all lines:", before, "and later:", all.String())
	}
	if !strings.Contains(after, "level=WARN") || strings.Contains(after, "level=INFO") || warnings.String() != after {
		t.Error("warnings:", after, "and later:", warnings.String())
	}
	for level, want := range map[slog.Level]int{slog.LevelError + 1: 0, slog.LevelError: 1, slog.LevelWarn + 1: 1, slog.LevelWarn: 2, slog.LevelInfo: 3, slog.LevelDebug: 4, LevelTrace: 5, LevelTrace - 9: 5} {
		if got := int(logLevel(level)); got != want {
			t.Error(level, got, want)
		}
	}
}
