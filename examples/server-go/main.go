// An HTTP server with OpenAI's API over one model.
//
//	cargo build --release && ln -sf libyinian.so target/release/libyinian.so.0.1
//	export PKG_CONFIG=true CGO_CFLAGS="-I$PWD/include" CGO_LDFLAGS="-L$PWD/target/release -Wl,-rpath,$PWD/target/release"
//	go build -C examples/server-go -o "$PWD/target/server-go"
//	target/server-go -model examples/demo_model -addr 127.0.0.1:8000 -config '{"max_waiting": 100}' -web examples/web/index.html
//
// SIGTERM refuses new requests, lets those that run finish, and exits with 0.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"yinian.ai/yinian"
)

const maxBody = 32 << 20

type server struct {
	engine   *yinian.Engine
	loaded   atomic.Pointer[model] // nil while it loads
	page     []byte                // at /; nil is none
	started  int64
	draining atomic.Bool
}

type model struct {
	name   string
	tokens *tokenTexts
}

func main() {
	path := flag.String("model", "", "model directory, or mock:words")
	addr := flag.String("addr", "127.0.0.1:8000", "address to listen on")
	page := flag.String("web", "", "an HTML file to serve at /, as examples/web/index.html")
	config := flag.String("config", "{}", "more of the engine's configuration, a JSON object")
	patience := flag.Duration("drain", time.Minute, "how long SIGTERM waits for what runs")
	flag.Parse()
	log.SetFlags(0)
	if err := run(*path, *addr, *config, *page, *patience); err != nil {
		log.Fatal(err)
	}
}

func run(path, addr, config, page string, patience time.Duration) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	cfg := yinian.Config{}
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		return fmt.Errorf("-config: %w", err)
	}
	if path != "" {
		cfg["model"] = path
	}
	if _, ok := cfg["async_load"]; !ok {
		cfg["async_load"] = true // so that /health answers meanwhile
	}
	engine, err := yinian.Open(cfg)
	if err != nil {
		return err
	}
	defer engine.Close()
	s := &server{engine: engine, started: time.Now().Unix()}
	if page != "" {
		if s.page, err = os.ReadFile(page); err != nil {
			return fmt.Errorf("-web: %w", err)
		}
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	stopped := make(chan error, 1)
	go func() {
		if err := s.load(); err != nil && !s.draining.Load() {
			stopped <- err
		}
	}()
	web := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	go func() { stopped <- web.Serve(listener) }()
	log.Printf("listening on http://%s", listener.Addr())
	select {
	case err := <-stopped:
		return err
	case <-stop:
	}
	// While requests finish, others are told to go elsewhere; only then is the door closed.
	s.draining.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := engine.Drain(ctx); err != nil {
		log.Printf("what still ran after %v is cancelled", patience)
		engine.Close()
	}
	last, cancelLast := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancelLast()
	return web.Shutdown(last)
}

// load waits for the engine and takes what is known from then on.
func (s *server) load() error {
	if err := s.engine.Ready(context.Background()); err != nil {
		return err
	}
	var info struct{ Model struct{ Name string } }
	raw, err := s.engine.Info()
	if err == nil {
		err = json.Unmarshal(raw, &info)
	}
	if err != nil {
		return err
	}
	tokenizer, err := s.engine.Tokenizer()
	if err != nil {
		return err
	}
	s.loaded.Store(&model{name: info.Model.Name, tokens: &tokenTexts{tokenizer: tokenizer}})
	log.Printf("serving %s", info.Model.Name)
	return nil
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get("x-request-id")
	if id == "" {
		id = newID("req-")
	}
	w.Header().Set("x-request-id", id)
	routes := map[string]struct {
		method string
		serve  func(http.ResponseWriter, *http.Request) error
	}{
		"/v1/chat/completions": {"POST", s.generate(parseChat)},
		"/v1/completions":      {"POST", s.generate(parseCompletion)},
		"/v1/models":           {"GET", s.models},
		"/health":              {"GET", s.health},
		"/metrics":             {"GET", s.metrics},
		"/":                    {"GET", s.web},
	}
	route, ok := routes[r.URL.Path]
	ok = ok && (r.URL.Path != "/" || s.page != nil)
	var err error
	switch {
	case !ok:
		err = &apiError{status: http.StatusNotFound, Message: "there is nothing at " + r.URL.Path, Type: "invalid_request_error"}
	case r.Method != route.method && !(r.Method == "HEAD" && route.method == "GET"):
		w.Header().Set("allow", route.method)
		err = &apiError{status: http.StatusMethodNotAllowed, Message: r.URL.Path + " takes " + route.method, Type: "invalid_request_error"}
	default:
		err = route.serve(w, r)
	}
	if err != nil && r.Context().Err() == nil {
		e := asAPI(err)
		if e.status == http.StatusTooManyRequests || e.status == http.StatusServiceUnavailable {
			w.Header().Set("retry-after", "1")
		}
		writeJSON(w, e.status, map[string]any{"error": e})
	}
}

