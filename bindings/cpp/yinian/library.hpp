// What the library says of itself, of configs before loading, and in its log. Part of yinian.hpp.
#ifndef YINIAN_LIBRARY_HPP
#define YINIAN_LIBRARY_HPP

#include "queue.hpp"

#include <functional>
#include <memory>
#include <mutex>

namespace yinian {
// Outside of the namespaces that differ with and without exceptions: the process has one log.
namespace shared {
struct Log {
  std::mutex lock;
  const void* sink = nullptr;
};
inline Log& log() {
  static Log* one = new Log;  // never destroyed: sinks may be static
  return *one;
}
}  // namespace shared
}  // namespace yinian

YINIAN_NAMESPACE_BEGIN

// Of the loaded library: major << 24 | minor << 16 | patch << 8.
[[nodiscard]] inline uint32_t version() noexcept { return yn_version(); }

// What the loaded library's build is, a JSON object.
[[nodiscard]] inline std::string_view build_info() noexcept {
  const yn_bytes b = yn_build_info();
  return {reinterpret_cast<const char*>(b.data), b.len};
}

// What a config would load where, before loading: a JSON object, in bytes. Reads the model's headers.
inline Result<std::string> try_plan_memory(std::string_view config_json) {
  if (auto r = detail::check_version(); !r) return r.error();
  return detail::take([&](yn_buf* out, yn_error* e) { return yn_plan_memory(detail::bytes(config_json), out, e); });
}

// Log lines of all engines of the process, given to a function from any thread, several at once. The function must not block
// and must not use the library; what it throws is dropped. A later sink or log_to() replaces it; the destructor returns
// when the function is not running any more.
class LogSink {
 public:
  using Function = std::function<void(LogLevel level, std::string_view target, std::string_view message)>;

  static Result<LogSink> try_open(LogLevel level, Function function) {
    auto owned = std::make_unique<Function>(std::move(function));
    shared::Log& log = shared::log();
    const std::lock_guard<std::mutex> held(log.lock);
    const yn_status status = yn_log_to_callback(call, owned.get(), static_cast<uint32_t>(level));
    if (auto r = detail::check(status); !r) return r.error();
    log.sink = owned.get();
    return LogSink(std::move(owned));
  }
  LogSink(LogSink&&) noexcept = default;
  LogSink& operator=(LogSink&& o) noexcept {
    close();
    function_ = std::move(o.function_);
    return *this;
  }
  ~LogSink() { close(); }
#if defined(__cpp_exceptions)
  [[nodiscard]] static LogSink open(LogLevel level, Function function) {
    return try_open(level, std::move(function)).value();
  }
#endif

 private:
  explicit LogSink(std::unique_ptr<Function> function) noexcept : function_(std::move(function)) {}

  void close() noexcept {
    if (function_ == nullptr) return;
    shared::Log& log = shared::log();
    const std::lock_guard<std::mutex> held(log.lock);
    if (log.sink == function_.get()) {
      (void)yn_log_to_callback(nullptr, nullptr, 0);
      log.sink = nullptr;
    }
    function_.reset();
  }

  static void call(void* user, uint32_t level, yn_bytes target, yn_bytes message) noexcept {
    const auto view = [](yn_bytes b) { return std::string_view(reinterpret_cast<const char*>(b.data), b.len); };
#if defined(__cpp_exceptions)
    try {
#endif
      (*static_cast<Function*>(user))(static_cast<LogLevel>(level), view(target), view(message));
#if defined(__cpp_exceptions)
    } catch (...) {
    }
#endif
  }

  std::unique_ptr<Function> function_;
};

namespace detail {
inline Result<Done> log_to(yn_queue queue, LogLevel level) {
  shared::Log& log = shared::log();
  const std::lock_guard<std::mutex> held(log.lock);
  auto done = check(yn_log_to_queue(queue, static_cast<uint32_t>(level)));
  if (done) log.sink = nullptr;
  return done;
}
}  // namespace detail

// Log lines of all engines of the process as events of a queue: is_log(), text(), log_level(). They replace a LogSink.
inline Result<Done> try_log_to(const Queue& queue, LogLevel level) { return detail::log_to(queue.raw(), level); }

// Log lines go nowhere, as at the start.
inline Result<Done> try_log_off() { return detail::log_to({}, LogLevel::off); }

#if defined(__cpp_exceptions)
[[nodiscard]] inline std::string plan_memory(std::string_view config_json) { return try_plan_memory(config_json).value(); }
inline void log_to(const Queue& queue, LogLevel level) { (void)try_log_to(queue, level).value(); }
inline void log_off() { (void)try_log_off().value(); }
#endif

YINIAN_NAMESPACE_END

#endif
