#include "io/safetensors.hpp"

#include <algorithm>
#include <string_view>
#include <utility>

#include "io/json.hpp"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tensors are read as little-endian"
#endif

namespace fracskip {
namespace {

constexpr std::size_t kPrefixBytes = 8;
constexpr std::size_t kMaxRank = 8;

struct Span {
  std::int64_t begin = 0, end = 0;
};

[[noreturn]] void fail(const std::string& what) { throw SafetensorsError(what); }

[[noreturn]] void fail_at(std::string_view tensor, const std::string& what) {
  fail("tensor " + quoted(tensor) + " " + what);
}

TensorType read_type(std::string_view name, const Json* json) {
  const std::string* text = json ? json->string() : nullptr;
  if (!text) fail_at(name, "has no dtype");
  if (*text == "F32") return TensorType::f32;
  if (*text == "I8") return TensorType::i8;
  fail_at(name, "has dtype " + quoted(*text) + ", known are F32 and I8");
}

std::vector<std::int64_t> read_integers(std::string_view name, const Json* json, const char* key) {
  const Json::Array* items = json ? json->array() : nullptr;
  if (!items || items->size() > kMaxRank) fail_at(name, std::string("has no valid ") + key);
  std::vector<std::int64_t> out;
  for (const Json& item : *items) {
    const auto integer = item.integer();
    if (!integer || *integer < 0) fail_at(name, std::string("has no valid ") + key);
    out.push_back(*integer);
  }
  return out;
}

std::size_t count_elements(std::string_view name, const std::vector<std::int64_t>& shape) {
  std::int64_t elements = 1;
  for (std::int64_t extent : shape) {
    // A zero anywhere makes the product zero; until then it must not overflow.
    if (extent > kMaxElements || elements * extent > kMaxElements) {
      fail_at(name, "has more than 2^31 elements");
    }
    elements *= extent;
  }
  return static_cast<std::size_t>(elements);
}

std::map<std::string, std::string> read_metadata(const Json& json) {
  const Json::Object* members = json.object();
  if (!members) fail("__metadata__ is no object");
  std::map<std::string, std::string> out;
  for (const auto& [key, value] : *members) {
    if (!value.string()) fail("__metadata__ holds something other than strings");
    out.emplace(key, *value.string());
  }
  return out;
}

// Tensors lie side by side from the body's first byte to its last.
void check_tiling(std::vector<Span> spans, std::int64_t body) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::int64_t place = 0;
  for (const Span& span : spans) {
    if (span.begin != place) fail("tensors overlap or leave gaps");
    place = span.end;
  }
  if (place != body) {
    fail("tensors take " + std::to_string(place) + " bytes of " + std::to_string(body));
  }
}

}  // namespace

Safetensors read_safetensors(const std::uint8_t* data, std::size_t size) {
  if (size < kPrefixBytes) fail("the file is too short to be a safetensors file");
  std::uint64_t header = 0;
  for (std::size_t i = 0; i < kPrefixBytes; ++i) header |= std::uint64_t{data[i]} << (8 * i);
  if (header > kMaxHeaderBytes) {
    fail("this is no safetensors file, or its header is over 16 MiB");
  }
  if (header > size - kPrefixBytes) fail("the file ends within its header");
  const std::string_view text(reinterpret_cast<const char*>(data) + kPrefixBytes, header);
  const std::uint8_t* body = data + kPrefixBytes + header;
  const auto body_bytes = static_cast<std::int64_t>(size - kPrefixBytes - header);

  Json root;
  try {
    root = parse_json(text);
  } catch (const JsonError& error) {
    fail(std::string("the header is damaged: ") + error.what());
  }
  if (!root.object()) fail("the header is no object");

  Safetensors out;
  out.body = body;
  out.body_bytes = static_cast<std::size_t>(body_bytes);
  std::vector<Span> spans;
  for (const auto& [name, entry] : *root.object()) {
    if (name == "__metadata__") {
      out.metadata = read_metadata(entry);
      continue;
    }
    const Json::Object* members = entry.object();
    if (!members || members->size() != 3) fail_at(name, "has a malformed entry");
    TensorView view;
    view.type = read_type(name, entry.find("dtype"));
    view.shape = read_integers(name, entry.find("shape"), "shape");
    view.elements = count_elements(name, view.shape);
    const auto offsets = read_integers(name, entry.find("data_offsets"), "data_offsets");
    if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > body_bytes) {
      fail_at(name, "lies outside the file");
    }
    const auto width = static_cast<std::int64_t>(view.type == TensorType::f32 ? 4 : 1);
    if (static_cast<std::int64_t>(view.elements) * width != offsets[1] - offsets[0]) {
      fail_at(name, "has a size that does not fit its place");
    }
    view.data = body + offsets[0];
    spans.push_back({offsets[0], offsets[1]});
    out.tensors.emplace(name, std::move(view));
  }
  check_tiling(std::move(spans), body_bytes);
  return out;
}

const char* type_name(TensorType type) { return type == TensorType::f32 ? "F32" : "I8"; }

std::string shape_name(const std::vector<std::int64_t>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    out += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return out + "]";
}

}  // namespace fracskip
