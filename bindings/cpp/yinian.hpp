// Yinian for C++17: a thin, header-only layer over yinian.h. Link with -lyinian.
//
//   auto engine = yinian::Engine::open(R"({"model": "path/to/model"})");
//   auto end = engine.stream(yinian::Request::text("Once"), [](std::string_view delta) { std::cout << delta; });
//
// Each function has a `try_` twin that returns a Result and throws std::bad_alloc at most; -fno-exceptions leaves the twins.
// Handles move and do not copy. All member functions but moves, assignments and destructors may be called from any thread
// at any time, also during close().
#ifndef YINIAN_HPP
#define YINIAN_HPP

#include "yinian.h"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace yinian {
// Objects compiled with and without exceptions have different members, so they get different names.
#if defined(__cpp_exceptions)
inline namespace throwing {
#else
inline namespace nothrow {
#endif

enum class Status : int32_t {
  ok = YN_OK, invalid = YN_E_INVALID, bad_handle = YN_E_BAD_HANDLE, unsupported = YN_E_UNSUPPORTED, busy = YN_E_BUSY,
  timeout = YN_E_TIMEOUT, too_small = YN_E_TOO_SMALL, shutdown = YN_E_SHUTDOWN, not_found = YN_E_NOT_FOUND,
  io = YN_E_IO, no_memory = YN_E_NO_MEMORY, device = YN_E_DEVICE, internal = YN_E_INTERNAL, forked = YN_E_FORKED,
};

enum class Finish : uint32_t {
  none = YN_FINISH_NONE, eos = YN_FINISH_EOS, stop = YN_FINISH_STOP, length = YN_FINISH_LENGTH,
  cancelled = YN_FINISH_CANCELLED, deadline = YN_FINISH_DEADLINE, overrun = YN_FINISH_OVERRUN,
  error = YN_FINISH_ERROR,
};

// Why a call failed. what() is the library's message, UTF-8.
class [[nodiscard]] Error : public std::exception {
 public:
  Error(yn_status status, uint32_t flags, std::string message)
      : status_(static_cast<Status>(status)), flags_(flags), message_(std::move(message)) {
    if (message_.empty()) message_ = yn_status_name(status);
  }
  [[nodiscard]] Status status() const noexcept { return status_; }
  // The same call may succeed later; the engine cannot be used any more.
  [[nodiscard]] bool retry() const noexcept { return (flags_ & YN_ERROR_RETRY) != 0; }
  [[nodiscard]] bool unusable() const noexcept { return (flags_ & YN_ERROR_UNUSABLE) != 0; }
  [[nodiscard]] const char* what() const noexcept override { return message_.c_str(); }

 private:
  Status status_;
  uint32_t flags_;
  std::string message_;
};

// A value or an Error. Look before `*`, `->` and error().
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}
  [[nodiscard]] explicit operator bool() const noexcept { return state_.index() == 0; }
  [[nodiscard]] T& operator*() & noexcept { return *std::get_if<0>(&state_); }
  [[nodiscard]] const T& operator*() const& noexcept { return *std::get_if<0>(&state_); }
  [[nodiscard]] T&& operator*() && noexcept { return std::move(*std::get_if<0>(&state_)); }
  [[nodiscard]] T* operator->() noexcept { return std::get_if<0>(&state_); }
  [[nodiscard]] const T* operator->() const noexcept { return std::get_if<0>(&state_); }
  [[nodiscard]] const Error& error() const noexcept { return *std::get_if<1>(&state_); }
#if defined(__cpp_exceptions)
  // The value; throws the Error.
  T value() && {
    if (!*this) throw *std::get_if<1>(&state_);
    return std::move(**this);
  }
#endif

 private:
  std::variant<T, Error> state_;
};

