// The C interface: checks what a caller hands over, and lets no exception out.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "exec/float_environment.hpp"
#include "fracskip.h"
#include "io/bundle.hpp"
#include "io/file.hpp"
#include "operating/session.hpp"

struct fracskip_session {
  fracskip::Session session;
};

namespace fracskip {
namespace {

static_assert(FRACSKIP_NO_DECISION == kNoDecision);

struct TooSmall : std::runtime_error {
  using std::runtime_error::runtime_error;
};

fracskip_status say(fracskip_error* error, fracskip_status status, const char* what) {
  if (!error) return status;
  std::size_t length = std::min(std::strlen(what), sizeof error->text - 1);
  // Not in the midst of a character.
  if (what[length] != '\0') {
    while (length > 0 && (static_cast<unsigned char>(what[length]) & 0xC0u) == 0x80u) --length;
  }
  std::memcpy(error->text, what, length);
  error->text[length] = '\0';
  return status;
}

// Does it in the float environment that results are promised in.
template <typename Work>
fracskip_status guarded(fracskip_error* error, const Work& work) noexcept {
  const FloatEnvironment environment;
  try {
    work();
    return say(error, FRACSKIP_OK, "");
  } catch (const BundleError& fault) {
    return say(error, FRACSKIP_BAD_BUNDLE, fault.what());
  } catch (const FileError& fault) {
    return say(error, FRACSKIP_CANNOT_READ, fault.what());
  } catch (const TooSmall& fault) {
    return say(error, FRACSKIP_BUFFER_TOO_SMALL, fault.what());
  } catch (const NotFinite& fault) {
    return say(error, FRACSKIP_NOT_FINITE, fault.what());
  } catch (const std::invalid_argument& fault) {
    return say(error, FRACSKIP_INVALID_ARGUMENT, fault.what());
  } catch (const std::bad_alloc&) {
    return say(error, FRACSKIP_OUT_OF_MEMORY, "there is not enough memory: free some, or give fewer images");
  } catch (const std::length_error&) {
    return say(error, FRACSKIP_OUT_OF_MEMORY, "that is more than memory could hold: give fewer images");
  } catch (const std::exception& fault) {
    return say(error, FRACSKIP_INTERNAL_ERROR, fault.what());
  } catch (...) {
    return say(error, FRACSKIP_INTERNAL_ERROR, "unknown error");
  }
}

void require(const void* pointer, const char* name) {
  if (!pointer) throw std::invalid_argument(std::string(name) + " is NULL, and must not be");
}

[[noreturn]] void refuse_size(const char* name, std::size_t given, const std::string& allowed) {
  throw std::invalid_argument(std::string(name) + "->size is " + std::to_string(given) + ", it must be " + allowed + ": set it to the structure's sizeof, and " +
                              "compile against the header of this library");
}

// A structure of the caller's that this library knows.
template <typename Structure>
void require_structure(const Structure* given, const char* name) {
  require(given, name);
  if (given->size != sizeof(Structure)) refuse_size(name, given->size, std::to_string(sizeof(Structure)));
}

// One that had fewer members once, `oldest` bytes: those that it lacks are zero.
template <typename Structure>
Structure completed(const Structure& given, std::size_t oldest, const char* name) {
  if (given.size != oldest && given.size != sizeof(Structure)) refuse_size(name, given.size, std::to_string(oldest) + " or " + std::to_string(sizeof(Structure)));
  Structure whole{};
  std::memcpy(&whole, &given, given.size);
  return whole;
}

const Session& checked(const fracskip_session* session) {
  require(session, "session");
  return session->session;
}

std::size_t checked_index(int32_t index, std::size_t count, const char* name) {
  if (index >= 0 && static_cast<std::size_t>(index) < count) return static_cast<std::size_t>(index);
  throw std::invalid_argument(std::string(name) + " " + std::to_string(index) + " does not exist: there are " + std::to_string(count) + ", counted from 0");
}

std::size_t checked_product(std::size_t a, std::size_t b, const char* what) {
  if (b == 0 || a <= std::numeric_limits<std::size_t>::max() / b) return a * b;
  throw std::invalid_argument(std::string(what) + " of " + std::to_string(a) + " images are more than memory could hold");
}

template <typename Value>
Value* checked_room(Value* values, std::size_t room, std::size_t count, std::size_t each, const char* name) {
  if (!values) return nullptr;
  const std::size_t needed = checked_product(count, each, name);
  if (room >= needed) return values;
  throw TooSmall(std::string("answer->") + name + " has room for " + std::to_string(room) + " values, " + std::to_string(needed) + " are needed: " + std::to_string(each) +
                 " for each of " + std::to_string(count) + " images");
}

const uint8_t* checked_images(const Session& session, const fracskip_request& request) {
  const Extent& image = session.engine().image();
  const std::size_t needed = checked_product(request.count, image.values(), "pixels");
  if (request.images_bytes != needed) {
    throw std::invalid_argument("request->images_bytes is " + std::to_string(request.images_bytes) + ", " + std::to_string(needed) + " are needed: " +
                                std::to_string(request.count) + " images of " + std::to_string(image.height) + " by " + std::to_string(image.width) + " pixels of " +
                                std::to_string(image.channels) + " bytes");
  }
  if (needed > 0) require(request.images, "request->images");
  return request.images;
}

Operation operation_of(const Operator& operating, const fracskip_request& request) {
  switch (request.by) {
    case FRACSKIP_BY_DEFAULT: return operating.at({});
    case FRACSKIP_BY_BUDGET: return operating.at(request.budget);
    case FRACSKIP_BY_POINT: return operating.at_point(checked_index(request.point, operating.points(), "point"));
    default: throw std::invalid_argument("request->by is " + std::to_string(request.by) + ": give FRACSKIP_BY_DEFAULT, FRACSKIP_BY_BUDGET or FRACSKIP_BY_POINT");
  }
}

Answers answers_of(const Session& session, const fracskip_answer& answer, std::size_t count) {
  const auto classes = static_cast<std::size_t>(session.engine().classes());
  return {checked_room(answer.logits, answer.logits_room, count, classes, "logits"),
          checked_room(answer.probabilities, answer.probabilities_room, count, classes, "probabilities"),
          checked_room(answer.classes, answer.classes_room, count, 1, "classes"),
          checked_room(answer.costs, answer.costs_room, count, 1, "costs"),
          checked_room(answer.microseconds, answer.microseconds_room, count, 1, "microseconds"),
          checked_room(answer.networks, answer.networks_room, count, 1, "networks"),
          checked_room(answer.escalations, answer.escalations_room, count, 1, "escalations"),
          checked_room(answer.decisions, answer.decisions_room, count, session.blocks(), "decisions")};
}

// What was asked for in `options`, before a bundle is read, which may take long.
struct Wanted {
  explicit Wanted(const fracskip_options* given) {
    if (!given) return;
    const fracskip_options options = completed(*given, offsetof(fracskip_options, parallel_for), "options");
    if (options.instruction_set) isa = isa_named(options.instruction_set);
    if (options.threads != 0) check_threads(threads = options.threads);
    pool = {options.parallel_for, options.parallel_for_context};
    if (pool.is_given() && options.threads == 0) throw std::invalid_argument("options->threads is 0 with a parallel_for: give how many tasks it runs at once");
    resolve(isa);
  }

