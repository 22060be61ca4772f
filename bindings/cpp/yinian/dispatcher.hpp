// Many streams served by one thread: each request has a handler. Part of yinian.hpp.
#ifndef YINIAN_DISPATCHER_HPP
#define YINIAN_DISPATCHER_HPP

#include "engine.hpp"
#include "library.hpp"

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <pthread.h>
#include <signal.h>
#include <thread>

YINIAN_NAMESPACE_BEGIN

struct DispatcherOptions {
  // Of the poll buffer, which holds what comes at once for all streams.
  std::size_t buffer_bytes = 65536;
  // Called where handlers are, with what one of them threw.
  std::function<void(std::exception_ptr, yn_request_id)> on_exception;
  // With both, the log lines of all engines of the process come here, as by log_to().
  LogLevel log_level = LogLevel::off;
  std::function<void(const Event&)> on_log;
};

namespace detail {
#if defined(__SANITIZE_THREAD__)
#define YINIAN_THREAD_SANITIZER
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define YINIAN_THREAD_SANITIZER
#endif
#endif
#if defined(YINIAN_THREAD_SANITIZER)
// The library orders submit before the request's records; the sanitizer does not see into it.
extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);
inline void before_submit(void* live) { __tsan_release(live); }
inline void before_record(void* live) { __tsan_acquire(live); }
#else
inline void before_submit(void*) noexcept {}
inline void before_record(void*) noexcept {}
#endif

// A request that runs, in a list of its dispatcher.
class Live {
 public:
  Live() = default;
  Live(const Live&) = delete;
  Live& operator=(const Live&) = delete;
  virtual ~Live() = default;
  virtual bool on(const Event& event) = 0;

  Live *before = nullptr, *behind = nullptr;
  yn_request_id id = 0;    // 0 until submit has returned
  bool ended = false;      // DONE came before submit returned
  bool unwanted = false;   // its handler threw or returned false
};

template <class F>
class LiveWith final : public Live {
 public:
  template <class G>
  explicit LiveWith(G&& handler) : handler_(std::forward<G>(handler)) {}
  bool on(const Event& event) override { return deliver(handler_, event); }

 private:
  F handler_;
};

// What a dispatcher shares with its thread. Requests are routed by address: only this class submits to its queue.
class Dispatch {
 public:
  Dispatch(yn_engine engine, Queue queue, DispatcherOptions options)
      : engine_(engine), queue_(std::move(queue)), options_(std::move(options)), events_(options_.buffer_bytes) {}
  ~Dispatch() { abandon(YN_E_SHUTDOWN); }

  Dispatch(const Dispatch&) = delete;
  Dispatch& operator=(const Dispatch&) = delete;

  [[nodiscard]] const Queue& queue() const noexcept { return queue_; }
  void cancel(yn_request_id id) const noexcept { (void)yn_engine_cancel(engine_, id); }
  // In a child of fork nothing comes any more, and no thread runs but the one that forked.
  [[nodiscard]] bool is_forked() const noexcept { return yn_queue_wake(queue_.raw()) == YN_E_FORKED; }

  Result<yn_request_id> submit(const Request& request, std::unique_ptr<Live> owned) {
    Live* live = owned.get();
    if (!link(live)) return Error(YN_E_SHUTDOWN, 0, "the dispatcher is closed");
    before_submit(live);
    auto id = detail::submit(engine_, request, queue_.raw(), {0, reinterpret_cast<uintptr_t>(live)});
    const std::lock_guard<std::mutex> held(lock_);
    if (!id) {
      unlink(live);
    } else if (!live->ended) {
      live->id = *id;
      if (closing_) (void)yn_engine_cancel(engine_, *id);
      (void)owned.release();
    }
    return id;
  }

  // Waits for records, gives them to their handlers and returns how many there were. One thread at a time.
  Result<std::size_t> step(int32_t timeout_ms) {
    const std::lock_guard<std::mutex> alone(stepping_);
    return dispatch(timeout_ms);
  }
  // This thread is in a handler.
  [[nodiscard]] bool is_inside() const noexcept { return inside_.load() == std::this_thread::get_id(); }

  // Refuses further requests and asks all to end.
  void begin_close() {
    const std::lock_guard<std::mutex> held(lock_);
    if (std::exchange(closing_, true)) return;
    for (const Live* live = first_; live != nullptr; live = live->behind) {
      if (live->id != 0) (void)yn_engine_cancel(engine_, live->id);
    }
    queue_.wake();
  }

  // Steps until it is closed and nothing lives any more.
  void run() {
    for (bool on = true; on;) {
      const std::lock_guard<std::mutex> alone(stepping_);
      // Looked at with this lock held: another thread may have read the last record and the wake-up behind it.
      on = !is_over() && dispatch(-1);
    }
    const std::lock_guard<std::mutex> held(lock_);
    ran_ = true;
    changed_.notify_all();
  }
  // Until run() has ended on another thread.
  void wait() {
    std::unique_lock<std::mutex> held(lock_);
    changed_.wait(held, [&] { return ran_; });
  }