struct Done {};  // the value of a call that has none
namespace detail {
inline yn_bytes bytes(std::string_view s) noexcept { return {reinterpret_cast<const uint8_t*>(s.data()), s.size()}; }

inline Result<Done> check(yn_status status, const yn_error& e = {}) {
  if (status == YN_OK) return Done{};
  return Error(status, e.status == status ? e.flags : 0, e.status == status ? e.message : "");
}
inline std::string take(yn_buf& buf) {
  std::string s(reinterpret_cast<const char*>(buf.data), buf.len);
  yn_buf_free(&buf);
  return s;
}

// Reads and drops what is left: the library keeps what is unread of a freed queue until it has been read.
template <class F>
void drain(F poll) {
  uint64_t scratch[YN_POLL_MIN_BYTES / 8];
  std::size_t used = 0;
  yn_status status = YN_OK;
  while (status == YN_OK || status == YN_E_TIMEOUT) status = poll(scratch, sizeof scratch, &used);
}

inline auto poller(yn_engine e, int32_t ms) noexcept {
  return [=](void* buf, std::size_t cap, std::size_t* used) { return yn_engine_poll(e, buf, cap, ms, used); };
}
inline auto poller(yn_queue q, int32_t ms) noexcept {
  return [=](void* buf, std::size_t cap, std::size_t* used) { return yn_queue_poll(q, buf, cap, ms, used); };
}
inline void retire_engine(uint64_t id) noexcept { (void)yn_engine_free({id}), drain(poller(yn_engine{id}, -1)); }
inline void retire_queue(uint64_t id) noexcept { (void)yn_queue_free({id}), drain(poller(yn_queue{id}, -1)); }
inline void retire_tokenizer(uint64_t id) noexcept { (void)yn_tokenizer_free({id}); }

// Owns an id, retires it at the end; moving leaves 0 behind.
template <void (*Retire)(uint64_t) noexcept>
class Handle {
 public:
  explicit Handle(uint64_t id) noexcept : id_(id) {}
  Handle(Handle&& o) noexcept : id_(std::exchange(o.id_, 0)) {}
  Handle& operator=(Handle&& o) noexcept {
    const Handle old(std::exchange(id_, std::exchange(o.id_, 0)));
    return *this;
  }
  ~Handle() {
    if (id_ != 0) Retire(id_);
  }
  [[nodiscard]] uint64_t id() const noexcept { return id_; }

 private:
  uint64_t id_;
};
}  // namespace detail

// Token ids inside a poll buffer.
struct Tokens {
  const uint32_t* first = nullptr;
  std::size_t count = 0;
  [[nodiscard]] const uint32_t* begin() const noexcept { return first; }
  [[nodiscard]] const uint32_t* end() const noexcept { return first + count; }
};

// A record, viewed in the poll buffer: good until the buffer is polled into again or goes away.
class Event {
 public:
  explicit Event(const yn_event* raw) noexcept : raw_(raw) {}
  [[nodiscard]] const yn_event& raw() const noexcept { return *raw_; }
  [[nodiscard]] bool is_output() const noexcept { return raw_->kind == YN_EV_OUTPUT; }
  [[nodiscard]] bool is_done() const noexcept { return raw_->kind == YN_EV_DONE; }
  [[nodiscard]] uint64_t user_data() const noexcept { return raw_->user_data; }
  [[nodiscard]] yn_request_id request_id() const noexcept { return raw_->request_id; }
  [[nodiscard]] Status status() const noexcept { return static_cast<Status>(raw_->status); }
  [[nodiscard]] Finish finish() const noexcept { return static_cast<Finish>(raw_->finish); }
  // Whole code points; of a failed DONE the message.
  [[nodiscard]] std::string_view text() const noexcept { return {base() + raw_->text_off, raw_->text_len}; }
  [[nodiscard]] Tokens tokens() const noexcept {
    return {reinterpret_cast<const uint32_t*>(base() + raw_->tokens_off), is_output() ? raw_->n_tokens : 0};
  }

 private:
  [[nodiscard]] const char* base() const noexcept { return reinterpret_cast<const char*>(raw_); }
  const yn_event* raw_;
};

