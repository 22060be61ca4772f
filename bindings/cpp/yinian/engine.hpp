// An engine, and requests that a thread waits for. Part of yinian.hpp.
#ifndef YINIAN_ENGINE_HPP
#define YINIAN_ENGINE_HPP

#include "queue.hpp"
#include "request.hpp"
#include "tokenizer.hpp"

#include <algorithm>
#include <chrono>
#include <type_traits>

YINIAN_NAMESPACE_BEGIN

// One of a request's choices, whole.
struct Choice {
  Finish finish = Finish::none;
  std::string text;
  // With YN_OUT_TOKENS or logprobs.
  std::vector<uint32_t> tokens;
  // For each token itself, then as many of the most probable ones as were asked for; text_end counts from the start of `text`.
  std::vector<yn_logprob> logprobs;

  [[nodiscard]] Logprobs logprobs_of(std::size_t token) const noexcept {
    if (logprobs.empty()) return {};
    const std::size_t each = logprobs.size() / tokens.size();
    return {logprobs.data() + token * each, each};
  }

  // Takes over what an event brings; the caller looks at its choice().
  void append(const Event& event) { append(event.text(), event.tokens(), event.logprobs(), event.finish()); }
  // Puts a later piece behind this one.
  void append(const Choice& piece) {
    append(piece.text, {piece.tokens.data(), piece.tokens.size()}, {piece.logprobs.data(), piece.logprobs.size()}, piece.finish);
  }

 private:
  void append(std::string_view more, Tokens ids, Logprobs of, Finish end) {
    for (yn_logprob p : of) {
      p.text_end += static_cast<uint32_t>(text.size());
      logprobs.push_back(p);
    }
    text.append(more);
    tokens.insert(tokens.end(), ids.begin(), ids.end());
    if (end != Finish::none) finish = end;
  }
};

// How a request ended. Times are CLOCK_MONOTONIC nanoseconds, 0 is none.
struct Completion {
  Finish finish = Finish::none;
  uint32_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  uint64_t t_submit_ns = 0, t_first_ns = 0, t_end_ns = 0;
  // Of generate() alone: each choice, and with prompt_logprobs the prompt's from its second token on, laid out as a choice's.
  std::vector<Choice> choices;
  Choice prompt;

  // What a DONE says; an Error when the request failed.
  static Result<Completion> of(const Event& done) {
    const yn_event& e = done.raw();
    if (e.status != YN_OK) return Error(e.status, 0, std::string(done.text()));
    Completion c;
    c.finish = done.finish();
    c.prompt_tokens = e.prompt_tokens, c.cached_tokens = e.cached_tokens, c.completion_tokens = e.completion_tokens;
    c.t_submit_ns = e.t_submit_ns, c.t_first_ns = e.t_first_ns, c.t_end_ns = e.t_event_ns;
    return c;
  }

  // The first choice's.
  [[nodiscard]] const std::string& text() const& noexcept { return choices.front().text; }
  [[nodiscard]] std::string text() && noexcept { return std::move(choices.front().text); }
};

namespace detail {
// Calls `on` with a text or an event, as it takes; false: it wants no more.
template <class F>
bool deliver(F& on, const Event& event) {
  if constexpr (std::is_invocable_v<F&, const Event&>) {
    if constexpr (std::is_same_v<std::invoke_result_t<F&, const Event&>, bool>) return on(event);
    else return on(event), true;
  } else {
    if (!event.is_output()) return true;
    if constexpr (std::is_same_v<std::invoke_result_t<F&, std::string_view>, bool>) return on(event.text());
    else return on(event.text()), true;
  }
}

// Milliseconds of a timeout, of which some have passed; -1 waits on.
class Deadline {
 public:
  explicit Deadline(int32_t timeout_ms) : left_ms_(timeout_ms), began_(std::chrono::steady_clock::now()) {}
  [[nodiscard]] int32_t left_ms(int32_t at_most) const {
    if (left_ms_ < 0) return at_most;
    const auto passed = std::chrono::steady_clock::now() - began_;
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(passed).count();
    return static_cast<int32_t>(std::clamp<int64_t>(left_ms_ - ms, 0, at_most));
  }

