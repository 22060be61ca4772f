// Why a call failed, and values that may be an error instead. Part of yinian.hpp.
#ifndef YINIAN_RESULT_HPP
#define YINIAN_RESULT_HPP

#include "yinian.h"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

// Objects compiled with and without exceptions have different members, so they get different names.
#if defined(__cpp_exceptions)
#define YINIAN_NAMESPACE_BEGIN namespace yinian { inline namespace throwing {
#else
#define YINIAN_NAMESPACE_BEGIN namespace yinian { inline namespace nothrow {
#endif
#define YINIAN_NAMESPACE_END }}

YINIAN_NAMESPACE_BEGIN

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

enum class State : uint32_t {
  loading = YN_STATE_LOADING, ready = YN_STATE_READY, draining = YN_STATE_DRAINING, failed = YN_STATE_FAILED,
};

// The C API's name, "YN_E_BUSY".
[[nodiscard]] inline const char* status_name(Status status) noexcept { return yn_status_name(static_cast<int32_t>(status)); }

enum class LogLevel : uint32_t { off, error, warn, info, debug, trace };

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

// Before 1.0 each minor version of the library may change its ABI.
inline Result<Done> check_version() {
  if (yn_version() >> 16 != 0x0001) return Error(YN_E_UNSUPPORTED, 0, "yinian.hpp is for libyinian 0.1; load that");
  return Done{};
}

// What a function of the library has put into a yn_buf.
template <class F>
Result<std::string> take(F&& call) {
  struct Owned {
    yn_buf buf{};
    ~Owned() { yn_buf_free(&buf); }
  } out;
  yn_error e{};
  if (auto r = check(call(&out.buf, &e), e); !r) return r.error();
  return std::string(reinterpret_cast<const char*>(out.buf.data), out.buf.len);
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

YINIAN_NAMESPACE_END

#endif
