#include "io/json.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <locale>
#include <sstream>
#include <system_error>

namespace fracskip {
namespace {

// Bytes of the UTF-8 sequence at the start of `text`; 0 if there is none (RFC 3629).
std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto follows = [&](std::size_t i) { return (byte(i) & 0xC0u) == 0x80u; };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4 || !follows(1)) return 0;
  if (first < 0xE0) return 2;
  if (!follows(2)) return 0;
  // Neither overlong nor a surrogate.
  if (first < 0xF0) {
    if ((first == 0xE0 && byte(1) < 0xA0) || (first == 0xED && byte(1) > 0x9F)) return 0;
    return 3;
  }
  if ((first == 0xF0 && byte(1) < 0x90) || (first == 0xF4 && byte(1) > 0x8F)) return 0;
  return follows(3) ? 4 : 0;
}

void append_utf8(std::string& out, std::uint32_t code) {
  const auto put = [&](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | (code >> 6));
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | (code >> 12));
    put(0x80 | ((code >> 6) & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | (code >> 18));
    put(0x80 | ((code >> 12) & 0x3F));
    put(0x80 | ((code >> 6) & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

class Parser {
 public:
  Parser(std::string_view text, const JsonLimits& limits) : text_(text), limits_(limits) {}

  Json document() {
    Json root = value(0);
    skip_space();
    if (at_ < text_.size()) fail("text after the value");
    return root;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw JsonError("JSON, byte " + std::to_string(at_) + ": " + what);
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool take(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!take(c)) fail(std::string("expected '") + c + "'");
  }

  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' ||
                                  text_[at_] == '\t')) {
      ++at_;
    }
  }

  bool take_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json value(int depth) {
    if (++values_ > limits_.values) fail("too many values");
    skip_space();
    Json json;
    switch (peek()) {
      case '{': json.value = object(depth); break;
      case '[': json.value = array(depth); break;
      case '"': json.value = string(); break;
      case 't':
      case 'f':
        if (take_word("true")) {
          json.value = true;
        } else if (take_word("false")) {
          json.value = false;
        } else {
          fail("expected a value");
        }
        break;
      case 'n':
        if (!take_word("null")) fail("expected a value");
        break;
      default: json.value = number();
    }
    return json;
  }

  Json::Array array(int depth) {
    if (depth >= limits_.depth) fail("nested too deeply");
    expect('[');
    Json::Array items;
    skip_space();
    if (take(']')) return items;
    do {
      items.push_back(value(depth + 1));
      skip_space();
    } while (take(','));
    expect(']');
    return items;
  }

  Json::Object object(int depth) {
    if (depth >= limits_.depth) fail("nested too deeply");
    expect('{');
    Json::Object members;
    skip_space();
    if (take('}')) return members;
    do {
      skip_space();
      std::string key = string();
      skip_space();
      expect(':');
      members.emplace_back(std::move(key), value(depth + 1));
      skip_space();
    } while (take(','));
    expect('}');
    refuse_duplicates(members);
    return members;
  }

  void refuse_duplicates(const Json::Object& members) const {
    std::vector<std::string_view> keys;
    keys.reserve(members.size());
    for (const auto& member : members) keys.push_back(member.first);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) fail("the object before has the key " + quoted(*twice) + " twice");
  }

  std::string string() {
    expect('"');
    std::string out;
    while (true) {
      if (at_ >= text_.size()) fail("a string has no end");
      const char c = text_[at_];
      if (c == '"') {
        ++at_;
        return out;
      }
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
      if (c == '\\') {
        ++at_;
        escape(out);
        continue;
      }
      const std::size_t length = utf8_length(text_.substr(at_, 4));
      if (length == 0) fail("invalid UTF-8");
      out.append(text_, at_, length);
      at_ += length;
    }
  }

  void escape(std::string& out) {
    static constexpr std::string_view kNames = "\"\\/bfnrt";
    static constexpr std::string_view kValues = "\"\\/\b\f\n\r\t";
    const std::size_t index = kNames.find(peek());
    if (at_ < text_.size() && index != std::string_view::npos) {
      out.push_back(kValues[index]);
      ++at_;
      return;
    }
    if (!take('u')) fail("unknown escape");
    std::uint32_t code = four_hex();
    if (code >= 0xDC00 && code < 0xE000) fail("half a surrogate pair");
    if (code >= 0xD800 && code < 0xDC00) {
      if (!take_word("\\u")) fail("half a surrogate pair");
      const std::uint32_t low = four_hex();
      if (low < 0xDC00 || low >= 0xE000) fail("half a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(out, code);
  }

  std::uint32_t four_hex() {
    std::uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = peek();
      std::uint32_t digit;
      if (is_digit(c)) {
        digit = static_cast<std::uint32_t>(c - '0');
      } else if (c >= 'a' && c <= 'f') {
        digit = static_cast<std::uint32_t>(c - 'a' + 10);
      } else if (c >= 'A' && c <= 'F') {
        digit = static_cast<std::uint32_t>(c - 'A' + 10);
      } else {
        fail("expected four hexadecimal digits");
      }
      code = code * 16 + digit;
      ++at_;
    }
    return code;
  }

  void digits() {
    if (!is_digit(peek())) fail(at_ < text_.size() ? "expected a value" : "the text ends early");
    while (is_digit(peek())) ++at_;
  }

  Json::Number number() {
    const std::size_t begin = at_;
    Json::Number out;
    out.whole = true;
    take('-');
    if (!take('0')) digits();
    if (take('.')) {
      out.whole = false;
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      out.whole = false;
      ++at_;
      if (!take('+')) take('-');
      digits();
    }
    // Not strtod: that follows the process's locale.
    const auto result = std::from_chars(text_.data() + begin, text_.data() + at_, out.value);
    if (result.ec == std::errc::result_out_of_range) {
      out.value = extreme(text_.substr(begin, at_ - begin));
    }
    if (result.ptr != text_.data() + at_ || std::isinf(out.value)) {
      at_ = begin;
      fail("a number out of range");
    }
    if (out.whole) out.value += 0.0;  // -0 is the integer 0
    return out;
  }

  // The nearest double of a number that from_chars calls too large or too small: infinity, or zero and what is next to it.
  static double extreme(std::string_view number) {
    std::istringstream in{std::string(number)};
    in.imbue(std::locale::classic());
    double value = 0.0;
    return in >> value ? value : std::numeric_limits<double>::infinity();
  }

  std::string_view text_;
  JsonLimits limits_;
  std::size_t at_ = 0;
  std::size_t values_ = 0;
};

}  // namespace

std::optional<double> Json::number() const {
  const Number* found = std::get_if<Number>(&value);
  return found ? std::optional<double>(found->value) : std::nullopt;
}

std::optional<std::int64_t> Json::integer() const {
  constexpr double kExact = 9007199254740992.0;  // 2^53
  const Number* found = std::get_if<Number>(&value);
  if (!found || !found->whole || std::fabs(found->value) > kExact) return std::nullopt;
  return static_cast<std::int64_t>(found->value);
}

const Json* Json::find(std::string_view key) const {
  if (const Object* members = object()) {
    for (const auto& member : *members) {
      if (member.first == key) return &member.second;
    }
  }
  return nullptr;
}

Json parse_json(std::string_view text, const JsonLimits& limits) {
  return Parser(text, limits).document();
}

std::string quoted(std::string_view text) {
  constexpr std::size_t kLongest = 60;
  std::string out = "'";
  for (char c : text.substr(0, kLongest)) out.push_back(c >= 0x20 && c < 0x7F ? c : '?');
  return out + (text.size() > kLongest ? "...'" : "'");
}

}  // namespace fracskip
