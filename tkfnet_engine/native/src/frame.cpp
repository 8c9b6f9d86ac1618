#include "frame.h"

#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "crop_resize.h"
#include "error.h"
#include "frame_colour.h"
#include "versioned_struct.h"

namespace tkf {
namespace {

constexpr std::int32_t max_side = 16384;
constexpr std::size_t unaddressable = std::numeric_limits<std::size_t>::max();

std::size_t unsigned_of(std::int32_t value) { return static_cast<std::size_t>(value); }

/* Of the luma, where that is a plane of its own. */
std::size_t row_bytes(const tkf_frame& frame) {
  const bool four = frame.format == TKF_PIXEL_RGBA || frame.format == TKF_PIXEL_BGRA;
  return unsigned_of(frame.width) * (frame.format == TKF_PIXEL_NV12 ? 1 : four ? 4 : 3);
}

/* From the first byte of a plane to behind its last, which has `row` bytes in its last row. */
std::size_t plane_bytes(std::size_t rows, std::size_t stride, std::size_t row) {
  std::size_t bytes = 0;
  const bool fits = !__builtin_mul_overflow(rows - 1, stride, &bytes) && !__builtin_add_overflow(bytes, row, &bytes) &&
                    bytes <= static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max());
  return fits ? bytes : unaddressable;
}

/* The defaults filled in, but for `chroma`, whose default is no address before the strides are known to be sound. */
tkf_frame with_strides(tkf_frame frame) {
  if (frame.stride == 0) frame.stride = row_bytes(frame);
  if (frame.chroma_stride == 0) frame.chroma_stride = frame.stride;
  return frame;
}

[[noreturn]] void refuse(const std::string& where, const std::string& message) {
  throw Error(TKF_ERROR_ARGUMENT, where + message);
}

/* Throws unless `value` counts one of the first `count` of the enumeration. */
void check_choice(const std::string& where, const char* field, std::int32_t value, int count, const char* type) {
  if (value >= 0 && value < count) return;
  refuse(where, std::string("frame: ") + field + " is " + std::to_string(value) + ", expected 0 to " +
                    std::to_string(count - 1) + "; use a " + type);
}

void check_stride(const std::string& where, const char* field, std::size_t stride, std::size_t row, std::size_t rows) {
  if (stride < row) {
    refuse(where, std::string("frame: ") + field + " is " + std::to_string(stride) + ", expected at least the " +
                      std::to_string(row) + " bytes of a row; give the bytes from one row to the next, or 0");
  }
  if (plane_bytes(rows, stride, row) == unaddressable) {
    refuse(where, std::string("frame: ") + field + " is " + std::to_string(stride) + ", and " + std::to_string(rows) +
                      " rows of it exceed all memory; give the bytes from one row to the next");
  }
}

void check_nv12(const std::string& where, const tkf_frame& frame) {
  const std::size_t width = unsigned_of(frame.width), height = unsigned_of(frame.height);
  check_choice(where, "yuv_matrix", frame.yuv_matrix, 2, "tkf_yuv_matrix");
  check_choice(where, "yuv_range", frame.yuv_range, 2, "tkf_yuv_range");
  check_choice(where, "chroma_siting", frame.chroma_siting, 2, "tkf_chroma_siting");
  check_stride(where, "chroma_stride", frame.chroma_stride, width, height / 2);
  if (frame.chroma != nullptr) return;
  // One plane, of whole rows of luma and what the chroma takes as its last row.
  if (plane_bytes(height + 1, frame.stride, plane_bytes(height / 2, frame.chroma_stride, width)) == unaddressable) {
    refuse(where, "frame: stride is " + std::to_string(frame.stride) + ", and " + std::to_string(height) +
                      " rows of it with the chroma behind them exceed all memory; give the bytes from one row to the "
                      "next, or where the chroma is");
  }
}

tkf_frame checked_frame(const std::string& where, const tkf_frame* given) {
  if (given == nullptr) refuse(where, "frame is NULL, expected a tkf_frame; point it at the picture");
  tkf_frame frame = known_fields(given, "tkf_frame", where);
  check_choice(where, "format", frame.format, 5, "tkf_pixel_format");
  const std::string size = std::to_string(frame.width) + " x " + std::to_string(frame.height);
  if (frame.width < 1 || frame.width > max_side || frame.height < 1 || frame.height > max_side) {
    refuse(where, "frame: it has " + size + " pixels, expected 1 to " + std::to_string(max_side) +
                      " each way; set width and height, or shrink the picture");
  }
  const bool nv12 = frame.format == TKF_PIXEL_NV12;
  if (nv12 && (frame.width % 2 != 0 || frame.height % 2 != 0)) {
    refuse(where, "frame: it has " + size + " pixels, expected even numbers of NV12; leave out the last row or column");
  }
  if (frame.data == nullptr) refuse(where, "frame: data is NULL, expected the first row; point it at the pixels");
  frame = with_strides(frame);
  check_stride(where, "stride", frame.stride, row_bytes(frame), unsigned_of(frame.height));
  if (nv12) check_nv12(where, frame);
  return frame;
}

}  // namespace

void check_crop(const tkf_crop& crop, std::size_t number) {
  const std::string where = "crop " + std::to_string(number) + " (counted from 0): ";
  const tkf_frame frame = checked_frame(where, crop.frame);
  const auto fits = [](std::int32_t begin, std::int32_t size, std::int32_t limit) {
    return begin >= 0 && size >= 1 && size <= limit && begin <= limit - size;
  };
  if (fits(crop.x, crop.width, frame.width) && fits(crop.y, crop.height, frame.height)) return;
  refuse(where, "box: got x " + std::to_string(crop.x) + ", y " + std::to_string(crop.y) + ", width " +
                    std::to_string(crop.width) + ", height " + std::to_string(crop.height) +
                    ", expected not empty and inside the " + std::to_string(frame.width) + " x " +
                    std::to_string(frame.height) +
                    " pixels; clip the box, and note that width and height are no lower right corner");
}

void prepare(const tkf_crop& crop, std::int32_t size, std::uint8_t* rgb, bool avx2) {
  tkf_frame frame = with_strides(known_fields(crop.frame, "tkf_frame"));
  if (frame.format == TKF_PIXEL_NV12 && frame.chroma == nullptr) {
    frame.chroma = frame.data + unsigned_of(frame.height) * frame.stride;
  }
  const FrameRows rows(frame, unsigned_of(crop.x), unsigned_of(crop.y), unsigned_of(crop.width),
                       avx2);
  const std::size_t side = unsigned_of(size);
  resize(rows, unsigned_of(crop.width), unsigned_of(crop.height), side, rgb, avx2);
  if (frame.format == TKF_PIXEL_BGR || frame.format == TKF_PIXEL_BGRA) {
    for (std::size_t i = 0; i < side * side; ++i) std::swap(rgb[3 * i], rgb[3 * i + 2]);
  }
}

}  // namespace tkf
