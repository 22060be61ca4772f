#include "answer.hpp"

#include <algorithm>
#include <ctime>
#include <random>

namespace {

// U+FFFD: what a token shows of a character that it has a part of.
constexpr std::string_view replacement = "\xEF\xBF\xBD";

std::size_t characters(std::string_view text) {
  return std::size_t(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

json finish_reason(yinian::Finish finish) {
  switch (finish) {
    case yinian::Finish::eos:
    case yinian::Finish::stop: return "stop";
    case yinian::Finish::length: return "length";
    default: return nullptr;
  }
}

json usage(const yinian::Completion& end) {
  return {{"prompt_tokens", end.prompt_tokens},
          {"completion_tokens", end.completion_tokens},
          {"total_tokens", end.prompt_tokens + end.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", end.cached_tokens}}}};
}

}  // namespace

Model::Model(const yinian::Engine& engine)
    : name_(json::parse(engine.info()).at("model").at("name")), tokenizer_(engine.tokenizer()) {}

const std::string& Model::token(uint32_t id) {
  const auto [at, is_new] = known_.try_emplace(id);
  if (is_new) at->second = tokenizer_.decode({id}, YN_DETOKENIZE_SHOW_SPECIAL);
  return at->second;
}

std::string new_id(const char* prefix) {
  static std::random_device random;
  std::string id = prefix;
  for (int i = 0; i < 3; i++) {
    char digits[9];
    std::snprintf(digits, sizeof digits, "%08x", random());
    id += digits;
  }
  return id;
}

Answer::Answer(Model& model, const Job& job)
    : model_(model), job_(job), id_(new_id(job.chat ? "chatcmpl-" : "cmpl-")), created_(std::time(nullptr)), begun_(job.n),
      offsets_(job.n) {}

json Answer::whole(const std::vector<yinian::Choice>& choices, const yinian::Completion& end) {
  json list = json::array();
  for (uint32_t i = 0; i < job_.n; i++) {
    json one = choice(i, choices[i]);
    if (job_.chat) one["message"] = {{"role", "assistant"}, {"content", choices[i].text}};
    list.push_back(std::move(one));
  }
  json all = body(std::move(list));
  all["usage"] = usage(end);
  return all;
}

json Answer::piece(uint32_t index, const yinian::Choice& news) {
  json one = choice(index, news);
  if (job_.chat) {
    one["delta"] = {{"content", news.text}};
    if (!begun_[index]) one["delta"]["role"] = "assistant";
  }
  begun_[index] = true;
  return body(json::array({std::move(one)}));
}

json Answer::usage_event(const yinian::Completion& end) const {
  json all = body(json::array());
  all["usage"] = usage(end);
  return all;
}

json Answer::body(json choices) const {
  const char* object = !job_.chat ? "text_completion" : job_.stream ? "chat.completion.chunk" : "chat.completion";
  json all = {{"id", id_}, {"object", object}, {"created", created_}, {"model", model_.name()}, {"choices", std::move(choices)}};
  if (job_.include_usage) all["usage"] = nullptr;
  return all;
}

// But for the text of a chat.
json Answer::choice(uint32_t index, const yinian::Choice& choice) {
  json one = {{"index", index}, {"finish_reason", finish_reason(choice.finish)}, {"logprobs", nullptr}};
  if (!job_.chat) one["text"] = choice.text;
  if (job_.logprobs) one["logprobs"] = job_.chat ? chat_logprobs(choice) : text_logprobs(index, choice);
  return one;
}

json Answer::shown(const yinian::Logprobs& of, std::size_t i) {
  const std::string& text = model_.token(of[i].token);
  json one = {{"token", text}, {"logprob", of[i].logprob}, {"bytes", nullptr}};
  // A part of a character has no text, and so its bytes are not known either.
  if (text.find(replacement) == std::string::npos) one["bytes"] = std::vector<uint8_t>(text.begin(), text.end());
  return one;
}

json Answer::chat_logprobs(const yinian::Choice& choice) {
  json content = json::array();
  for (std::size_t i = 0; i < choice.tokens.size(); i++) {
    const auto of = choice.logprobs_of(i);
    json one = shown(of, 0);
    one["top_logprobs"] = json::array();
    for (std::size_t k = 1; k < of.size(); k++) one["top_logprobs"].push_back(shown(of, k));
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

json Answer::text_logprobs(uint32_t index, const yinian::Choice& choice) {
  json tokens = json::array(), logprobs = json::array(), tops = json::array(), offsets = json::array();
  std::size_t begin = 0;
  for (std::size_t i = 0; i < choice.tokens.size(); i++) {
    const auto of = choice.logprobs_of(i);
    tokens.push_back(model_.token(of[0].token));
    logprobs.push_back(of[0].logprob);
    offsets.push_back(offsets_[index] + begin);
    begin = characters(std::string_view(choice.text).substr(0, of[0].text_end));
    json top = json::object();
    for (std::size_t k = 1; k < of.size(); k++) top[model_.token(of[k].token)] = of[k].logprob;
    tops.push_back(std::move(top));
  }
  offsets_[index] += characters(choice.text);
  return {{"tokens", std::move(tokens)}, {"token_logprobs", std::move(logprobs)}, {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}
