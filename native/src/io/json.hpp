// A strict reader of JSON (RFC 8259) for input that nobody vouches for: valid UTF-8 only, no key
// twice in an object, bounded depth and number of values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace fracskip {

struct JsonError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // in the text's order

  struct Number {
    double value = 0.0;
    bool whole = false;  // written without fraction and exponent
  };

  std::variant<std::nullptr_t, bool, Number, std::string, Array, Object> value = nullptr;

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value); }
  const bool* boolean() const { return std::get_if<bool>(&value); }
  const std::string* string() const { return std::get_if<std::string>(&value); }
  const Array* array() const { return std::get_if<Array>(&value); }
  const Object* object() const { return std::get_if<Object>(&value); }
  std::optional<double> number() const;

  // Whole numbers that a double holds exactly: up to 2^53.
  std::optional<std::int64_t> integer() const;

  // A member of an object; null where there is none.
  const Json* find(std::string_view key) const;
};

struct JsonLimits {
  int depth = 64;
  std::size_t values = std::size_t{1} << 19;
};

// Throws JsonError, which says where.
Json parse_json(std::string_view text, const JsonLimits& limits = {});

// Text for a message: cut short, and without characters that could disturb a terminal.
std::string quoted(std::string_view text);

}  // namespace fracskip
