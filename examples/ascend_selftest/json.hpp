// As much JSON as a report needs: objects and lists of texts that are JSON already, and lists of numbers found in a text.
#ifndef SELFTEST_JSON_HPP
#define SELFTEST_JSON_HPP

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

namespace selftest {

inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    char code[8];
    if (c == '"' || c == '\\') {
      out += '\\', out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      std::snprintf(code, sizeof code, "\\u%04x", c);
      out += code;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

inline std::string number(double x) {
  if (!std::isfinite(x)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", x);
  return text;
}

class Object {
 public:
  // `json` is a JSON value.
  Object& put(const std::string& name, const std::string& json) {
    members_ += (members_.empty() ? "" : ", ") + quoted(name) + ": " + json;
    return *this;
  }
  std::string text() const { return "{" + members_ + "}"; }

 private:
  std::string members_;
};

class List {
 public:
  void add(const Object& object) { items_ += (items_.empty() ? "\n  " : ",\n  ") + object.text(); }
  std::string text() const { return "[" + items_ + "]"; }

 private:
  std::string items_;
};

// The list of numbers that begins behind `at`.
inline std::vector<uint32_t> numbers(const std::string& text, size_t at) {
  at = at == std::string::npos ? at : text.find('[', at);
  const size_t end = text.find(']', at);
  if (at == std::string::npos || end == std::string::npos) throw std::runtime_error("a list of numbers is missing");
  std::vector<uint32_t> found;
  for (size_t i = at + 1; i < end; i++) {
    if (text[i] < '0' || text[i] > '9') continue;
    uint32_t n = 0;
    for (; i < end && text[i] >= '0' && text[i] <= '9'; i++) n = n * 10 + uint32_t(text[i] - '0');
    found.push_back(n);
  }
  return found;
}

}  // namespace selftest

#endif
