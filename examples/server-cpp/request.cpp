#include "request.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <set>
#include <string_view>
#include <vector>

namespace {

constexpr int max_depth = 200;
constexpr std::string_view common[] = {
    "model",         "stream", "stream_options", "n",     "max_tokens",         "stop",       "seed",      "temperature", "top_p",
    "presence_penalty", "frequency_penalty", "logit_bias", "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos",
};

ApiError invalid(std::optional<std::string> param, std::string message) {
  return {400, std::move(message), "invalid_request_error", std::move(param)};
}

ApiError wrong_type(const std::string& name, const json& value, const char* expected) {
  return invalid(name, "field \"" + name + "\" is a JSON " + value.type_name() + "; expected " + expected);
}

json parse_object(const std::string& body) {
  const auto shallow = [](int depth, json::parse_event_t, json&) {
    if (depth > max_depth) throw invalid({}, "the JSON is nested deeper than " + std::to_string(max_depth));
    return true;
  };
  try {
    json parsed = json::parse(body, shallow);
    if (parsed.is_object()) return parsed;
    throw invalid({}, std::string("the body is not a JSON object: it is a JSON ") + parsed.type_name());
  } catch (const json::exception& e) {
    throw invalid({}, std::string("the body is not a JSON object: ") + e.what());
  }
}

// The fields of a request by name; null is as good as absent.
class Fields {
 public:
  Fields(const std::string& body, std::initializer_list<std::string_view> own) : all_(parse_object(body)) {
    std::set<std::string_view> known(own);
    known.insert(std::begin(common), std::end(common));
    for (const auto& [name, value] : all_.items()) {
      if (known.count(name) == 0 && !value.is_null()) {
        throw invalid(name, "field \"" + name + "\" is unknown, or not supported by this server");
      }
    }
  }

  const json* find(const std::string& name) const {
    const auto at = all_.find(name);
    return at == all_.end() || at->is_null() ? nullptr : &*at;
  }
  bool flag(const std::string& name) const {
    const json* v = find(name);
    if (v != nullptr && !v->is_boolean()) throw wrong_type(name, *v, "a boolean");
    return v != nullptr && v->get<bool>();
  }
  std::string text(const std::string& name) const {
    const json* v = find(name);
    if (v != nullptr && !v->is_string()) throw wrong_type(name, *v, "a string");
    return v == nullptr ? "" : v->get<std::string>();
  }
  std::optional<float> number(const std::string& name) const {
    const json* v = find(name);
    if (v == nullptr) return {};
    if (!v->is_number()) throw wrong_type(name, *v, "a number");
    return v->get<float>();
  }
  std::optional<int64_t> integer(const std::string& name, int64_t from, int64_t to) const {
    const json* v = find(name);
    if (v == nullptr) return {};
    if (!v->is_number_integer()) throw wrong_type(name, *v, "an integer");
    const bool big = v->is_number_unsigned() && v->get<uint64_t>() > uint64_t(std::numeric_limits<int64_t>::max());
    if (big || v->get<int64_t>() < from || v->get<int64_t>() > to) {
      throw invalid(name, name + " is " + v->dump() + "; expected " + std::to_string(from) + " to " + std::to_string(to));
    }
    return v->get<int64_t>();
  }
  std::optional<uint32_t> count(const std::string& name, uint32_t from = 0, uint32_t to = 0x7fffffff) const {
    const auto n = integer(name, from, to);
    return n ? std::optional(uint32_t(*n)) : std::nullopt;
  }

