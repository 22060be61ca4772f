// OpenAI's answers, whole or in events.
#pragma once

#include "request.hpp"

#include <string>
#include <unordered_map>
#include <vector>

// The model that is served. For one thread.
class Model {
 public:
  explicit Model(const yinian::Engine& engine);
  const std::string& name() const { return name_; }
  // The text of a token, for logprobs.
  const std::string& token(uint32_t id);

 private:
  std::string name_;
  yinian::Tokenizer tokenizer_;
  std::unordered_map<uint32_t, std::string> known_;
};

// Random, behind a prefix.
std::string new_id(const char* prefix);

// Writes the answer to one request: choices in pieces, or as a whole.
class Answer {
 public:
  Answer(Model& model, const Job& job);
  json whole(const std::vector<yinian::Choice>& choices, const yinian::Completion& end);
  // One event: what is new of a choice.
  json piece(uint32_t index, const yinian::Choice& news);
  json usage_event(const yinian::Completion& end) const;

 private:
  json body(json choices) const;
  json choice(uint32_t index, const yinian::Choice& choice);
  json shown(const yinian::Logprobs& of, std::size_t i);
  json chat_logprobs(const yinian::Choice& choice);
  json text_logprobs(uint32_t index, const yinian::Choice& choice);

  Model& model_;
  const Job& job_;
  std::string id_;
  int64_t created_;
  // Of each choice: whether an event has gone out, and characters of its text in those, for text_offset.
  std::vector<bool> begun_;
  std::vector<std::size_t> offsets_;
};
