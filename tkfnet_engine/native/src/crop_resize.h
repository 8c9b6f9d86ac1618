/* Rows of pixels -> a square of them, to the bit as Pillow's Image.resize(BILINEAR) without reducing_gap. */
#pragma once

#include <cstddef>
#include <cstdint>

#include "avx2.h"

namespace tkf {

/* A picture of three channels that is read row by row from the top, no row twice. */
class PixelRows {
 public:
  virtual ~PixelRows() = default;

  /* Whether `row` needs no room. */
  virtual bool in_place() const = 0;

  /* Row `y`, packed: where it lies already, or written to `room`, which has 3 bytes for each of its pixels. */
  virtual const std::uint8_t* row(std::size_t y, std::uint8_t* room) const = 0;
};

/* width, height: of `rows`. size: of the result, pixels uint8 [size, size, 3]. All three from 1 to 16384. avx2: for
 * tests. Allocates less than 4 MB and, where rows are not in place, less than 3 bytes for each of their pixels. Throws
 * std::bad_alloc. */
void resize(const PixelRows& rows, std::size_t width, std::size_t height, std::size_t size, std::uint8_t* pixels,
            bool avx2 = has_avx2());

}  // namespace tkf
