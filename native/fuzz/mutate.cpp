#include "mutate.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "io/json.hpp"

namespace fracskip {
namespace {

constexpr std::size_t kPrefixBytes = 8;

// Where sizes, counts and offsets break: around powers of two, zero, and what is no integer.
const char* const kNumbers[] = {
    "0", "-0", "-1", "1", "2", "3", "5", "7", "8", "15", "16", "17", "31", "64", "127", "128",
    "255", "256", "1000", "4096", "4097", "32768", "65535", "65536", "8421505", "16777217",
    "268435456", "536870912", "1073741824", "2147483647", "2147483648", "4294967295", "4294967296",
    "4611686018427387904", "9007199254740992", "9007199254740993", "9223372036854775807",
    "18446744073709551615", "-2147483648", "-9223372036854775808", "0.5", "1.5", "1.0", "1e0",
    "1e-45", "1e-300", "3e38", "1e39", "1e308", "1e999", "NaN", "Infinity", "01", "+1", ".5"};

std::size_t below(Random& random, std::size_t count) { return count ? random() % count : 0; }

bool chance(Random& random, unsigned percent) { return random() % 100 < percent; }

void write_string(std::string_view text, std::string& out) {
  out.push_back('"');
  for (char c : text) {
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
      out += escape;
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
}

// Kept as text where a mutation put text in place of a value: the mark is no valid JSON string.
constexpr char kRaw = '\x7f';

void write(const Json& json, std::string& out) {
  if (json.is_null()) {
    out += "null";
  } else if (const bool* flag = json.boolean()) {
    out += *flag ? "true" : "false";
  } else if (const auto whole = json.integer()) {
    out += std::to_string(*whole);
  } else if (const auto number = json.number()) {
    char text[40];
    std::snprintf(text, sizeof text, "%.17g", *number);
    out += text;
  } else if (const std::string* text = json.string()) {
    if (!text->empty() && text->front() == kRaw) {
      out.append(*text, 1, std::string::npos);
    } else {
      write_string(*text, out);
    }
  } else if (const Json::Array* items = json.array()) {
    out.push_back('[');
    for (std::size_t i = 0; i < items->size(); ++i) {
      if (i) out.push_back(',');
      write((*items)[i], out);
    }
    out.push_back(']');
  } else if (const Json::Object* members = json.object()) {
    out.push_back('{');
    for (std::size_t i = 0; i < members->size(); ++i) {
      if (i) out.push_back(',');
      write_string((*members)[i].first, out);
      out.push_back(':');
      write((*members)[i].second, out);
    }
    out.push_back('}');
  }
}

Json raw(const std::string& text) {
  Json json;
  json.value = kRaw + text;
  return json;
}

struct Parts {
  Json header, plan;
  Bytes body;
};

// Members are looked up by hand: the tree is to be changed.
Json* member(Json& json, std::string_view key) { return const_cast<Json*>(json.find(key)); }

bool split(const Bytes& bundle, Parts& parts) {
  if (bundle.size() < kPrefixBytes) return false;
  std::uint64_t size = 0;
  std::memcpy(&size, bundle.data(), sizeof size);
  if (size > bundle.size() - kPrefixBytes) return false;
  const std::string_view text(reinterpret_cast<const char*>(bundle.data()) + kPrefixBytes, size);
  try {
    parts.header = parse_json(text);
    Json* metadata = member(parts.header, "__metadata__");
    Json* plan = metadata ? member(*metadata, "fracskip") : nullptr;
    if (!plan || !plan->string()) return false;
    parts.plan = parse_json(*plan->string());
  } catch (const JsonError&) {
    return false;
  }
  parts.body.assign(bundle.begin() + static_cast<std::ptrdiff_t>(kPrefixBytes + size),
                    bundle.end());
  return true;
}

Bytes join(Parts parts, const std::string* plan_text = nullptr) {
  std::string plan;
  if (plan_text) {
    plan = *plan_text;
  } else {
    write(parts.plan, plan);
  }
  if (Json* metadata = member(parts.header, "__metadata__")) {
    if (Json* place = member(*metadata, "fracskip")) place->value = plan;
  }
  std::string header;
  write(parts.header, header);
  Bytes out(kPrefixBytes);
  const std::uint64_t size = header.size();
  std::memcpy(out.data(), &size, sizeof size);
  out.insert(out.end(), header.begin(), header.end());
  out.insert(out.end(), parts.body.begin(), parts.body.end());
  return out;
}

void collect(Json& json, std::vector<Json*>& numbers, std::vector<Json*>& nodes) {
  nodes.push_back(&json);
  if (json.number()) numbers.push_back(&json);
  if (auto* items = std::get_if<Json::Array>(&json.value)) {
    for (Json& item : *items) collect(item, numbers, nodes);
  } else if (auto* members = std::get_if<Json::Object>(&json.value)) {
    for (auto& entry : *members) collect(entry.second, numbers, nodes);
  }
}

void change_number(Json& tree, Random& random) {
  std::vector<Json*> numbers, nodes;
  collect(tree, numbers, nodes);
  if (numbers.empty()) return;
  for (std::size_t times = 1 + below(random, 3); times > 0; --times) {
    Json& number = *numbers[below(random, numbers.size())];
    if (chance(random, 25) && number.integer()) {
      number = raw(std::to_string(*number.integer() + (chance(random, 50) ? 1 : -1)));
    } else {
      number = raw(kNumbers[below(random, std::size(kNumbers))]);
    }
  }
}

void change_node(Json& tree, Random& random) {
  static const char* const kValues[] = {"null", "true", "\"\"", "\"skip\"", "\"8\"", "\"full\"",
                                        "[]", "{}", "[[]]", "0", "\"\\ud800\"", "\"\xff\"",
                                        "\"I64\"", "\"I8\"", "\"F32\"", "\"float\"", "\"int8\""};
  std::vector<Json*> numbers, nodes;
  collect(tree, numbers, nodes);
  Json& node = *nodes[below(random, nodes.size())];
  auto* items = std::get_if<Json::Array>(&node.value);
  auto* members = std::get_if<Json::Object>(&node.value);
  const std::size_t action = below(random, 4);
  if (items && !items->empty() && action > 0) {
    const auto at = items->begin() + static_cast<std::ptrdiff_t>(below(random, items->size()));
    if (action == 1) {
      items->erase(at);
    } else if (action == 2) {
      Json copy = *at;
      items->push_back(std::move(copy));
    } else {
      std::swap(*at, items->front());
    }
  } else if (members && !members->empty() && action > 0) {
    const auto at = members->begin() + static_cast<std::ptrdiff_t>(below(random, members->size()));
    if (action == 1) {
      members->erase(at);
    } else if (action == 2) {
      auto copy = *at;
      members->push_back(std::move(copy));  // one key twice
    } else {
      at->first += chance(random, 50) ? "_" : std::string(1, '\0');
    }
  } else {
    node = raw(kValues[below(random, std::size(kValues))]);
  }
}

// An operation's windows, inputs and groups, or what a part may do, in a network that often is one still.
void change_part(Json& parts, Random& random) {
  auto* items = std::get_if<Json::Array>(&parts.value);
  if (!items || items->empty()) return;
  Json& part = (*items)[below(random, items->size())];
  const auto flip = [&](const char* key) {
    if (Json* flag = chance(random, 15) ? member(part, key) : nullptr) *flag = raw(chance(random, 50) ? "true" : "false");
  };
  flip("residual");
  flip("skip_is_identity");
  if (Json* option = chance(random, 15) ? member(part, "shortcut_option") : nullptr) *option = raw(chance(random, 50) ? "\"16\"" : "null");
  static const char* const kPrograms[] = {"branch", "branch", "shortcut", "after"};
  Json* program = member(part, kPrograms[below(random, 4)]);
  auto* ops = program ? std::get_if<Json::Array>(&program->value) : nullptr;
  if (!ops || ops->empty()) return;
  Json& op = (*ops)[below(random, ops->size())];
  static const char* const kWindows[] = {"kernel", "stride", "padding", "dilation"};
  for (const char* key : kWindows) {
    Json* extents = chance(random, 40) ? member(op, key) : nullptr;
    auto* each = extents ? std::get_if<Json::Array>(&extents->value) : nullptr;
    if (!each) continue;
    const std::size_t low = key == kWindows[2] ? 0 : 1;
    for (Json& item : *each) item = raw(std::to_string(low + below(random, chance(random, 10) ? 70000 : 5)));
  }
  if (Json* in = chance(random, 20) ? member(op, "in") : nullptr) {
    if (auto* values = std::get_if<Json::Array>(&in->value)) {
      for (Json& value : *values) value = raw(std::to_string(below(random, ops->size() + 1)));
    }
  }
  if (Json* act = chance(random, 30) ? member(op, "act") : nullptr) {
    static const char* const kActs[] = {"none", "relu", "relu6", "hardsigmoid", "hardswish", "sigmoid", "silu", "gelu", "tanh"};
    act->value = std::string(kActs[below(random, std::size(kActs))]);
  }
}

// Of an 8-bit stream's grids and of what convolutions say of theirs, one goes missing or another value comes in.
void change_grid(Json& header, Bytes& body, Random& random) {
  auto* members = std::get_if<Json::Object>(&header.value);
  if (!members) return;
  std::vector<std::size_t> found;
  for (std::size_t i = 0; i < members->size(); ++i) {
    const std::string& name = (*members)[i].first;
    for (const char* end : {".step", ".zero", ".input"}) {
      const std::size_t length = std::strlen(end);
      if (name.size() > length && name.compare(name.size() - length, length, end) == 0) found.push_back(i);
    }
  }
  if (found.empty()) return;
  const std::size_t at = found[below(random, found.size())];
  if (chance(random, 20)) {
    members->erase(members->begin() + static_cast<std::ptrdiff_t>(at));
    return;
  }
  const Json* offsets = member((*members)[at].second, "data_offsets");
  const auto* both = offsets ? std::get_if<Json::Array>(&offsets->value) : nullptr;
  const auto begin = both && !both->empty() ? (*both)[0].integer() : std::nullopt;
  if (!begin || *begin < 0 || static_cast<std::size_t>(*begin) + sizeof(float) > body.size()) return;
  static const float kFloats[] = {0.f, 1.f, 255.f, 256.f, 127.f, 128.f, -1.f, 0.5f, 1e-38f, 1e-45f, 1e30f, 3.4e38f};
  const float value = chance(random, 30) ? static_cast<float>(below(random, 256)) : kFloats[below(random, std::size(kFloats))];
  std::memcpy(&body[static_cast<std::size_t>(*begin)], &value, sizeof value);
}

// Other sizes and windows that often are a network still, so that engines get odd geometries.
void change_shape(Json& plan, Random& random) {
  const auto number = [&](std::size_t low, std::size_t high) {
    return raw(std::to_string(low + below(random, high - low + 1)));
  };
  const auto both = [&](Json* pair, std::size_t low, std::size_t high) {
    auto* items = pair ? std::get_if<Json::Array>(&pair->value) : nullptr;
    if (!items) return;
    for (Json& item : *items) item = number(low, high);
  };
  Json* image = member(plan, "image");
  if (image && chance(random, 60)) both(member(*image, "size"), 1, 20);
  Json* network = member(plan, "network");
  if (Json* parts = network ? member(*network, "parts") : nullptr) change_part(*parts, random);
}

void change_text(std::string& text, Random& random) {
  static const char kBytes[] = "{}[]\",:\\0919.eE-+ntfu \n\x01\x7f\x80\xc0\xed\xf5\xff";
  for (std::size_t times = 1 + below(random, 4); times > 0 && !text.empty(); --times) {
    const std::size_t at = below(random, text.size());
    const char byte = kBytes[below(random, sizeof kBytes)];  // its NUL too
    switch (below(random, 3)) {
      case 0: text[at] = byte; break;
      case 1: text.insert(at, 1, byte); break;
      default: text.erase(at, 1 + below(random, 8));
    }
  }
}

void change_values(Bytes& body, Random& random) {
  static const float kFloats[] = {0.f, -0.f, -1.f, 1e-45f, 1e-38f, 1e-20f, 1e20f, 3.4e38f, -3.4e38f,
                                  std::numeric_limits<float>::infinity(),
                                  std::numeric_limits<float>::quiet_NaN()};
  // Mostly finite ones: what a reader must accept is what an engine must survive.
  const std::size_t kinds = chance(random, 70) ? std::size(kFloats) - 2 : std::size(kFloats);
  for (std::size_t times = 1 + below(random, 64); times > 0 && body.size() >= 4; --times) {
    if (chance(random, 10)) {
      body[below(random, body.size())] = static_cast<std::uint8_t>(random());
    } else {
      const float value = kFloats[below(random, kinds)];
      std::memcpy(&body[below(random, body.size() / 4) * 4], &value, sizeof value);
    }
  }
}

Json* any_tensor(Json& header, Random& random) {
  auto* members = std::get_if<Json::Object>(&header.value);
  if (!members || members->size() < 2) return nullptr;
  auto& entry = (*members)[below(random, members->size())];
  return entry.first == "__metadata__" ? nullptr : &entry.second;
}

Bytes deep(Parts parts, Random& random) {
  const std::size_t depth = std::size_t{1} << (3 + below(random, 15));
  const char* const kOpeners[] = {"[", "{\"a\":", "[[],", "{\"a\":[", "[1,"};
  const std::string opener = kOpeners[below(random, std::size(kOpeners))];
  std::string text;
  for (std::size_t i = 0; i < depth; ++i) text += opener;
  if (chance(random, 50)) return join(std::move(parts), &text);
  if (Json* tensor = any_tensor(parts.header, random)) *tensor = raw(text);
  return join(std::move(parts));
}

Bytes change_bytes(Bytes out, Mutation mutation, Random& random) {
  if (out.empty()) return out;
  // Half of the time where the header is.
  const auto place = [&] {
    return below(random, chance(random, 50) ? out.size() : std::min<std::size_t>(out.size(), 4096));
  };
  if (mutation == Mutation::truncate) {
    out.resize(place());
  } else if (mutation == Mutation::splice) {
    const std::size_t from = place(), to = place();
    const std::size_t count = std::min(1 + below(random, 64), out.size() - from);
    const Bytes piece(out.begin() + static_cast<std::ptrdiff_t>(from),
                      out.begin() + static_cast<std::ptrdiff_t>(from + count));
    if (chance(random, 50)) {
      out.erase(out.begin() + static_cast<std::ptrdiff_t>(from),
                out.begin() + static_cast<std::ptrdiff_t>(from + count));
    } else {
      out.insert(out.begin() + static_cast<std::ptrdiff_t>(to), piece.begin(), piece.end());
    }
  } else {
    for (std::size_t times = 1 + below(random, 8); times > 0; --times) {
      out[place()] ^= static_cast<std::uint8_t>(1u << below(random, 8));
    }
  }
  return out;
}

Bytes change_length(Bytes out, Random& random) {
  if (out.size() < kPrefixBytes) return out;
  std::uint64_t size = 0;
  std::memcpy(&size, out.data(), sizeof size);
  const std::uint64_t sizes[] = {0, 1, size - 1, size + 1, out.size() - 8, out.size() - 7,
                                 out.size(), std::uint64_t{16} << 20, std::uint64_t{1} << 32,
                                 std::uint64_t{1} << 63, ~std::uint64_t{0}, ~std::uint64_t{7}};
  size = sizes[below(random, std::size(sizes))];
  std::memcpy(out.data(), &size, sizeof size);
  return out;
}

}  // namespace

const char* mutation_name(Mutation mutation) {
  static const char* const kNames[kMutations] = {
      "truncate", "flip_bits", "splice", "header_length", "plan_number", "plan_node",
      "plan_text", "plan_shape", "table_number", "table_node", "deep_json", "values", "grid"};
  return kNames[static_cast<int>(mutation)];
}

Bytes mutate(const Bytes& bundle, Mutation mutation, Random& random) {
  if (mutation == Mutation::header_length) return change_length(bundle, random);
  Parts parts;
  if (mutation <= Mutation::splice || !split(bundle, parts)) {
    return change_bytes(bundle, mutation, random);
  }
  Json* tensor = nullptr;
  switch (mutation) {
    case Mutation::plan_number: change_number(parts.plan, random); break;
    case Mutation::plan_node: change_node(parts.plan, random); break;
    case Mutation::plan_shape: change_shape(parts.plan, random); break;
    case Mutation::plan_text: {
      std::string text;
      write(parts.plan, text);
      change_text(text, random);
      return join(std::move(parts), &text);
    }
    case Mutation::table_number:
      tensor = any_tensor(parts.header, random);
      if (tensor) change_number(*tensor, random);
      break;
    case Mutation::table_node:
      tensor = any_tensor(parts.header, random);
      change_node(tensor && chance(random, 60) ? *tensor : parts.header, random);
      break;
    case Mutation::deep_json: return deep(std::move(parts), random);
    case Mutation::grid: change_grid(parts.header, parts.body, random); break;
    default: change_values(parts.body, random);
  }
  return join(std::move(parts));
}

}  // namespace fracskip
