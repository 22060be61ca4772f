// OpenAI's requests and errors.
#pragma once

#include <nlohmann/json.hpp>
#include <yinian.hpp>

#include <cstdint>
#include <optional>
#include <string>

using json = nlohmann::json;

// A failure in OpenAI's shape.
struct ApiError {
  using Text = std::optional<std::string>;
  ApiError(int status, std::string message, std::string type = "invalid_request_error", Text param = {}, Text code = {})
      : status(status), message(std::move(message)), type(std::move(type)), param(std::move(param)), code(std::move(code)) {}

  int status;
  std::string message, type;
  Text param, code;

  json body() const;
};

// In HTTP, what the engine said; how a request ended early; that there is nobody to serve it.
ApiError as_api(const yinian::Error& error);
ApiError as_api(yinian::Finish finish);
ApiError unavailable(std::string message);

// A request as the engine takes it, with how its answer is to be written.
struct Job {
  yinian::Request request;
  bool chat, stream = false, include_usage = false;
  uint32_t n = 1;
  std::optional<uint32_t> logprobs = std::nullopt;
};

// Of a body; `model` is the name that is served. A field that would have no effect is refused by name. Throw an ApiError.
Job parse_chat(const std::string& body, const std::string& model);
Job parse_completion(const std::string& body, const std::string& model);
