/* The engine file: read and verified. docs/engine-file.md is the format, tkfnet_engine/bundle.py the other reader. */
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace tkf {

class ByteSource;

/* Bytes on a 64-byte boundary, not initialised when made. */
class Bytes {  // move only
 public:
  Bytes() = default;
  explicit Bytes(std::size_t size);
  Bytes(Bytes&&) noexcept;
  Bytes& operator=(Bytes&&) noexcept;
  ~Bytes();
  std::uint8_t* data() { return data_; }
  const std::uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::string_view text() const;  /* the same bytes */

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

struct Tensor {
  std::string dtype;                 /* as in the header: "U8", "F32" .. */
  std::vector<std::uint64_t> shape;
  Bytes data;
};

/* The verified content, in memory of our own: later changes of the file do not reach it. */
class EngineFile {
 public:
  /* Both throw `Error` with TKF_ERROR_FILE, _VERSION (newer) or _MEMORY and a code of docs/engine-file.md. */
  static EngineFile read(const std::string& path);
  static EngineFile read(const void* data, std::size_t size);

  const std::string& name() const;           /* for messages: the path, or "<memory>" */
  const std::string& facts_text() const;     /* the facts, JSON as the file has it */
  std::string sha256() const;                /* of the file, hexadecimal */
  std::vector<std::string> names() const;    /* of the tensors that are left, in file order, without the digest */
  bool has(std::string_view name) const;
  const Tensor& tensor(std::string_view name) const;  /* throws `Error`, code "tensor", if there is none */
  Tensor take(std::string_view name);                 /* the same, and leaves it out from now on */

 private:
  EngineFile() = default;
  static EngineFile verified(ByteSource& source);
  /* What `open` gives, verified; errors say `name`. */
  template <class Open>
  static EngineFile named(const std::string& name, const Open& open);

  std::string name_, facts_text_, sha256_;
  std::vector<std::string> order_;                    /* of all tensors in the file, but for the digest */
  std::map<std::string, Tensor, std::less<>> tensors_;
};

}  // namespace tkf
