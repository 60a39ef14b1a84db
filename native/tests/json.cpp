// Reads JSON documents and prints what they come to, for tests/support/json_dialect.py to compare with another reader.
//
//   json FILE     of documents, each after its length in 4 bytes, little-endian
//
// A document's line: '!' and the error, or its value in hexadecimal: of it, in order, a letter for the kind; of numbers 'i' or
// 'd' (whole or not) and a double's 8 bytes; of texts, arrays and objects the count in 4 bytes, then bytes, values or members.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "io/json.hpp"

using namespace fracskip;

namespace {

template <typename Number>
void put_number(std::string& out, Number number) {
  char bytes[sizeof number];
  std::memcpy(bytes, &number, sizeof number);
  out.append(bytes, sizeof number);
}

void put_count(std::string& out, char kind, std::size_t count) {
  out.push_back(kind);
  put_number(out, static_cast<std::uint32_t>(count));
}

void put_text(std::string& out, const std::string& text) {
  put_count(out, 's', text.size());
  out += text;
}

void put(std::string& out, const Json& json) {
  if (const bool* truth = json.boolean()) {
    out.push_back(*truth ? 't' : 'f');
  } else if (const auto* number = std::get_if<Json::Number>(&json.value)) {
    out.push_back(number->whole ? 'i' : 'd');
    put_number(out, number->value);
  } else if (const std::string* text = json.string()) {
    put_text(out, *text);
  } else if (const Json::Array* items = json.array()) {
    put_count(out, 'a', items->size());
    for (const Json& item : *items) put(out, item);
  } else if (const Json::Object* members = json.object()) {
    put_count(out, 'o', members->size());
    for (const auto& [key, value] : *members) {
      put_text(out, key);
      put(out, value);
    }
  } else {
    out.push_back('n');
  }
}

std::string read(std::string_view text) {
  // A copy of its own: one byte beyond is a report.
  const std::vector<char> exact(text.begin(), text.end());
  try {
    std::string value, line;
    put(value, parse_json({exact.data(), exact.size()}));
    for (const unsigned char byte : value) {
      line.push_back("0123456789abcdef"[byte >> 4]);
      line.push_back("0123456789abcdef"[byte & 15]);
    }
    return line;
  } catch (const JsonError& error) {
    return std::string("!") + error.what();
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::ifstream file(argv[1], std::ios::binary);
  const std::string all(std::istreambuf_iterator<char>(file), {});
  for (std::size_t at = 0; at + 4 <= all.size();) {
    std::uint32_t length;
    std::memcpy(&length, all.data() + at, 4);
    std::printf("%s\n", read(std::string_view(all).substr(at + 4, length)).c_str());
    at += 4 + length;
  }
}
