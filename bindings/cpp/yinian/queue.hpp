// Event queues for hosts that poll themselves. Part of yinian.hpp.
#ifndef YINIAN_QUEUE_HPP
#define YINIAN_QUEUE_HPP

#include "event.hpp"

YINIAN_NAMESPACE_BEGIN

// A queue of events, for hosts that want one per thread. The destructor cancels the requests that stream into it and waits
// until they have ended, about a step.
class Queue {
 public:
  static Result<Queue> try_create() {
    if (auto r = detail::check_version(); !r) return r.error();
    yn_queue q{};
    yn_error e{};
    if (auto r = detail::check(yn_queue_create(&q, &e), e); !r) return r.error();
    return Queue(q.id);
  }
  [[nodiscard]] yn_queue raw() const noexcept { return {handle_.id()}; }
  // As yn_queue_poll: -1 waits on. True: `events` holds records. After close() until all is read, then Status::shutdown.
  Result<bool> try_poll(Events& events, int32_t timeout_ms = -1) const {
    return events.fill(detail::poller(raw(), timeout_ms));
  }
  // A descriptor the caller closes, readable while the queue is not empty; do not read it.
  Result<int> try_fd() const {
    int32_t fd = -1;
    if (auto r = detail::check(yn_queue_fd(raw(), &fd)); !r) return r.error();
    return fd;
  }
  // Makes one poll return false. Nothing happens on a closed queue.
  void wake() const noexcept { (void)yn_queue_wake(raw()); }
  // Cancels what streams into the queue; polls drain it, then say Status::shutdown. Idempotent.
  void close() const noexcept { (void)yn_queue_free(raw()); }
#if defined(__cpp_exceptions)
  [[nodiscard]] static Queue create() { return try_create().value(); }
  [[nodiscard]] bool poll(Events& events, int32_t timeout_ms = -1) const { return try_poll(events, timeout_ms).value(); }
  [[nodiscard]] int fd() const { return try_fd().value(); }
#endif

 private:
  explicit Queue(uint64_t id) noexcept : handle_(id) {}
  detail::Handle<detail::retire_queue> handle_;
};

YINIAN_NAMESPACE_END

#endif
