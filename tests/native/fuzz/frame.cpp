/* Any crop of any frame: refused exactly where tkfnet.h says so, else prepared from memory that is no larger than it
 * has to be, with AVX2 and without to the same bytes. */
#include "frame.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "error.h"

namespace {

__extension__ typedef __int128 Wide;

constexpr Wide most_addressable = PTRDIFF_MAX;
constexpr Wide most_allocated = 1 << 20;
const std::uint8_t somewhere = 0; /* where a plane is until it is known how large it has to be */

/* The fuzzer's bytes, then zeros. */
class Reader {
 public:
  Reader(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  std::uint64_t bits(int bytes) {
    std::uint64_t value = 0;
    for (; bytes > 0; --bytes) value = value << 8 | (at_ < size_ ? data_[at_++] : 0);
    return value;
  }

  /* Below `usual`; one in 32 is anything. */
  std::int32_t field(std::uint32_t usual) {
    if (bits(1) < 8) return static_cast<std::int32_t>(bits(4));
    return static_cast<std::int32_t>(bits(2) % usual);
  }

  /* 0, or some bytes more than `row`, or anything. */
  std::size_t stride(Wide row) {
    const auto kind = bits(1);
    if (kind < 8) return bits(8);
    return kind < 128 || row < 0 ? 0 : static_cast<std::size_t>(row) + bits(1) % 70;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_, at_ = 0;
};

/* The rules of tkfnet.h, in numbers that do not overflow. */
struct Rules {
  explicit Rules(const tkf_frame& frame) {
    const bool nv12 = frame.format == TKF_PIXEL_NV12;
    const bool four = frame.format == TKF_PIXEL_RGBA || frame.format == TKF_PIXEL_BGRA;
    row = Wide{frame.width} * (nv12 ? 1 : four ? 4 : 3);
    stride = frame.stride != 0 ? Wide{frame.stride} : row;
    chroma_stride = frame.chroma_stride != 0 ? Wide{frame.chroma_stride} : stride;
    luma = (Wide{frame.height} - 1) * stride + row;
    chroma = nv12 ? (Wide{frame.height} / 2 - 1) * chroma_stride + frame.width : 0;
    const Wide before = Wide{frame.height} * stride;
    const auto choice = [](std::int32_t value, int count) { return value >= 0 && value < count; };
    sound = choice(frame.format, 5) && frame.width >= 1 && frame.width <= 16384 && frame.height >= 1 &&
            frame.height <= 16384 && frame.data != nullptr && stride >= row && luma <= most_addressable;
    if (sound && nv12) {
      sound = frame.width % 2 == 0 && frame.height % 2 == 0 && choice(frame.yuv_matrix, 2) &&
              choice(frame.yuv_range, 2) && choice(frame.chroma_siting, 2) && chroma_stride >= frame.width &&
              chroma <= most_addressable && (frame.chroma != nullptr || before + chroma <= most_addressable);
      if (frame.chroma == nullptr) {
        luma = before + chroma;
        chroma = 0;
      }
    }
  }

  Wide row, stride, chroma_stride, luma, chroma;
  bool sound;
};

void expect(bool met, const char* what) {
  if (met) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

std::unique_ptr<std::uint8_t[]> noise(Wide size, std::uint32_t seed) {
  auto bytes = std::make_unique<std::uint8_t[]>(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < static_cast<std::size_t>(size); ++i) {
    seed = seed * 1664525 + 1013904223;
    bytes[i] = static_cast<std::uint8_t>(seed >> 24);
  }
  return bytes;
}

tkf_frame any_frame(Reader& reader) {
  tkf_frame frame{};
  frame.format = reader.field(5);
  const std::uint32_t columns = reader.bits(1) < 64 ? 16384 : 100, rows = reader.bits(1) < 64 ? 16384 : 100;
  frame.width = reader.field(columns);
  frame.height = reader.field(rows);
  if (frame.format == TKF_PIXEL_NV12 && reader.bits(1) < 224) {
    frame.width &= ~1;
    frame.height &= ~1;
  }
  frame.data = reader.bits(1) < 8 ? nullptr : &somewhere;
  frame.stride = reader.stride(Rules(frame).row);
  frame.chroma = reader.bits(1) < 128 ? nullptr : &somewhere;
  frame.chroma_stride = reader.stride(frame.width);
  frame.yuv_matrix = reader.field(2);
  frame.yuv_range = reader.field(2);
  frame.chroma_siting = reader.field(2);
  return frame;
}

/* One axis of a box: what is left of the frame, or anything. */
std::int32_t any_length(Reader& reader, std::int32_t begin, std::int32_t whole) {
  if (reader.bits(1) >= 128) return reader.field(64);
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(whole) - static_cast<std::uint32_t>(begin));
}

void prepare_both_ways(tkf_frame frame, tkf_crop crop, const Rules& rules, Reader& reader) {
  const auto side = static_cast<std::int32_t>(1 + reader.bits(2) % 300);
  const auto seed = static_cast<std::uint32_t>(reader.bits(2));
  const auto luma = noise(rules.luma, seed), chroma = noise(rules.chroma, ~seed);
  frame.data = luma.get();
  if (frame.chroma != nullptr) frame.chroma = chroma.get();
  crop.frame = &frame;
  const std::size_t bytes = static_cast<std::size_t>(side) * static_cast<std::size_t>(side) * 3;
  const auto rgb = std::make_unique<std::uint8_t[]>(bytes), again = std::make_unique<std::uint8_t[]>(bytes);
  tkf::check_crop(crop, 0);
  tkf::prepare(crop, side, rgb.get());
  tkf::prepare(crop, side, again.get(), false);
  expect(std::memcmp(rgb.get(), again.get(), bytes) == 0, "AVX2 gives other pixels");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Reader reader(data, size);
  tkf_frame frame = any_frame(reader);
  // No byte behind struct_size may be read, nor behind struct_size itself where it is no size.
  frame.struct_size = reader.bits(1) < 32 ? reader.bits(2) % 8192 : sizeof frame;
  const bool some_size = frame.struct_size >= sizeof(std::size_t) && frame.struct_size <= 4096;
  std::vector<std::uint8_t> given(some_size ? frame.struct_size : sizeof(std::size_t));
  std::memcpy(given.data(), &frame, std::min(given.size(), sizeof frame));
  const bool newer = given.size() > sizeof frame && reader.bits(1) < 64;
  if (newer) given[sizeof frame + reader.bits(2) % (given.size() - sizeof frame)] = 1;

  tkf_frame known{};
  std::memcpy(&known, given.data(), std::min(given.size(), sizeof known));
  known.struct_size = sizeof known;
  const Rules rules(known);
  tkf_crop crop{};
  crop.frame = reinterpret_cast<const tkf_frame*>(given.data());
  crop.x = reader.field(static_cast<std::uint32_t>(known.width) | 1);
  crop.y = reader.field(static_cast<std::uint32_t>(known.height) | 1);
  crop.width = any_length(reader, crop.x, known.width);
  crop.height = any_length(reader, crop.y, known.height);
  const bool inside = crop.x >= 0 && crop.y >= 0 && crop.width >= 1 && crop.height >= 1 &&
                      std::int64_t{crop.x} + crop.width <= known.width &&
                      std::int64_t{crop.y} + crop.height <= known.height;
  bool taken = true;
  try {
    tkf::check_crop(crop, 3);
  } catch (const tkf::Error& error) {
    taken = false;
    expect(error.status == TKF_ERROR_ARGUMENT, "another status");
    expect(std::strncmp(error.what(), "crop 3 (counted from 0): ", 25) == 0, error.what());
  }
  expect(taken == (some_size && !newer && rules.sound && inside), taken ? "taken" : "refused");
  if (taken && rules.luma + rules.chroma <= most_allocated) prepare_both_ways(known, crop, rules, reader);
  return 0;
}