 private:
  int32_t left_ms_;
  std::chrono::steady_clock::time_point began_;
};
}  // namespace detail

// An engine with the queue of its own. The destructor cancels what is left and waits about a step; nobody may be inside
// another member function then. close() is the part of it that is safe at any time.
class Engine {
 public:
  // Loads a model; `config_json` is described in the README. Blocks unless it says {"async_load": true}.
  static Result<Engine> try_open(std::string_view config_json) {
    if (auto r = detail::check_version(); !r) return r.error();
    yn_engine engine{};
    yn_error e{};
    if (auto r = detail::check(yn_engine_create(detail::bytes(config_json), &engine, &e), e); !r) return r.error();
    return Engine(engine.id);
  }
  [[nodiscard]] yn_engine raw() const noexcept { return {handle_.id()}; }

  // After {"async_load": true}: waits until the model is loaded and gives `on_progress` each Event of the engine on the way.
  // True: it is ready. False: the timeout passed; -1 waits on. An Error says why loading failed. Reads the engine's own queue,
  // so requests that are submitted meanwhile need another.
  template <class F>
  Result<bool> try_wait_ready(F&& on_progress, int32_t timeout_ms = -1) const {
    const detail::Deadline deadline(timeout_ms);
    Events events(YN_POLL_MIN_BYTES);
    // Not for ever: somebody else may have read that the engine is ready.
    for (int32_t wait_ms = 0;; wait_ms = deadline.left_ms(100)) {
      auto got = try_poll(events, wait_ms);
      if (!got) return got.error();
      for (const Event event : events) {
        if (!event.is_engine()) continue;
        on_progress(event);
        if (event.state() == State::failed) return Error(event.raw().status, YN_ERROR_UNUSABLE, std::string(event.text()));
      }
      const auto now = try_stats();
      if (!now) return now.error();
      if (now->state == YN_STATE_READY) return true;
      if (now->state == YN_STATE_DRAINING) return Error(YN_E_SHUTDOWN, 0, "the engine is draining");
      if (now->state == YN_STATE_FAILED && !*got) return Error(YN_E_DEVICE, YN_ERROR_UNUSABLE, "the engine has failed");
      if (!*got && deadline.left_ms(1) == 0) return false;
    }
  }
  Result<bool> try_wait_ready(int32_t timeout_ms = -1) const {
    return try_wait_ready([](const Event&) {}, timeout_ms);
  }

  // Hands in a request whose events go to `queue`, or to the engine's own. Never waits for the device. Route events by
  // user_data: they may be polled before this returns.
  Result<yn_request_id> try_submit(const Request& request, const Queue* queue = nullptr) const {
    return detail::submit(raw(), request, queue == nullptr ? yn_queue{} : queue->raw());
  }
  // As Queue::try_poll and Queue::try_fd, for the engine's own queue.
  Result<bool> try_poll(Events& events, int32_t timeout_ms = -1) const {
    return events.fill(detail::poller(raw(), timeout_ms));
  }
  Result<int> try_fd() const {
    int32_t fd = -1;
    if (auto r = detail::check(yn_engine_fd(raw(), &fd)); !r) return r.error();
    return fd;
  }
  // Asks a request to end. Fine for any id and on a closed engine.
  void cancel(yn_request_id id) const noexcept { (void)yn_engine_cancel(raw(), id); }
  void wake() const noexcept { (void)yn_engine_wake(raw()); }
  // Refuses new requests from now on and waits until the accepted ones have ended; -1 waits on. False: the timeout passed.
  // Their events must still be polled.
  Result<bool> try_drain(int32_t timeout_ms = -1) const {
    const yn_status status = yn_engine_drain(raw(), timeout_ms);
    if (status == YN_OK || status == YN_E_TIMEOUT) return status == YN_OK;
    return Error(status, 0, "");
  }
  // Cancels what is left, delivers the end of every request, frees the device. Idempotent.
  void close() const noexcept { (void)yn_engine_free(raw()); }

