/* Y'CbCr of 8 bits -> R'G'B'. With kr, kb of ITU-R BT.709-6 section 3 or BT.601-7 section 2.5, kg = 1 - kr - kb, and
 * y, cb, cr scaled to 0 .. 255 and -127.5 .. 127.5 by ITU-T H.273 section 8.3 (limited range: (Y - 16) 255 / 219 and
 * (C - 128) 255 / 224; full range: Y and C - 128):
 *
 *     R = y + 2 (1 - kr) cr
 *     G = y - 2 (1 - kr) kr / kg cr - 2 (1 - kb) kb / kg cb
 *     B = y + 2 (1 - kb) cb
 *
 * cut to 0 .. 255 and rounded half up, once. Chroma is interpolated linearly to where the luma lies; beyond the frame's
 * border its last sample repeats. Rows 2n and 2n + 1 both take 3/4 of chroma row n, and 1/4 of n - 1 or n + 1. So do
 * columns where chroma sits in the centre; where it sits left, column 2n takes sample n and 2n + 1 the mean of n and
 * n + 1. Chroma is therefore exact in sixteenths. */
#include "frame_colour.h"

#include <algorithm>
#include <cmath>

namespace tkf {
namespace {

/* Of what a channel is summed up in: the sum of luma and chroma stays below 2^31. */
constexpr int fraction_bits = 21;
constexpr int chroma_bits = fraction_bits - 4; /* of a factor of chroma in sixteenths */
constexpr std::size_t block = 64;              /* pixels that are converted at once; even */

YuvFactors factors_of(const tkf_frame& frame) {
  const bool hd = frame.yuv_matrix == TKF_YUV_BT709, limited = frame.yuv_range == TKF_YUV_LIMITED;
  const double kr = hd ? 0.2126 : 0.299, kb = hd ? 0.0722 : 0.114, kg = 1 - kr - kb;
  const double luma = limited ? 255.0 / 219 : 1.0, chroma = limited ? 255.0 / 224 : 1.0;
  const auto fixed = [](double factor, int bits) {
    return static_cast<std::int32_t>(std::lround(std::ldexp(factor, bits)));
  };
  const double red_cr = 2 * (1 - kr) * chroma, blue_cb = 2 * (1 - kb) * chroma;
  YuvFactors factors{};
  factors.black = limited ? 16 : 0;
  factors.luma = fixed(luma, fraction_bits);
  factors.red_cr = fixed(red_cr, chroma_bits);
  factors.green_cb = fixed(-blue_cb * kb / kg, chroma_bits);
  factors.green_cr = fixed(-red_cr * kr / kg, chroma_bits);
  factors.blue_cb = fixed(blue_cb, chroma_bits);
  const bool centre = frame.chroma_siting == TKF_CHROMA_CENTRE;
  factors.even_before = centre ? 1 : 0;
  factors.even_own = centre ? 3 : 4;
  factors.odd_own = centre ? 3 : 2;
  factors.odd_after = centre ? 1 : 2;
  return factors;
}

/* What a row is made of. near, far: the chroma rows that it takes 3/4 and 1/4 of. */
struct Nv12Row {
  const std::uint8_t *luma, *near, *far;
  std::size_t samples; /* of a chroma row */
};

inline __attribute__((always_inline)) std::uint8_t rounded(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> fraction_bits, 0, 255));
}

/* Columns `left` to `right` of a row -> packed RGB. Inlined into each of its callers, so that they compile it for their
 * processor. */
