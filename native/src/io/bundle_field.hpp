// What readers of a plan share: a JSON value that knows the way to it, and what a plan holds besides its parts.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "io/bundle.hpp"
#include "io/json.hpp"
#include "plan/manifest.hpp"
#include "plan/network.hpp"

namespace fracskip {

inline constexpr int kMaxExtent = 65535;  // channels, kernels, strides, paddings, classes, widths
inline constexpr std::size_t kMaxParts = 4096;
inline constexpr std::size_t kMaxExecutions = std::size_t{1} << 18;  // operations times options

// A JSON value and the way to it, for messages.
class Field {
 public:
  Field(const Json& json, std::string where) : json_(&json), where_(std::move(where)) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw BundleError("plan: " + (where_.empty() ? "" : where_ + " ") + what);
  }

  // An object with these members, and perhaps those.
  void members(std::initializer_list<const char*> needed,
               std::initializer_list<const char*> optional = {}) const {
    const Json::Object* object = json_->object();
    if (!object) fail("must be an object");
    for (const char* key : needed) {
      if (!json_->find(key)) fail(std::string("lacks '") + key + "'");
    }
    for (const auto& member : *object) {
      const auto is_member = [&](const char* key) { return member.first == key; };
      if (std::none_of(needed.begin(), needed.end(), is_member) &&
          std::none_of(optional.begin(), optional.end(), is_member)) {
        fail("has an unknown member " + quoted(member.first));
      }
    }
  }

  bool has(const char* key) const { return json_->find(key) != nullptr; }

  Field operator[](const char* key) const {
    const Json* found = json_->find(key);
    if (!found) fail(std::string("lacks '") + key + "'");
    return Field(*found, where_.empty() ? key : where_ + "." + key);
  }

  std::vector<Field> items() const {
    const Json::Array* array = json_->array();
    if (!array) fail("must be a list");
    std::vector<Field> out;
    out.reserve(array->size());
    for (std::size_t i = 0; i < array->size(); ++i) {
      out.emplace_back((*array)[i], where_ + "[" + std::to_string(i) + "]");
    }
    return out;
  }

  bool is_null() const { return json_->is_null(); }
  bool is_object() const { return json_->object() != nullptr; }

  bool flag() const {
    const bool* found = json_->boolean();
    if (!found) fail("must be true or false");
    return *found;
  }

  const std::string& text() const {
    const std::string* found = json_->string();
    if (!found) fail("must be a string");
    return *found;
  }

  double number() const {
    const auto found = json_->number();
    if (!found) fail("must be a number");
    return *found;
  }

  // Up to 2^53.
  std::int64_t whole(std::int64_t low, std::int64_t high) const {
    const auto found = json_->integer();
    if (!found || *found < low || *found > high) {
      fail("must be an integer from " + std::to_string(low) + " to " + std::to_string(high));
    }
    return *found;
  }

  int integer(int low, int high) const { return static_cast<int>(whole(low, high)); }

  std::pair<int, int> pair(int low, int high) const {
    const auto both = integers<2>(low, high, "must be two integers");
    return {both[0], both[1]};
  }

  template <std::size_t Count>
  std::array<int, Count> integers(int low, int high, const char* otherwise) const {
    const std::vector<Field> found = items();
    if (found.size() != Count) fail(otherwise);
    std::array<int, Count> values;
    std::transform(found.begin(), found.end(), values.begin(), [&](const Field& item) { return item.integer(low, high); });
    return values;
  }

 private:
  const Json* json_;
  std::string where_;
};

inline constexpr int kOldestPlanVersion = 3, kPlanVersion = 4;  // of plans

// Until version 3, a window's padding was that of both sides: height, width.
Window read_window(const Field& field, int version);

// Options in ascending order, as bits; not skip alone.
std::vector<int> read_options(const Field& field);
int read_executed(const Field& field);  // one that is not skip

void read_image(const Field& field, Network& network);
bool read_gate(const Field& field, Network& network);  // after the options; whether it takes a budget
OperatingPoints read_operating_points(const Field& field, bool gated);
void read_texts(const Field& root, const Network& network);  // after the classes

}  // namespace fracskip