  [[nodiscard]] std::size_t size() const {
    const std::lock_guard<std::mutex> held(lock_);
    return size_;
  }

 private:
  bool link(Live* live) {
    const std::lock_guard<std::mutex> held(lock_);
    if (closing_) return false;
    live->behind = first_;
    if (first_ != nullptr) first_->before = live;
    first_ = live;
    size_++;
    return true;
  }
  // With the lock held.
  void unlink(Live* live) {
    (live->before != nullptr ? live->before->behind : first_) = live->behind;
    if (live->behind != nullptr) live->behind->before = live->before;
    if (--size_ == 0 && closing_) queue_.wake();
  }
  [[nodiscard]] bool is_over() const {
    const std::lock_guard<std::mutex> held(lock_);
    return closing_ && size_ == 0;
  }

  Result<std::size_t> dispatch(int32_t timeout_ms) {
    auto got = queue_.try_poll(events_, timeout_ms);
    inside_ = std::this_thread::get_id();
    std::size_t n = 0;
    for (const Event event : events_) {
      n++;
      if (event.is_log()) guard(event, [&] { return options_.on_log(event), true; });
      else if (event.user_data() != 0) route(reinterpret_cast<Live*>(static_cast<uintptr_t>(event.user_data())), event);
    }
    if (!got) abandon(static_cast<yn_status>(got.error().status()));
    inside_ = std::thread::id();
    if (!got) return got.error();
    return n;
  }

  void route(Live* live, const Event& event) {
    before_record(live);
    if (event.is_done()) return finish(live, event);
    if (live->unwanted || guard(event, [&] { return live->on(event); })) return;
    live->unwanted = true;
    (void)yn_engine_cancel(engine_, event.request_id());
  }

  void finish(Live* live, const Event& event) {
    (void)guard(event, [&] { return live->on(event); });
    std::unique_ptr<Live> owned;  // goes when the lock is free
    const std::lock_guard<std::mutex> held(lock_);
    unlink(live);
    // Where submit() has not returned yet, it frees it.
    if (live->id == 0) live->ended = true;
    else owned.reset(live);
  }

  // What `call` returns; false when it throws.
  template <class F>
  bool guard(const Event& event, F&& call) {
#if defined(__cpp_exceptions)
    try {
      return call();
    } catch (...) {
      try {
        if (options_.on_exception) options_.on_exception(std::current_exception(), event.request_id());
      } catch (...) {
      }
      return false;
    }
#else
    (void)event;
    return call();
#endif
  }

  // Nothing will come from the queue any more: what lives ends here.
  void abandon(yn_status status) {
    for (;;) {
      yn_event done{};
      done.size = done.text_off = done.tokens_off = done.logprobs_off = sizeof done;
      done.kind = YN_EV_DONE;
      done.status = status;
      done.finish = YN_FINISH_ERROR;
      Live* live = nullptr;
      {
        const std::lock_guard<std::mutex> held(lock_);
        closing_ = true;
        live = first_;
        if (live == nullptr) return;
        done.request_id = live->id;
      }
      finish(live, Event(&done));
    }
  }

  yn_engine engine_;
  Queue queue_;
  DispatcherOptions options_;
  std::mutex stepping_;  // held while handlers run
  Events events_;
  std::atomic<std::thread::id> inside_{};
  mutable std::mutex lock_;  // what is below; never held while a handler runs
  std::condition_variable changed_;
  Live* first_ = nullptr;
  std::size_t size_ = 0;
  bool closing_ = false, ran_ = false;
};
}  // namespace detail

// Serves any number of requests of one engine on one thread: start() gives it a thread of its own; attach() leaves it to the
// host's event loop, which watches fd() and calls dispatch() when it is readable.
//
// A handler gets the records of its request in order, as `void` or `bool (const Event&)` or `(std::string_view)`; an Event
// is good until the handler returns. The last one of a request whose submit succeeded is its DONE, exactly once, whatever
// happens: also when the engine fails or is closed, when the dispatcher is closed, and after an exception. A handler that
// takes texts sees no DONE. One that returns false, or throws, ends its request: it gets nothing more but the DONE. What it
// throws goes to on_exception and no further. Handlers may submit, cancel and close, and come before submit has returned;
// they must not block, as all others wait meanwhile (the library keeps and merges what is unread, up to max_unread_bytes).
// Requests are routed by user_data: that of a Request is replaced.
//
// submit, cancel, close and size may be called from any thread. The destructor closes; nobody may be inside another member
// function then. The engine may be closed or gone before.
class Dispatcher {
 public:
  static Result<Dispatcher> try_start(const Engine& engine, DispatcherOptions options = {}) {
    auto made = try_attach(engine, std::move(options));
    if (!made) return made;
    // Signals are the host's: none comes to this thread.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    auto* shared = new std::shared_ptr<detail::Dispatch>(made->core_);
    const int failed = pthread_create(&made->thread_, nullptr, thread_main, shared);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (failed != 0) {
      delete shared;
      return Error(YN_E_NO_MEMORY, YN_ERROR_RETRY, "the system gives no thread for the dispatcher");
    }
    made->has_thread_ = true;
    return made;
  }
  static Result<Dispatcher> try_attach(const Engine& engine, DispatcherOptions options = {}) {
    auto queue = Queue::try_create();
    if (!queue) return queue.error();
    if (options.on_log && options.log_level != LogLevel::off) {
      if (auto r = try_log_to(*queue, options.log_level); !r) return r.error();
    }
    return Dispatcher(std::make_shared<detail::Dispatch>(engine.raw(), *std::move(queue), std::move(options)));
  }
  Dispatcher(Dispatcher&&) noexcept = default;
  Dispatcher& operator=(Dispatcher&& o) noexcept {
    finish();
    core_ = std::move(o.core_);
    thread_ = o.thread_;
    has_thread_ = o.has_thread_;
    return *this;
  }
  ~Dispatcher() { finish(); }

