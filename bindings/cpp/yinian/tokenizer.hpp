// Text to token ids and back. Part of yinian.hpp.
#ifndef YINIAN_TOKENIZER_HPP
#define YINIAN_TOKENIZER_HPP

#include "event.hpp"

YINIAN_NAMESPACE_BEGIN

// A tokenizer with its chat template. It outlives the engine it came from.
class Tokenizer {
 public:
  // `path`: a model directory or a tokenizer.json.
  static Result<Tokenizer> try_open(std::string_view path) {
    if (auto r = detail::check_version(); !r) return r.error();
    yn_tokenizer t{};
    yn_error e{};
    if (auto r = detail::check(yn_tokenizer_open(detail::bytes(path), &t, &e), e); !r) return r.error();
    return Tokenizer(t.id);
  }
  // `flags`: YN_TOKENIZE_*.
  Result<std::vector<uint32_t>> try_encode(std::string_view text, uint32_t flags = 0) const {
    std::vector<uint32_t> ids(text.size() + 8);
    for (;;) {
      std::size_t n = ids.size();
      yn_error e{};
      const yn_status status = yn_tokenize({handle_.id()}, detail::bytes(text), flags, ids.data(), &n, &e);
      const bool grow = status == YN_E_TOO_SMALL && n > ids.size();
      if (auto r = detail::check(status, e); !r && !grow) return r.error();
      ids.resize(n);
      if (!grow) return ids;
    }
  }
  // `flags`: YN_DETOKENIZE_*.
  Result<std::string> try_decode(Tokens ids, uint32_t flags = 0) const {
    return detail::take([&](yn_buf* out, yn_error* e) {
      return yn_detokenize({handle_.id()}, ids.data(), ids.size(), flags, out, e);
    });
  }
  Result<std::string> try_decode(const std::vector<uint32_t>& ids, uint32_t flags = 0) const {
    return try_decode(Tokens{ids.data(), ids.size()}, flags);
  }
  // The text that {"messages": [...], ...} becomes before it is tokenized.
  Result<std::string> try_render_chat(std::string_view chat_json) const {
    return detail::take(
        [&](yn_buf* out, yn_error* e) { return yn_chat_render({handle_.id()}, detail::bytes(chat_json), out, e); });
  }
#if defined(__cpp_exceptions)
  [[nodiscard]] static Tokenizer open(std::string_view path) { return try_open(path).value(); }
  [[nodiscard]] std::vector<uint32_t> encode(std::string_view text, uint32_t flags = 0) const {
    return try_encode(text, flags).value();
  }
  [[nodiscard]] std::string decode(Tokens ids, uint32_t flags = 0) const { return try_decode(ids, flags).value(); }
  [[nodiscard]] std::string decode(const std::vector<uint32_t>& ids, uint32_t flags = 0) const {
    return try_decode(ids, flags).value();
  }
  [[nodiscard]] std::string render_chat(std::string_view chat_json) const { return try_render_chat(chat_json).value(); }
#endif

 private:
  friend class Engine;
  explicit Tokenizer(uint64_t id) noexcept : handle_(id) {}
  detail::Handle<detail::retire_tokenizer> handle_;
};

YINIAN_NAMESPACE_END

#endif