func (s *server) models(w http.ResponseWriter, _ *http.Request) error {
	loaded := s.loaded.Load()
	if loaded == nil {
		return unavailable("the model still loads")
	}
	model := map[string]any{"id": loaded.name, "object": "model", "created": s.started, "owned_by": "yinian"}
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": []any{model}})
	return nil
}

func (s *server) health(w http.ResponseWriter, _ *http.Request) error {
	stats, err := s.engine.Stats()
	if err != nil {
		return err
	}
	state := "loading"
	switch {
	case s.draining.Load() || stats.State == yinian.StateDraining:
		state = "draining"
	case stats.State == yinian.StateFailed:
		state = "failed"
	case s.loaded.Load() != nil:
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
		return nil
	}
	w.Header().Set("retry-after", "1")
	writeJSON(w, http.StatusServiceUnavailable, map[string]string{"status": state})
	return nil
}

func (s *server) web(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("content-type", "text/html; charset=utf-8")
	w.Header().Set("cache-control", "no-cache")
	_, _ = w.Write(s.page)
	return nil
}

func (s *server) metrics(w http.ResponseWriter, _ *http.Request) error {
	text, err := s.engine.Metrics()
	if err == nil {
		w.Header().Set("content-type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = io.WriteString(w, text)
	}
	return err
}

func (s *server) generate(parse func([]byte, string) (*job, error)) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		if s.draining.Load() {
			return unavailable("the server is draining")
		}
		loaded := s.loaded.Load()
		if loaded == nil {
			return unavailable("the model still loads")
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			return &apiError{status: http.StatusRequestEntityTooLarge, Message: err.Error(), Type: "invalid_request_error"}
		}
		j, err := parse(body, loaded.name)
		if err != nil {
			return err
		}
		if text := r.Header.Get("x-request-timeout-ms"); text != "" {
			ms, err := strconv.ParseUint(text, 10, 31)
			if err != nil || ms == 0 {
				return invalid("", "header x-request-timeout-ms is %q; expected milliseconds, 1 to 2147483647", text)
			}
			j.Timeout = time.Duration(ms) * time.Millisecond
		}
		// The request ends with its connection.
		stream, err := s.engine.Generate(r.Context(), j.Request)
		if err != nil {
			return err
		}
		return newAnswer(loaded, w, j, stream).write(r.Context())
	}
}

func unavailable(message string) *apiError {
	return &apiError{status: http.StatusServiceUnavailable, Message: message, Type: "server_error"}
}

// asAPI says in HTTP what the engine said.
func asAPI(err error) *apiError {
	var e *apiError
	if errors.As(err, &e) {
		return e
	}
	message := err.Error()
	var engine *yinian.Error
	if errors.As(err, &engine) {
		message = engine.Message
	}
	e = &apiError{status: http.StatusInternalServerError, Message: message, Type: "server_error"}
	switch {
	case errors.Is(err, yinian.ErrInvalid), errors.Is(err, yinian.ErrUnsupported):
		e.status, e.Type = http.StatusBadRequest, "invalid_request_error"
	case errors.Is(err, yinian.ErrBusy):
		e.status, e.Type, e.Code = http.StatusTooManyRequests, "rate_limit_error", yinian.Ptr("queue_full")
	case errors.Is(err, yinian.ErrShutdown), errors.Is(err, yinian.ErrBadHandle), errors.Is(err, yinian.FinishCancelled):
		e.status = http.StatusServiceUnavailable
	case errors.Is(err, yinian.FinishDeadline):
		e.status, e.Type, e.Code = http.StatusGatewayTimeout, "timeout_error", yinian.Ptr("deadline_exceeded")
	}
	return e
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("content-type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value)
}

func newID(prefix string) string {
	var b [12]byte
	_, _ = rand.Read(b[:])
	return prefix + hex.EncodeToString(b[:])
}
