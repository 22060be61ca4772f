// What the engine has sent for a request, until it goes to the client.
#pragma once

#include "request.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <algorithm>
#include <utility>
#include <vector>

class Output {
 public:
  Output(boost::asio::io_context& io, uint32_t n) : woken_(io, boost::asio::steady_timer::time_point::max()), unread_(n) {}

  // The handler of the request; false when too much is unread.
  bool operator()(const yinian::Event& event) {
    if (event.is_done()) {
      finish(yinian::Completion::of(event));
    } else if (event.is_output()) {
      unread_[event.choice()].append(event);
      is_full_ = (unread_bytes_ += event.raw().size) > max_unread_bytes;
    }
    woken_.cancel();
    return !is_full_;
  }
  // The client has gone.
  void leave() {
    has_left_ = true;
    woken_.cancel();
  }

  // Waits until there is a piece of some choice, or the end; false when the client has gone.
  boost::asio::awaitable<bool> more() {
    boost::system::error_code cancelled;
    while (!has_left_ && !end_ && std::none_of(unread_.begin(), unread_.end(), is_piece)) {
      co_await woken_.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, cancelled));
    }
    co_return !has_left_;
  }
  // What has come of a choice since the last time.
  std::optional<yinian::Choice> take(uint32_t choice) {
    if (!is_piece(unread_[choice])) return {};
    unread_bytes_ = 0;  // all choices are taken together
    return std::exchange(unread_[choice], {});
  }
  bool has_ended() const { return end_.has_value(); }
  // Throws an ApiError when the request failed or ended early.
  const yinian::Completion& end() const {
    if (failure_) throw *failure_;
    return *end_;
  }

 private:
  static constexpr std::size_t max_unread_bytes = 1 << 20;

  static bool is_piece(const yinian::Choice& c) {
    return !c.text.empty() || !c.tokens.empty() || c.finish != yinian::Finish::none;
  }

  void finish(yinian::Result<yinian::Completion> end) {
    using yinian::Finish;
    if (!end) failure_ = as_api(end.error());
    else if (is_full_ || end->finish > Finish::length) failure_ = as_api(is_full_ ? Finish::overrun : end->finish);
    // With several choices each has its own in its last record.
    else if (unread_.size() == 1) unread_[0].finish = end->finish;
    end_ = end ? *end : yinian::Completion();
  }

  boost::asio::steady_timer woken_;
  std::vector<yinian::Choice> unread_;
  std::size_t unread_bytes_ = 0;
  bool is_full_ = false, has_left_ = false;
  std::optional<yinian::Completion> end_;
  std::optional<ApiError> failure_;
};