 private:
  json all_;
};

std::optional<std::vector<std::string>> strings(const json& v) {
  if (!v.is_array() || !std::all_of(v.begin(), v.end(), [](const json& s) { return s.is_string(); })) return {};
  return v.get<std::vector<std::string>>();
}

std::optional<std::vector<uint32_t>> token_ids(const json& v) {
  const auto is_id = [](const json& n) { return n.is_number_unsigned() && n.get<uint64_t>() <= 0xffffffff; };
  if (!v.is_array() || !std::all_of(v.begin(), v.end(), is_id)) return {};
  return v.get<std::vector<uint32_t>>();
}

// Whether the stream ends with the usage.
bool stream_options(const Fields& fields) {
  const json* options = fields.find("stream_options");
  if (options == nullptr) return false;
  if (!options->is_object()) throw invalid("stream_options", "stream_options is not an object");
  bool usage = false;
  for (const auto& [name, value] : options->items()) {
    if (name != "include_usage") {
      throw invalid("stream_options." + name,
                    "field \"" + name + "\" of stream_options is unknown, or not supported by this server");
    }
    if (!value.is_boolean() && !value.is_null()) throw wrong_type("stream_options.include_usage", value, "a boolean");
    usage = value.is_boolean() && value.get<bool>();
  }
  if (!fields.flag("stream")) throw invalid("stream_options", "stream_options is given, but stream is not true");
  return usage;
}

void sampling(const Fields& fields, yinian::Request& r) {
  if (const auto v = fields.number("temperature")) r.temperature(*v);
  if (const auto v = fields.number("top_p")) r.top_p(*v);
  if (const auto v = fields.number("min_p")) r.min_p(*v);
  if (const auto v = fields.number("presence_penalty")) r.presence_penalty(*v);
  if (const auto v = fields.number("frequency_penalty")) r.frequency_penalty(*v);
  if (const auto v = fields.number("repetition_penalty")) r.repetition_penalty(*v);
  if (const auto v = fields.integer("top_k", INT32_MIN, INT32_MAX)) r.top_k(int32_t(*v));
  if (const auto v = fields.integer("seed", INT64_MIN, INT64_MAX)) r.seed(uint64_t(*v));
  if (const auto v = fields.count("min_tokens")) r.min_tokens(*v);
  if (const auto v = fields.count("max_tokens")) r.max_tokens(*v);
  if (fields.flag("ignore_eos")) r.flags(YN_REQ_IGNORE_EOS);
  if (const json* bias = fields.find("logit_bias")) r.extra_json(json{{"logit_bias", *bias}}.dump());
  if (const json* stop = fields.find("stop")) {
    auto texts = stop->is_string() ? std::vector{stop->get<std::string>()} : strings(*stop);
    if (!texts) throw invalid("stop", "stop is not a string or a list of strings");
    r.stop_texts(*std::move(texts));
  }
}

// What both endpoints have in common.
Job job_of(const Fields& fields, yinian::Request request, bool chat, const std::string& model) {
  Job job{std::move(request), chat};
  job.include_usage = stream_options(fields);
  job.stream = fields.flag("stream");
  job.n = fields.count("n", 1, 128).value_or(1);
  sampling(fields, job.request.n(job.n).output(YN_OUT_TEXT | (job.stream ? 0 : YN_OUT_FINAL_ONLY)));
  const std::string asked = fields.text("model");
  if (!asked.empty() && asked != model) {
    throw ApiError{404, "model \"" + asked + "\" is not served here; this is \"" + model + "\"", "invalid_request_error", "model",
                   "model_not_found"};
  }
  return job;
}

yinian::Request prompt_of(const Fields& fields) {
  if (const json* prompt = fields.find("prompt")) {
    if (prompt->is_string()) return yinian::Request::text(prompt->get<std::string>());
    if (auto ids = token_ids(*prompt)) return yinian::Request::tokens(*std::move(ids));
    if (auto list = strings(*prompt); list && list->size() == 1) return yinian::Request::text(list->front());
  }
  throw invalid("prompt", "prompt is missing, or is not one prompt: a string or a list of token ids");
}

}  // namespace

json ApiError::body() const {
  const auto text = [](const std::optional<std::string>& s) { return s ? json(*s) : json(nullptr); };
  return {{"error", {{"message", message}, {"type", type}, {"param", text(param)}, {"code", text(code)}}}};
}

ApiError unavailable(std::string message) { return {503, std::move(message), "server_error"}; }

ApiError as_api(const yinian::Error& error) {
  using yinian::Status;
  switch (error.status()) {
    case Status::invalid:
    case Status::unsupported: return {400, error.what()};
    case Status::busy: return {429, error.what(), "rate_limit_error", {}, "queue_full"};
    case Status::shutdown:
    case Status::bad_handle: return unavailable(error.what());
    default: return {500, error.what(), "server_error"};
  }
}

ApiError as_api(yinian::Finish finish) {
  switch (finish) {
    case yinian::Finish::cancelled: return unavailable("the request was cancelled");
    case yinian::Finish::deadline: return {504, "the request's time is over", "timeout_error", {}, "deadline_exceeded"};
    default: return {500, "the answer was not read fast enough", "server_error"};
  }
}

Job parse_chat(const std::string& body, const std::string& model) {
  const Fields fields(body, {"messages", "max_completion_tokens", "logprobs", "top_logprobs"});
  const json* messages = fields.find("messages");
  if (messages == nullptr) throw invalid("messages", "messages is missing");
  Job job = job_of(fields, yinian::Request::chat(json{{"messages", *messages}}.dump()), true, model);
  if (const auto most = fields.count("max_completion_tokens")) {
    if (fields.count("max_tokens").value_or(*most) != *most) {
      throw invalid("max_tokens", "max_tokens and max_completion_tokens are both given, and differ");
    }
    job.request.max_tokens(*most);
  }
  const auto top = fields.count("top_logprobs", 0, 20);
  if (top && !fields.flag("logprobs")) throw invalid("top_logprobs", "top_logprobs is given, but logprobs is not true");
  if (fields.flag("logprobs")) job.request.logprobs(*(job.logprobs = top.value_or(0)));
  return job;
}

Job parse_completion(const std::string& body, const std::string& model) {
  const Fields fields(body, {"prompt", "logprobs"});
  Job job = job_of(fields, prompt_of(fields), false, model);
  if (!fields.find("max_tokens")) job.request.max_tokens(16);  // OpenAI's default
  if ((job.logprobs = fields.count("logprobs", 0, 20))) job.request.logprobs(*job.logprobs);
  return job;
}
