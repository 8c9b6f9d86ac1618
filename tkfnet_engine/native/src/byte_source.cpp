#include "byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "engine_layout.h"

namespace tkf {
namespace {

constexpr char kNameOne[] = "name an engine file (*.tkf), as python -m tkfnet_engine.build writes it";

class MemorySource : public ByteSource {
 public:
  MemorySource(const void* data, std::size_t size) : data_(static_cast<const char*>(data)), left_(size), size_(size) {}
  std::uint64_t size() const override { return size_; }
  std::size_t read(void* to, std::size_t size) override {
    const std::size_t count = std::min(size, left_);
    if (count > 0) std::memcpy(to, data_ + (size_ - left_), count);
    left_ -= count;
    return count;
  }

 private:
  const char* data_;
  std::size_t left_, size_;
};

class FileSource : public ByteSource {
 public:
  explicit FileSource(int descriptor) : descriptor_(descriptor) {}  // takes it over
  ~FileSource() override { ::close(descriptor_); }
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;
  void set_size(std::uint64_t size) { size_ = size; }
  std::uint64_t size() const override { return size_; }
  std::size_t read(void* to, std::size_t size) override {
    for (;;) {
      const ssize_t count = ::read(descriptor_, to, size);
      if (count >= 0) return static_cast<std::size_t>(count);
      if (errno != EINTR) throw std::system_error(errno, std::generic_category());
    }
  }

 private:
  int descriptor_;
  std::uint64_t size_ = 0;
};

Refused unreadable(int error) {
  const std::string why = std::generic_category().message(error);
  return {"unreadable", "cannot open it (" + why + ")", "a file to read", kNameOne};
}

}  // namespace

std::unique_ptr<ByteSource> source_of_memory(const void* data, std::size_t size) {
  return std::make_unique<MemorySource>(data, size);
}

std::unique_ptr<ByteSource> source_of_file(const std::string& path) {
  if (path.find('\0') != std::string::npos) {
    throw Refused{"unreadable", "cannot open it (a zero byte in its path)", "a file to read", kNameOne};
  }
  int descriptor = -1;
  // Without waiting for the writer of a FIFO, and without becoming a terminal's process.
  do {
    descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0 && errno == ENOENT) throw Refused{"missing", "no such file", "an engine file", kNameOne};
  if (descriptor < 0) throw unreadable(errno);
  auto source = std::make_unique<FileSource>(descriptor);
  struct stat facts = {};
  if (::fstat(descriptor, &facts) != 0) throw unreadable(errno);
  if (!S_ISREG(facts.st_mode)) {
    const char* what = S_ISDIR(facts.st_mode) ? "a folder, not a file" : "a pipe or a device, not a file";
    throw Refused{"not-a-file", what, "an engine file", kNameOne};
  }
  source->set_size(static_cast<std::uint64_t>(facts.st_size));
  return source;
}

}  // namespace tkf
