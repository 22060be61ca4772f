// Records viewed in a poll buffer: nothing is copied. Part of yinian.hpp.
#ifndef YINIAN_EVENT_HPP
#define YINIAN_EVENT_HPP

#include "result.hpp"

#include <vector>

YINIAN_NAMESPACE_BEGIN

// Values inside a poll buffer or a vector.
template <class T>
struct Span {
  const T* first = nullptr;
  std::size_t count = 0;
  [[nodiscard]] const T* begin() const noexcept { return first; }
  [[nodiscard]] const T* end() const noexcept { return first + count; }
  [[nodiscard]] const T* data() const noexcept { return first; }
  [[nodiscard]] std::size_t size() const noexcept { return count; }
  [[nodiscard]] bool empty() const noexcept { return count == 0; }
  [[nodiscard]] const T& operator[](std::size_t i) const noexcept { return first[i]; }
};
using Tokens = Span<uint32_t>;
using Logprobs = Span<yn_logprob>;

// A record, viewed in the poll buffer: good until the buffer is polled into again or goes away. Skip kinds you do not know.
class Event {
 public:
  explicit Event(const yn_event* raw) noexcept : raw_(raw) {}
  [[nodiscard]] const yn_event& raw() const noexcept { return *raw_; }
  [[nodiscard]] bool is_output() const noexcept { return raw_->kind == YN_EV_OUTPUT; }
  [[nodiscard]] bool is_done() const noexcept { return raw_->kind == YN_EV_DONE; }
  // Logprobs of the prompt; see Request::prompt_logprobs.
  [[nodiscard]] bool is_prompt() const noexcept { return raw_->kind == YN_EV_PROMPT; }
  // Progress of loading, or a change of state.
  [[nodiscard]] bool is_engine() const noexcept { return raw_->kind == YN_EV_ENGINE; }
  [[nodiscard]] bool is_log() const noexcept { return raw_->kind == YN_EV_LOG; }

  [[nodiscard]] yn_request_id request_id() const noexcept { return raw_->request_id; }
  [[nodiscard]] uint64_t user_data() const noexcept { return raw_->user_data; }
  // Which of the request's choices, from 0 on.
  [[nodiscard]] uint32_t choice() const noexcept { return raw_->choice; }
  // Other than ok: why a DONE failed.
  [[nodiscard]] Status status() const noexcept { return static_cast<Status>(raw_->status); }
  // Of a DONE, and of several choices of the last output of each.
  [[nodiscard]] Finish finish() const noexcept { return is_engine() ? Finish::none : static_cast<Finish>(raw_->finish); }
  // Whole code points; of a failed DONE, an engine's and a log's record the message.
  [[nodiscard]] std::string_view text() const noexcept { return {base() + raw_->text_off, raw_->text_len}; }
  // With YN_OUT_TOKENS or logprobs.
  [[nodiscard]] Tokens tokens() const noexcept {
    if (!is_output() && !is_prompt()) return {};
    return {reinterpret_cast<const uint32_t*>(base() + raw_->tokens_off), raw_->n_tokens};
  }

  // All of the record, token after token.
  [[nodiscard]] Logprobs logprobs() const noexcept {
    return {reinterpret_cast<const yn_logprob*>(base() + raw_->logprobs_off), raw_->n_logprobs};
  }
  // Of token `i` of the record: its own first, then the most probable ones. Empty when the record has none.
  [[nodiscard]] Logprobs logprobs_of(std::size_t i) const noexcept {
    if (raw_->n_logprobs == 0) return {};
    const std::size_t each = raw_->n_logprobs / raw_->n_tokens;
    return {logprobs().first + i * each, each};
  }
  // The part of the text that token `i` of an output with logprobs brought; empty for a part of a character.
  [[nodiscard]] std::string_view text_of(std::size_t i) const noexcept {
    if (raw_->n_logprobs == 0 || !is_output()) return {};
    const std::size_t from = i == 0 ? 0 : logprobs_of(i - 1)[0].text_end;
    return text().substr(from, logprobs_of(i)[0].text_end - from);
  }

  // Of an engine's record.
  [[nodiscard]] State state() const noexcept { return static_cast<State>(raw_->finish); }
  [[nodiscard]] uint32_t progress_permille() const noexcept { return is_engine() ? raw_->n_tokens : 0; }
  // Of a log's record.
  [[nodiscard]] LogLevel log_level() const noexcept { return static_cast<LogLevel>(is_log() ? raw_->flags : 0); }

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

YINIAN_NAMESPACE_END

#endif