  // Never waits for the device. The handler is called only if this succeeds, and freed on the thread that dispatches or here.
  // Errors: those of yn_engine_submit; Status::shutdown after close().
  template <class F>
  Result<yn_request_id> try_submit(const Request& request, F&& handler) const {
    if (core_ == nullptr) return gone();
    return core_->submit(request, std::make_unique<detail::LiveWith<std::decay_t<F>>>(std::forward<F>(handler)));
  }
  // Asks a request to end; its DONE still arrives. Fine for any id.
  void cancel(yn_request_id id) const noexcept {
    if (core_ != nullptr) core_->cancel(id);
  }
  // Requests that have not had their DONE.
  [[nodiscard]] std::size_t size() const { return core_ == nullptr ? 0 : core_->size(); }

  // After attach(): a descriptor the caller closes, readable while there is something to dispatch; do not read it.
  Result<int> try_fd() const {
    if (core_ == nullptr) return gone();
    return core_->queue().try_fd();
  }
  // After attach(): gives what has come, one buffer at most, to its handlers and returns how many records there were. Waits
  // for the first one for at most `timeout_ms`, -1 waits on. Not from a handler.
  Result<std::size_t> try_dispatch(int32_t timeout_ms = 0) const {
    const auto core = core_;  // a handler may destroy the dispatcher
    if (core == nullptr) return gone();
    if (has_thread_) return Error(YN_E_INVALID, 0, "this dispatcher has a thread of its own");
    if (core->is_inside()) return Error(YN_E_INVALID, 0, "dispatch was called from a handler");
    return core->step(timeout_ms);
  }

  // Refuses further requests, cancels those that run and returns when all have had their DONE, after about a step; without a
  // thread of its own it calls the handlers itself. From a handler it returns at once, and the rest follows. Idempotent.
  void close() const {
    const auto core = core_;
    if (core == nullptr) return;
    if (core->is_forked()) return;
    core->begin_close();
    if (core->is_inside()) return;
    if (has_thread_) core->wait();
    else core->run();
  }

#if defined(__cpp_exceptions)
  [[nodiscard]] static Dispatcher start(const Engine& engine, DispatcherOptions options = {}) {
    return try_start(engine, std::move(options)).value();
  }
  [[nodiscard]] static Dispatcher attach(const Engine& engine, DispatcherOptions options = {}) {
    return try_attach(engine, std::move(options)).value();
  }
  template <class F>
  yn_request_id submit(const Request& request, F&& handler) const {
    return try_submit(request, std::forward<F>(handler)).value();
  }
  [[nodiscard]] int fd() const { return try_fd().value(); }
  std::size_t dispatch(int32_t timeout_ms = 0) const { return try_dispatch(timeout_ms).value(); }
#endif

 private:
  explicit Dispatcher(std::shared_ptr<detail::Dispatch> core) noexcept : core_(std::move(core)) {}

  static Error gone() { return Error(YN_E_BAD_HANDLE, 0, "the dispatcher was moved away"); }

  static void* thread_main(void* arg) noexcept {
    const std::unique_ptr<std::shared_ptr<detail::Dispatch>> shared(static_cast<std::shared_ptr<detail::Dispatch>*>(arg));
    pthread_setname_np(pthread_self(), "yinian-poll");
    (*shared)->run();
    return nullptr;
  }

  void finish() noexcept {
    if (core_ == nullptr) return;
    close();
    if (has_thread_ && !core_->is_forked()) {
      if (core_->is_inside()) pthread_detach(thread_);
      else pthread_join(thread_, nullptr);
    }
    core_.reset();
  }

  std::shared_ptr<detail::Dispatch> core_;
  pthread_t thread_{};
  bool has_thread_ = false;
};

YINIAN_NAMESPACE_END

#endif
