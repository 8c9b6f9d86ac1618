/* SHA-256 of FIPS 180-4, in parts. */
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace tkf {

using Sha256Digest = std::array<std::uint8_t, 32>;

class Sha256 {
 public:
  /* `portable`: without the processor's own instructions for it, as tests compare the two. */
  explicit Sha256(bool portable = false);

  void update(const void* data, std::size_t size);
  Sha256Digest digest() const; /* of all that `update` was given so far */

 private:
  using Compress = void (*)(std::uint32_t state[8], const std::uint8_t* blocks, std::size_t count);

  Compress compress_;
  std::uint32_t state_[8];
  std::uint64_t size_ = 0;   /* bytes so far */
  std::uint8_t block_[64];   /* the bytes that do not fill a block yet: size_ % 64 */
};

/* Whether this processor has the instructions, and this library knows them. */
bool has_sha256_instructions();

/* 64 lower-case digits. */
std::string hexadecimal(const Sha256Digest& digest);

}  // namespace tkf
