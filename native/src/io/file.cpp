#include "io/file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace fracskip {
namespace {

constexpr std::uint64_t kMaxFileBytes = std::uint64_t{16} << 30;
constexpr std::size_t kAtOnce = std::size_t{1} << 30;  // systems read less than 2 GiB in one call

class Descriptor {
 public:
  // A pipe that nobody writes to would wait; a regular file takes no notice of O_NONBLOCK.
  explicit Descriptor(const std::string& path) : number(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {}
  ~Descriptor() {
    if (number >= 0) close(number);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  const int number;
};

[[noreturn]] void fail(const std::string& path, const std::string& what) { throw FileError("bundle " + shown(path) + " " + what); }

[[noreturn]] void fail(const std::string& path, int reason) {
  if (reason == ENOENT) fail(path, "does not exist: give a .fsk file");
  fail(path, "cannot be read: " + std::generic_category().message(reason));
}

}  // namespace

std::string shown(const std::string& path) {
  std::string text = path;
  const auto is_control = [](unsigned char c) { return c < 0x20 || c == 0x7F; };
  std::replace_if(text.begin(), text.end(), is_control, '?');
  return text;
}

std::vector<std::uint8_t> read_file(const std::string& path) {
  const Descriptor file(path);
  if (file.number < 0) fail(path, errno);
  struct stat found {};
  if (fstat(file.number, &found) != 0) fail(path, errno);
  if (!S_ISREG(found.st_mode)) fail(path, "is no regular file but a folder, a device, a pipe or the like: give a .fsk file");
  const auto size = static_cast<std::uint64_t>(found.st_size);
  if (size > kMaxFileBytes) fail(path, "has " + std::to_string(size) + " bytes and may have " + std::to_string(kMaxFileBytes) + ": give another file");
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(size));
  std::size_t read = 0;
  while (read < bytes.size()) {
    const ssize_t more = ::read(file.number, bytes.data() + read, std::min(bytes.size() - read, kAtOnce));
    if (more < 0 && errno == EINTR) continue;
    if (more < 0) fail(path, errno);
    if (more == 0) fail(path, "ended while it was read: something else writes it");
    read += static_cast<std::size_t>(more);
  }
  return bytes;
}

}  // namespace fracskip