// A poll buffer and the records of the last poll, for one thread.
class Events {
 public:
  class iterator {
   public:
    explicit iterator(const char* at) noexcept : at_(at) {}
    Event operator*() const noexcept { return Event(reinterpret_cast<const yn_event*>(at_)); }
    iterator& operator++() noexcept {
      at_ += (**this).raw().size;
      return *this;
    }
    bool operator!=(const iterator& o) const noexcept { return at_ != o.at_; }

   private:
    const char* at_;
  };

  // `capacity_bytes` is rounded up to what the library asks for.
  explicit Events(std::size_t capacity_bytes = 65536)
      : words_(capacity_bytes / 8 < YN_POLL_MIN_BYTES / 8 ? YN_POLL_MIN_BYTES / 8 : capacity_bytes / 8) {}
  [[nodiscard]] iterator begin() const noexcept { return iterator(data()); }
  [[nodiscard]] iterator end() const noexcept { return iterator(data() + used_); }
  [[nodiscard]] bool empty() const noexcept { return used_ == 0; }

 private:
  friend class Queue;
  friend class Engine;
  [[nodiscard]] const char* data() const noexcept { return reinterpret_cast<const char*>(words_.data()); }

  // True: there are records. False: the timeout passed, or the poll was woken.
  template <class F>
  Result<bool> fill(F poll) {
    used_ = 0;
    const yn_status status = poll(words_.data(), words_.size() * 8, &used_);
    if (status == YN_OK || status == YN_E_TIMEOUT) return status == YN_OK;
    return Error(status, 0, "");
  }

  std::vector<uint64_t> words_;
  std::size_t used_ = 0;
};

// Text to token ids and back. It outlives the engine it came from.
class Tokenizer {
 public:
  // `path`: a model directory or a tokenizer.json.
  static Result<Tokenizer> try_open(std::string_view path) {
    yn_tokenizer t{};
    yn_error e{};
    if (auto r = detail::check(yn_tokenizer_open(detail::bytes(path), &t, &e), e); !r) return r.error();
    return Tokenizer(t.id);
  }
  // `flags`: YN_TOKENIZE_*.
  Result<std::vector<uint32_t>> try_encode(std::string_view text, uint32_t flags = 0) const {
    std::vector<uint32_t> ids(text.size() + 8);
    for (;;) {
      std::size_t n = ids.size();
      yn_error e{};
      const yn_status status = yn_tokenize({handle_.id()}, detail::bytes(text), flags, ids.data(), &n, &e);
      const bool grow = status == YN_E_TOO_SMALL && n > ids.size();
      if (auto r = detail::check(status, e); !r && !grow) return r.error();
      ids.resize(n);
      if (!grow) return ids;
    }
  }
  // `flags`: YN_DETOKENIZE_*.
  Result<std::string> try_decode(const std::vector<uint32_t>& ids, uint32_t flags = 0) const {
    yn_buf out{};
    yn_error e{};
    const yn_status status = yn_detokenize({handle_.id()}, ids.data(), ids.size(), flags, &out, &e);
    if (auto r = detail::check(status, e); !r) return r.error();
    return detail::take(out);
  }
#if defined(__cpp_exceptions)
  [[nodiscard]] static Tokenizer open(std::string_view path) { return try_open(path).value(); }
  [[nodiscard]] std::vector<uint32_t> encode(std::string_view text, uint32_t flags = 0) const {
    return try_encode(text, flags).value();
  }
  [[nodiscard]] std::string decode(const std::vector<uint32_t>& ids, uint32_t flags = 0) const {
    return try_decode(ids, flags).value();
  }
#endif

 private:
  friend class Engine;
  explicit Tokenizer(uint64_t id) noexcept : handle_(id) {}
  detail::Handle<detail::retire_tokenizer> handle_;
};