inline __attribute__((always_inline)) void convert(const Nv12Row& row, const YuvFactors& factors, std::size_t left,
                                                   std::size_t right, std::uint8_t* rgb) {
  for (std::size_t start = left & ~std::size_t{1}; start < right; start += block) {
    const std::size_t begin = std::max(start, left), end = std::min(start + block, right);
    // Between the rows, in quarters: own samples from [1], and one neighbour to each side.
    const std::size_t own = start / 2, own_end = (end + 1) / 2, count = own_end - own;
    std::int32_t cb[block / 2 + 2], cr[block / 2 + 2];
    const auto blend = [&](std::size_t to, std::size_t sample) {
      cb[to] = row.near[2 * sample] * 3 + row.far[2 * sample];
      cr[to] = row.near[2 * sample + 1] * 3 + row.far[2 * sample + 1];
    };
    blend(0, std::max<std::size_t>(own, 1) - 1);
    for (std::size_t i = 0; i < count; ++i) blend(i + 1, own + i);
    blend(count + 1, std::min(own_end, row.samples - 1));

    // Between the columns, in sixteenths around 0.
    constexpr std::int32_t zero = 128 * 16;
    std::int32_t blue[block], red[block];
    for (std::size_t i = 0; i < count; ++i) {
      blue[2 * i] = cb[i] * factors.even_before + cb[i + 1] * factors.even_own - zero;
      blue[2 * i + 1] = cb[i + 1] * factors.odd_own + cb[i + 2] * factors.odd_after - zero;
      red[2 * i] = cr[i] * factors.even_before + cr[i + 1] * factors.even_own - zero;
      red[2 * i + 1] = cr[i + 1] * factors.odd_own + cr[i + 2] * factors.odd_after - zero;
    }
    std::uint8_t planes[3][block];
    for (std::size_t i = begin - start; i < end - start; ++i) {
      const std::int32_t y = (row.luma[start + i] - factors.black) * factors.luma + (1 << (fraction_bits - 1));
      planes[0][i] = rounded(y + red[i] * factors.red_cr);
      planes[1][i] = rounded(y + red[i] * factors.green_cr + blue[i] * factors.green_cb);
      planes[2][i] = rounded(y + blue[i] * factors.blue_cb);
    }
    for (std::size_t i = begin - start; i < end - start; ++i, rgb += 3) {
      for (std::size_t c = 0; c < 3; ++c) rgb[c] = planes[c][i];
    }
  }
}

void convert_anywhere(const Nv12Row& row, const YuvFactors& factors, std::size_t left, std::size_t right,
                      std::uint8_t* rgb) {
  convert(row, factors, left, right, rgb);
}

#if defined(TKF_AVX2)
TKF_AVX2 void convert_avx2(const Nv12Row& row, const YuvFactors& factors, std::size_t left, std::size_t right,
                           std::uint8_t* rgb) {
  convert(row, factors, left, right, rgb);
}
#endif

Nv12Row nv12_row(const tkf_frame& frame, std::size_t y) {
  const std::size_t own = y / 2, last = static_cast<std::size_t>(frame.height) / 2 - 1;
  const std::size_t other = y % 2 == 1 ? std::min(own + 1, last) : std::max<std::size_t>(own, 1) - 1;
  return {frame.data + y * frame.stride, frame.chroma + own * frame.chroma_stride,
          frame.chroma + other * frame.chroma_stride, static_cast<std::size_t>(frame.width) / 2};
}

void drop_fourth(const std::uint8_t* pixels, std::size_t count, std::uint8_t* three) {
  for (std::size_t i = 0; i < count; ++i, pixels += 4, three += 3) {
    for (std::size_t c = 0; c < 3; ++c) three[c] = pixels[c];
  }
}

}  // namespace

FrameRows::FrameRows(const tkf_frame& frame, std::size_t left, std::size_t top, std::size_t width, bool avx2)
    : frame_(frame), factors_(factors_of(frame)), left_(left), top_(top), width_(width), avx2_(avx2) {}

const std::uint8_t* FrameRows::row(std::size_t y, std::uint8_t* room) const {
  const std::uint8_t* line = frame_.data + (top_ + y) * frame_.stride;
  switch (frame_.format) {
    case TKF_PIXEL_RGBA:
    case TKF_PIXEL_BGRA:
      drop_fourth(line + left_ * 4, width_, room);
      return room;
    case TKF_PIXEL_NV12: {
      const Nv12Row row = nv12_row(frame_, top_ + y);
#if defined(TKF_AVX2)
      if (avx2_) {
        convert_avx2(row, factors_, left_, left_ + width_, room);
        return room;
      }
#endif
      convert_anywhere(row, factors_, left_, left_ + width_, room);
      return room;
    }
    default:
      return line + left_ * 3;
  }
}

}  // namespace tkf
