/* Where an engine file's bytes come from: memory, or a file that is opened without waiting. */
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace tkf {

/* Bytes, from the first to the last. */
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual std::uint64_t size() const = 0; /* as it was when it was opened */
  /* Up to `size` bytes into `to`; 0 at the end. Throws std::system_error. */
  virtual std::size_t read(void* to, std::size_t size) = 0;
};

/* The memory must stay. */
std::unique_ptr<ByteSource> source_of_memory(const void* data, std::size_t size);

/* Opens a regular file, by the rules of atomic.py's `open_regular`. Throws `Refused` (engine_layout.h). */
std::unique_ptr<ByteSource> source_of_file(const std::string& path);

}  // namespace tkf