  Result<yn_stats> try_stats() const {
    yn_stats stats{};
    stats.struct_size = sizeof stats;
    if (auto r = detail::check(yn_engine_stats(raw(), &stats)); !r) return r.error();
    return stats;
  }
  // Model, limits, memory and device, a JSON object.
  Result<std::string> try_info() const {
    return detail::take([&](yn_buf* out, yn_error* e) { return yn_engine_info(raw(), out, e); });
  }
  // Prometheus text exposition.
  Result<std::string> try_metrics() const {
    return detail::take([&](yn_buf* out, yn_error*) { return yn_engine_metrics(raw(), out); });
  }
  Result<Tokenizer> try_tokenizer() const {
    yn_tokenizer t{};
    if (auto r = detail::check(yn_engine_tokenizer(raw(), &t)); !r) return r.error();
    return Tokenizer(t.id);
  }

  // Serves one request on this thread, through a queue of its own. `on` gets every delta as a std::string_view, or every
  // record but the last as an Event, and may return false to cancel; then it gets no more. When it throws, the request is
  // cancelled. A request that ended by itself, was cancelled or came to its deadline is a Completion; one that failed is an Error.
  template <class F>
  Result<Completion> try_stream(const Request& request, F&& on) const {
    return serve(request, 0, on);
  }
  // The whole answer at once, in `choices`.
  Result<Completion> try_generate(const Request& request) const {
    std::vector<Choice> choices(1);
    Choice prompt;
    auto end = serve(request, YN_OUT_TEXT | YN_OUT_FINAL_ONLY, [&](const Event& event) {
      if (event.is_prompt()) return prompt.append(event);
      if (event.choice() >= choices.size()) choices.resize(event.choice() + 1);
      choices[event.choice()].append(event);
    });
    if (!end) return end;
    if (choices.size() == 1) choices[0].finish = end->finish;
    end->choices = std::move(choices);
    end->prompt = std::move(prompt);
    return end;
  }

#if defined(__cpp_exceptions)
  [[nodiscard]] static Engine open(std::string_view config_json) { return try_open(config_json).value(); }
  template <class F>
  bool wait_ready(F&& on_progress, int32_t timeout_ms = -1) const {
    return try_wait_ready(std::forward<F>(on_progress), timeout_ms).value();
  }
  bool wait_ready(int32_t timeout_ms = -1) const { return try_wait_ready(timeout_ms).value(); }
  yn_request_id submit(const Request& request, const Queue* queue = nullptr) const {
    return try_submit(request, queue).value();
  }
  [[nodiscard]] bool poll(Events& events, int32_t timeout_ms = -1) const { return try_poll(events, timeout_ms).value(); }
  [[nodiscard]] int fd() const { return try_fd().value(); }
  bool drain(int32_t timeout_ms = -1) const { return try_drain(timeout_ms).value(); }
  [[nodiscard]] yn_stats stats() const { return try_stats().value(); }
  [[nodiscard]] std::string info() const { return try_info().value(); }
  [[nodiscard]] std::string metrics() const { return try_metrics().value(); }
  [[nodiscard]] Tokenizer tokenizer() const { return try_tokenizer().value(); }
  template <class F>
  Completion stream(const Request& request, F&& on) const {
    return try_stream(request, std::forward<F>(on)).value();
  }
  [[nodiscard]] Completion generate(const Request& request) const { return try_generate(request).value(); }
#endif

 private:
  explicit Engine(uint64_t id) noexcept : handle_(id) {}

  template <class F>
  Result<Completion> serve(const Request& request, uint32_t more_output, F&& on) const {
    auto queue = Queue::try_create();
    if (!queue) return queue.error();
    const auto id = detail::submit(raw(), request, queue->raw(), {more_output, {}});
    if (!id) return id.error();
    Events events(16384);
    for (bool wanted = true;;) {
      if (auto got = queue->try_poll(events); !got) return got.error();
      for (const Event event : events) {
        if (event.is_done()) return Completion::of(event);
        if (!wanted) continue;
        wanted = detail::deliver(on, event);
        if (!wanted) cancel(*id);
      }
    }
  }

  detail::Handle<detail::retire_engine> handle_;
};

YINIAN_NAMESPACE_END

#endif