// A queue of events, for hosts that want one per thread. The destructor cancels the requests that stream into it and waits
// until they have ended, about a step.
class Queue {
 public:
  static Result<Queue> try_create() {
    yn_queue q{};
    yn_error e{};
    if (auto r = detail::check(yn_queue_create(&q, &e), e); !r) return r.error();
    return Queue(q.id);
  }
  [[nodiscard]] uint64_t id() const noexcept { return handle_.id(); }
  // As yn_queue_poll: -1 waits on. True: `events` holds records. After close() until all is read, then Status::shutdown.
  Result<bool> try_poll(Events& events, int32_t timeout_ms = -1) const {
    return events.fill(detail::poller(yn_queue{handle_.id()}, timeout_ms));
  }
  // A descriptor the caller closes, readable while the queue is not empty; do not read it.
  Result<int> try_fd() const {
    int32_t fd = -1;
    if (auto r = detail::check(yn_queue_fd({handle_.id()}, &fd)); !r) return r.error();
    return fd;
  }
  // Makes one poll return false. Nothing happens on a closed queue.
  void wake() const noexcept { (void)yn_queue_wake({handle_.id()}); }
  // Cancels what streams into the queue; polls drain it, then say Status::shutdown. Idempotent.
  void close() const noexcept { (void)yn_queue_free({handle_.id()}); }
#if defined(__cpp_exceptions)
  [[nodiscard]] static Queue create() { return try_create().value(); }
  [[nodiscard]] bool poll(Events& events, int32_t timeout_ms = -1) const { return try_poll(events, timeout_ms).value(); }
  [[nodiscard]] int fd() const { return try_fd().value(); }
#endif

 private:
  explicit Queue(uint64_t id) noexcept : handle_(id) {}
  detail::Handle<detail::retire_queue> handle_;
};

