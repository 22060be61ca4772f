// What to generate. Part of yinian.hpp.
#ifndef YINIAN_REQUEST_HPP
#define YINIAN_REQUEST_HPP

#include "result.hpp"

#include <optional>
#include <vector>

YINIAN_NAMESPACE_BEGIN

// A request. What is not set takes the model's defaults; ranges are those of yn_request in yinian.h. Owns its texts, so it may
// be kept and submitted any number of times.
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
  // YN_OUT_* and YN_REQ_*, or-ed; seed(), logprobs() and prompt_logprobs() add bits of their own.
  YINIAN_SETTER(uint32_t, output) YINIAN_SETTER(uint32_t, flags) YINIAN_SETTER(uint64_t, user_data)
  YINIAN_SETTER(uint32_t, n) YINIAN_SETTER(uint32_t, max_tokens) YINIAN_SETTER(uint32_t, min_tokens)
  YINIAN_SETTER(float, temperature) YINIAN_SETTER(float, top_p) YINIAN_SETTER(float, min_p) YINIAN_SETTER(int32_t, top_k)
  YINIAN_SETTER(float, repetition_penalty) YINIAN_SETTER(float, presence_penalty) YINIAN_SETTER(float, frequency_penalty)
  YINIAN_SETTER(uint64_t, seed)
  // Logprobs of each token of the output, or of the prompt, with as many of the most probable ones beside it, 0 to 20.
  YINIAN_SETTER(uint32_t, logprobs) YINIAN_SETTER(uint32_t, prompt_logprobs)
  YINIAN_SETTER(std::vector<std::string>, stop_texts) YINIAN_SETTER(std::vector<uint32_t>, stop_tokens)
  YINIAN_SETTER(int32_t, priority) YINIAN_SETTER(uint32_t, timeout_ms)
  YINIAN_SETTER(uint32_t, ttft_slo_ms) YINIAN_SETTER(uint32_t, tpot_slo_ms)
  YINIAN_SETTER(std::string, cache_salt) YINIAN_SETTER(std::string, extra_json)
#undef YINIAN_SETTER

  // For use with yinian.h: fills `r`, which yn_request_init has seen, with pointers into this request and `stops`.
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
    set(r.output, output_), set(r.flags, flags_), set(r.user_data, user_data_), set(r.seed, seed_), set(r.n, n_);
    set(r.max_tokens, max_tokens_), set(r.min_tokens, min_tokens_);
    set(r.temperature, temperature_), set(r.top_p, top_p_), set(r.min_p, min_p_), set(r.top_k, top_k_);
    set(r.repetition_penalty, repetition_penalty_), set(r.presence_penalty, presence_penalty_);
    set(r.frequency_penalty, frequency_penalty_), set(r.priority, priority_), set(r.timeout_ms, timeout_ms_);
    set(r.ttft_slo_ms, ttft_slo_ms_), set(r.tpot_slo_ms, tpot_slo_ms_);
    set(r.n_logprobs, logprobs_), set(r.n_prompt_logprobs, prompt_logprobs_);
    if (seed_) r.flags |= YN_REQ_SEEDED;
    if (logprobs_) r.output |= YN_OUT_LOGPROBS;
    if (prompt_logprobs_) r.output |= YN_OUT_PROMPT_LOGPROBS;
    for (const std::string& s : stop_texts_) stops.push_back(detail::bytes(s));
    r.stop_texts = stops.data();
    r.n_stop_texts = stops.size();
    r.stop_tokens = stop_tokens_.data();
    r.n_stop_tokens = stop_tokens_.size();
    r.cache_salt = detail::bytes(cache_salt_);
    r.extra_json = detail::bytes(extra_json_);
  }

 private:
  enum class Kind { text, chat, tokens };
  Request(Kind kind, std::string prompt) : kind_(kind), prompt_(std::move(prompt)) {}

  Kind kind_;
  std::string prompt_, cache_salt_, extra_json_;
  std::vector<uint32_t> ids_, stop_tokens_;
  std::vector<std::string> stop_texts_;
  std::optional<uint32_t> output_, flags_, n_, max_tokens_, min_tokens_, timeout_ms_, ttft_slo_ms_, tpot_slo_ms_;
  std::optional<uint32_t> logprobs_, prompt_logprobs_;
  std::optional<uint64_t> user_data_, seed_;
  std::optional<float> temperature_, top_p_, min_p_, repetition_penalty_, presence_penalty_, frequency_penalty_;
  std::optional<int32_t> top_k_, priority_;
};

namespace detail {
// What the wrapper adds to a request: bits of `output`, and its own user_data.
struct Extra {
  uint32_t output = 0;
  std::optional<uint64_t> user_data;
};

inline Result<yn_request_id> submit(yn_engine engine, const Request& request, yn_queue queue, const Extra& extra = {}) {
  yn_request r{};
  if (auto ok = check(yn_request_init(engine, &r, sizeof r)); !ok) return ok.error();
  std::vector<yn_bytes> stops;
  request.fill(r, stops);
  r.output |= extra.output;
  r.user_data = extra.user_data.value_or(r.user_data);
  r.queue = queue;
  yn_request_id id = 0;
  yn_error e{};
  if (auto ok = check(yn_engine_submit(engine, &r, &id, &e), e); !ok) return ok.error();
  return id;
}
}  // namespace detail

YINIAN_NAMESPACE_END

#endif
