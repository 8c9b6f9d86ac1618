/* The pixels of a frame, of any format -> rows of three channels for `resize`. */
#pragma once

#include <cstddef>
#include <cstdint>

#include "crop_resize.h"
#include "tkfnet.h"

namespace tkf {

/* How NV12 is converted; frame_colour.cpp says the formulae. */
struct YuvFactors {
  std::int32_t black;                               /* the luma of black */
  std::int32_t luma;                                /* in fixed point, as the next four */
  std::int32_t red_cr, green_cr, green_cb, blue_cb;
  std::int32_t even_before, even_own;               /* of chroma samples, for even columns, in quarters */
  std::int32_t odd_own, odd_after;                  /* the same for odd columns */
};

/* Part of a frame: RGB, and of BGR and BGRA frames BGR, an order that resizing keeps. */
class FrameRows final : public PixelRows {
 public:
  /* frame: checked, with its strides and its `chroma` set. left, top, width: of the part, inside the frame. avx2: for
   * tests. */
  FrameRows(const tkf_frame& frame, std::size_t left, std::size_t top, std::size_t width, bool avx2 = has_avx2());

  bool in_place() const override { return frame_.format == TKF_PIXEL_RGB || frame_.format == TKF_PIXEL_BGR; }
  const std::uint8_t* row(std::size_t y, std::uint8_t* room) const override;

 private:
  const tkf_frame frame_;
  const YuvFactors factors_;
  const std::size_t left_, top_, width_;
  [[maybe_unused]] const bool avx2_;
};

}  // namespace tkf