  Isa isa = Isa::automatic;
  int threads = 1;
  Pool pool;
};

fracskip_session* open(const std::uint8_t* data, std::size_t bytes, const Wanted& wanted) {
  return new fracskip_session{Session(read_whole_bundle(data, bytes), wanted.isa, wanted.threads, wanted.pool)};
}

// The name at an index, or NULL.
template <typename Names>
const char* name_at(const Names& names, int32_t index) {
  return index >= 0 && static_cast<std::size_t>(index) < names.size() ? names[static_cast<std::size_t>(index)].c_str() : nullptr;
}

const NetworkManifest* network_at(const fracskip_session* session, int32_t index) {
  if (!session) return nullptr;
  const auto& networks = session->session.manifest().networks;
  return index >= 0 && static_cast<std::size_t>(index) < networks.size() ? &networks[static_cast<std::size_t>(index)] : nullptr;
}

}  // namespace
}  // namespace fracskip

using namespace fracskip;

extern "C" {

int32_t fracskip_api_version(void) { return FRACSKIP_API_VERSION; }

const char* fracskip_version(void) { return FRACSKIP_VERSION; }

const char* fracskip_instruction_set(int32_t index) {
  for (const Isa isa : kIsas) {
    if (isa_supported(isa) && index-- == 0) return isa_name(isa);
  }
  return nullptr;
}

fracskip_status fracskip_open_file(const char* path, const fracskip_options* options, fracskip_session** session, fracskip_error* error) {
  if (session) *session = nullptr;
  return guarded(error, [&] {
    require(session, "session");
    require(path, "path");
    const Wanted wanted(options);
    const std::vector<std::uint8_t> bytes = read_file(path);
    try {
      *session = open(bytes.data(), bytes.size(), wanted);
    } catch (const BundleError& fault) {
      throw BundleError(shown(path) + ": " + fault.what());
    }
  });
}

fracskip_status fracskip_open_memory(const void* data, size_t bytes, const fracskip_options* options, fracskip_session** session, fracskip_error* error) {
  if (session) *session = nullptr;
  return guarded(error, [&] {
    require(session, "session");
    require(data, "data");
    *session = open(static_cast<const std::uint8_t*>(data), bytes, Wanted(options));
  });
}

void fracskip_close(fracskip_session* session) { delete session; }

fracskip_status fracskip_describe(const fracskip_session* session, fracskip_info* info, fracskip_error* error) {
  return guarded(error, [&] {
    const Session& own = checked(session);
    require_structure(info, "info");
    const Manifest& manifest = own.manifest();
    const auto budgets = own.operating().budgets();
    *info = {};
    info->size = sizeof *info;
    info->digest = manifest.digest.c_str();
    info->instruction_set = isa_name(own.engine().isa());
    info->height = manifest.height;
    info->width = manifest.width;
    info->channels = manifest.channels;
    info->resize = manifest.resize;
    info->classes = own.engine().classes();
    info->networks = static_cast<int32_t>(manifest.networks.size());
    info->blocks = static_cast<int32_t>(own.blocks());
    info->points = static_cast<int32_t>(own.operating().points());
    info->threads = own.engine().threads();
    info->has_budget = budgets.has_value();
    if (budgets) std::tie(info->smallest_budget, info->largest_budget) = *budgets;
  });
}

fracskip_status fracskip_describe_network(const fracskip_session* session, int32_t network, fracskip_network* description, fracskip_error* error) {
  return guarded(error, [&] {
    const auto& networks = checked(session).manifest().networks;
    require_structure(description, "description");
    const NetworkManifest& found = networks[checked_index(network, networks.size(), "network")];
    *description = {sizeof *description, found.name.c_str(), found.height, found.width, static_cast<int32_t>(found.blocks.size()), static_cast<int32_t>(found.options.size())};
  });
}

fracskip_status fracskip_describe_point(const fracskip_session* session, int32_t point, fracskip_point* description, fracskip_error* error) {
  return guarded(error, [&] {
    const Operator& operating = checked(session).operating();
    require_structure(description, "description");
    const OperatingPoint found = operating.point(checked_index(point, operating.points(), "point"));
    *description = {sizeof *description, found.cost.value_or(-1.0), found.accuracy.value_or(-1.0)};
  });
}

const char* fracskip_class_name(const fracskip_session* session, int32_t index) {
  return session ? name_at(session->session.manifest().class_names, index) : nullptr;
}

const char* fracskip_option_name(const fracskip_session* session, int32_t network, int32_t option) {
  const NetworkManifest* const found = network_at(session, network);
  return found ? name_at(found->options, option) : nullptr;
}

const char* fracskip_block_name(const fracskip_session* session, int32_t network, int32_t block) {
  const NetworkManifest* const found = network_at(session, network);
  return found ? name_at(found->blocks, block) : nullptr;
}

fracskip_status fracskip_run(const fracskip_session* session, const fracskip_request* request, const fracskip_answer* answer, fracskip_error* error) {
  return guarded(error, [&] {
    const Session& own = checked(session);
    require_structure(request, "request");
    require_structure(answer, "answer");
    const uint8_t* const images = checked_images(own, *request);
    const Answers answers = answers_of(own, *answer, request->count);
    own.run(images, request->count, operation_of(own.operating(), *request), answers);
  });
}

}  // extern "C"