// What to generate. What is not set takes the model's defaults. Owns its texts.
class Request {
 public:
  static Request text(std::string prompt) { return Request(Kind::text, std::move(prompt)); }
  // {"messages": [...], ...}, rendered with the model's chat template.
  static Request chat(std::string json) { return Request(Kind::chat, std::move(json)); }
  static Request tokens(std::vector<uint32_t> ids) {
    Request r(Kind::tokens, "");
    r.ids_ = std::move(ids);
    return r;
  }

#define YINIAN_SETTER(type, name)                                          \
  Request& name(type v)& { return name##_ = std::move(v), *this; }         \
  Request&& name(type v)&& { return name##_ = std::move(v), std::move(*this); }
  // YN_OUT_* and YN_REQ_*; seed() adds its own flag.
  YINIAN_SETTER(uint32_t, output) YINIAN_SETTER(uint32_t, flags) YINIAN_SETTER(uint64_t, user_data)
  YINIAN_SETTER(uint32_t, max_tokens) YINIAN_SETTER(uint32_t, min_tokens) YINIAN_SETTER(uint64_t, seed)
  YINIAN_SETTER(float, temperature) YINIAN_SETTER(float, top_p) YINIAN_SETTER(float, min_p) YINIAN_SETTER(int32_t, top_k)
  YINIAN_SETTER(float, repetition_penalty) YINIAN_SETTER(float, presence_penalty) YINIAN_SETTER(float, frequency_penalty)
  YINIAN_SETTER(std::vector<std::string>, stop_texts) YINIAN_SETTER(std::vector<uint32_t>, stop_tokens)
  YINIAN_SETTER(int32_t, priority) YINIAN_SETTER(uint32_t, timeout_ms)
  YINIAN_SETTER(std::string, cache_salt) YINIAN_SETTER(std::string, extra_json)
#undef YINIAN_SETTER

 private:
  friend class Engine;
  enum class Kind { text, chat, tokens };
  Request(Kind kind, std::string prompt) : kind_(kind), prompt_(std::move(prompt)) {}

  // Fills `r`, which yn_request_init has seen; `stops` must live as long as `r` is used.
  void fill(yn_request& r, std::vector<yn_bytes>& stops) const {
    static const uint32_t none = 0;  // an empty list is given, NULL is not
    if (kind_ == Kind::tokens) {
      r.prompt_tokens = ids_.empty() ? &none : ids_.data();
      r.n_prompt_tokens = ids_.size();
    } else {
      (kind_ == Kind::text ? r.prompt_text : r.chat_json) = detail::bytes(prompt_);
    }
    const auto set = [](auto& to, const auto& from) {
      if (from) to = *from;
    };
    set(r.output, output_), set(r.flags, flags_), set(r.user_data, user_data_), set(r.seed, seed_);
    set(r.max_tokens, max_tokens_), set(r.min_tokens, min_tokens_);
    set(r.temperature, temperature_), set(r.top_p, top_p_), set(r.min_p, min_p_), set(r.top_k, top_k_);
    set(r.repetition_penalty, repetition_penalty_), set(r.presence_penalty, presence_penalty_);
    set(r.frequency_penalty, frequency_penalty_), set(r.priority, priority_), set(r.timeout_ms, timeout_ms_);
    if (seed_) r.flags |= YN_REQ_SEEDED;
    for (const std::string& s : stop_texts_) stops.push_back(detail::bytes(s));
    r.stop_texts = stops.data();
    r.n_stop_texts = stops.size();
    r.stop_tokens = stop_tokens_.data();
    r.n_stop_tokens = stop_tokens_.size();
    r.cache_salt = detail::bytes(cache_salt_);
    r.extra_json = detail::bytes(extra_json_);
  }

  Kind kind_;
  std::string prompt_, cache_salt_, extra_json_;
  std::vector<uint32_t> ids_, stop_tokens_;
  std::vector<std::string> stop_texts_;
  std::optional<uint32_t> output_, flags_, max_tokens_, min_tokens_, timeout_ms_;
  std::optional<uint64_t> user_data_, seed_;
  std::optional<float> temperature_, top_p_, min_p_, repetition_penalty_, presence_penalty_, frequency_penalty_;
  std::optional<int32_t> top_k_, priority_;
};

// How a request ended. `text` is filled by generate().
struct Completion {
  Finish finish = Finish::none;
  uint32_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  uint64_t t_submit_ns = 0, t_first_ns = 0, t_end_ns = 0;
  std::string text;
};

// An engine with the queue of its own. The destructor cancels what is left and waits about a step; nobody may be inside
// another member function then. close() is the part of it that is safe at any time.
class Engine {
 public:
  // Loads a model; `config_json` is described in the README. Blocks unless it says {"async_load": true}.
  static Result<Engine> try_open(std::string_view config_json) {
    // Before 1.0 each minor version of the library may change its ABI.
    if (yn_version() >> 16 != 0x0001) return Error(YN_E_UNSUPPORTED, 0, "yinian.hpp is for libyinian 0.1; load that");
    yn_engine engine{};
    yn_error e{};
    if (auto r = detail::check(yn_engine_create(detail::bytes(config_json), &engine, &e), e); !r) return r.error();
    return Engine(engine.id);
  }
  [[nodiscard]] yn_engine raw() const noexcept { return {handle_.id()}; }

  // Hands in a request whose events go to `queue`, or to the engine's own. Never waits for the device. Route events by
  // user_data: they may be polled before this returns.
  Result<yn_request_id> try_submit(const Request& request, const Queue* queue = nullptr) const {
    return submit_as(request, queue, std::nullopt);
  }
  // As Queue::try_poll, for the engine's own queue.
  Result<bool> try_poll(Events& events, int32_t timeout_ms = -1) const {
    return events.fill(detail::poller(raw(), timeout_ms));
  }
  // Asks a request to end. Fine for any id and on a closed engine.
  void cancel(yn_request_id id) const noexcept { (void)yn_engine_cancel(raw(), id); }
  void wake() const noexcept { (void)yn_engine_wake(raw()); }
  // Cancels what is left, delivers the end of every request, frees the device. Idempotent.
  void close() const noexcept { (void)yn_engine_free(raw()); }
  Result<yn_stats> try_stats() const {
    yn_stats stats{};
    stats.struct_size = sizeof stats;
    if (auto r = detail::check(yn_engine_stats(raw(), &stats)); !r) return r.error();
    return stats;
  }
  Result<Tokenizer> try_tokenizer() const {
    yn_tokenizer t{};
    if (auto r = detail::check(yn_engine_tokenizer(raw(), &t)); !r) return r.error();
    return Tokenizer(t.id);
  }

  // Serves one request on this thread, through a queue of its own. `on` gets every delta, as a std::string_view or as an
  // Event, and may return false to cancel; when it throws, the request is cancelled. A request that ended by itself, was
  // cancelled or came to its deadline is a Completion; one that failed is an Error.
  template <class F>
  Result<Completion> try_stream(const Request& request, F&& on) const {
    return serve(request, std::nullopt, on);
  }
  // The whole answer at once, in `text`.
  Result<Completion> try_generate(const Request& request) const {
    std::string text;
    auto end = serve(request, YN_OUT_TEXT | YN_OUT_FINAL_ONLY, [&](std::string_view piece) { text.append(piece); });
    if (end) end->text = std::move(text);
    return end;
  }

#if defined(__cpp_exceptions)
  [[nodiscard]] static Engine open(std::string_view config_json) { return try_open(config_json).value(); }
  yn_request_id submit(const Request& request, const Queue* queue = nullptr) const {
    return try_submit(request, queue).value();
  }
  [[nodiscard]] bool poll(Events& events, int32_t timeout_ms = -1) const { return try_poll(events, timeout_ms).value(); }
  [[nodiscard]] yn_stats stats() const { return try_stats().value(); }
  [[nodiscard]] Tokenizer tokenizer() const { return try_tokenizer().value(); }
  template <class F>
  Completion stream(const Request& request, F&& on) const {
    return try_stream(request, std::forward<F>(on)).value();
  }
  [[nodiscard]] Completion generate(const Request& request) const { return try_generate(request).value(); }
#endif

 private:
  explicit Engine(uint64_t id) noexcept : handle_(id) {}

  Result<yn_request_id> submit_as(const Request& request, const Queue* queue, std::optional<uint32_t> output) const {
    yn_request r{};
    if (auto ok = detail::check(yn_request_init(raw(), &r, sizeof r)); !ok) return ok.error();
    std::vector<yn_bytes> stops;
    request.fill(r, stops);
    if (output) r.output = *output;
    if (queue != nullptr) r.queue = {queue->id()};
    yn_request_id id = 0;
    yn_error e{};
    if (auto ok = detail::check(yn_engine_submit(raw(), &r, &id, &e), e); !ok) return ok.error();
    return id;
  }

  template <class F>
  Result<Completion> serve(const Request& request, std::optional<uint32_t> output, F&& on) const {
    auto queue = Queue::try_create();
    if (!queue) return queue.error();
    const auto id = submit_as(request, &*queue, output);
    if (!id) return id.error();
    Events events(16384);
    for (;;) {
      if (auto got = queue->try_poll(events); !got) return got.error();
      for (const Event event : events) {
        if (event.is_done()) return completion(event);
        if (event.is_output() && !deliver(on, event)) cancel(*id);
      }
    }
  }

  template <class F>
  static bool deliver(F& on, const Event& event) {
    if constexpr (std::is_invocable_v<F&, std::string_view>) {
      if constexpr (std::is_same_v<std::invoke_result_t<F&, std::string_view>, bool>) return on(event.text());
      else return on(event.text()), true;
    } else {
      if constexpr (std::is_same_v<std::invoke_result_t<F&, const Event&>, bool>) return on(event);
      else return on(event), true;
    }
  }

  static Result<Completion> completion(const Event& event) {
    const yn_event& e = event.raw();
    if (e.status != YN_OK) return Error(e.status, 0, std::string(event.text()));
    return Completion{event.finish(), e.prompt_tokens, e.cached_tokens, e.completion_tokens,
                      e.t_submit_ns,  e.t_first_ns,    e.t_event_ns,    {}};
  }

  detail::Handle<detail::retire_engine> handle_;
};

}  // inline namespace
}  // namespace yinian

#endif
