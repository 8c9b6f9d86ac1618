/* Resizing with a triangle filter (https://pillow.readthedocs.io/en/stable/handbook/concepts.html#filters).
 *
 * With s = input pixels / output pixels of an axis and t = max(s, 1), the centre of output pixel i lies at (i + 0.5) s,
 * and input pixel j, whose centre lies at j + 0.5, has the weight max(0, 1 - |j + 0.5 - (i + 0.5) s| / t), divided by
 * the sum of output pixel i's weights. Both axes take weights of 22 fractional bits and round to 8 bits; an axis that
 * keeps its size is left alone. Columns come first, unless rows get fewer, and by more than twice as many pixels as
 * columns do (since Pillow 13: https://github.com/python-pillow/Pillow/pull/9549). */
#include "crop_resize.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

namespace tkf {
namespace {

constexpr std::size_t channels = 3;
constexpr int weight_bits = 22;
constexpr std::int32_t half = 1 << (weight_bits - 1);

/* Which input pixels make an output pixel, and with what weights. The same number of them for each, so that loops have
 * one length: those that it does not need weigh 0. */
struct Axis {
  Axis(std::size_t from, std::size_t to);

  std::size_t taps = 1;
  std::vector<std::size_t> first;    /* [to]; never descends, and first + taps <= from */
  std::vector<std::int32_t> weights; /* [to, taps] */
};

Axis::Axis(std::size_t from, std::size_t to) : first(to) {
  // One rounding a statement: where a compiler fuses multiplications into additions, it does so within one only.
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double reach = std::max(scale, 1.0);
  const double per_reach = 1.0 / reach;
  const auto centre_of = [scale](std::size_t i) { return (static_cast<double>(i) + 0.5) * scale; };
  const auto end_of = [from, reach](double centre) {
    const double end = centre + reach + 0.5;
    return std::min(from, static_cast<std::size_t>(end));
  };
  for (std::size_t i = 0; i < to; ++i) {
    const double centre = centre_of(i);
    const double begin = centre - reach + 0.5;
    first[i] = static_cast<std::size_t>(std::max(begin, 0.0));
    taps = std::max(taps, end_of(centre) - first[i]);
  }
  weights.assign(to * taps, 0);
  for (std::size_t i = 0; i < to; ++i) {
    const double centre = centre_of(i);
    const std::size_t begin = first[i], end = end_of(centre);
    const auto weight = [centre, per_reach](std::size_t pixel) {
      const double distance = (static_cast<double>(pixel) - centre + 0.5) * per_reach;
      return std::max(0.0, 1.0 - std::fabs(distance));
    };
    double sum = 0.0;
    for (std::size_t pixel = begin; pixel < end; ++pixel) sum += weight(pixel);
    first[i] = std::min(begin, from - taps);
    for (std::size_t pixel = begin; pixel < end; ++pixel) {
      const double share = weight(pixel) / sum;
      weights[i * taps + pixel - first[i]] = static_cast<std::int32_t>(0.5 + share * (1 << weight_bits));
    }
  }
}

/* The weights of `Axis` for columns: two pixels are 6 of 8 bytes that are read at once. */
struct PixelPairs {
  PixelPairs(const Axis& axis, std::size_t from);

  std::size_t pairs;
  /* The first output pixels whose reads stay inside a row of `from` pixels. Never the last, which takes the last input
   * pixel: 4 bytes are written for each. */
  std::size_t in_place;
  std::vector<std::array<std::int32_t, 8>> weights; /* [in_place, pairs]: a a a b b b 0 0 */
};

PixelPairs::PixelPairs(const Axis& axis, std::size_t from) : pairs((axis.taps + 1) / 2) {
  const auto leaves = [this, from](std::size_t first) { return first + 2 * pairs >= from; };
  const auto end = std::find_if(axis.first.begin(), axis.first.end(), leaves);
  in_place = static_cast<std::size_t>(end - axis.first.begin());
  weights.resize(in_place * pairs);
  for (std::size_t i = 0; i < in_place; ++i) {
    for (std::size_t t = 0; t < axis.taps; ++t) {
      auto& pair = weights[i * pairs + t / 2];
      std::fill_n(pair.begin() + t % 2 * channels, channels, axis.weights[i * axis.taps + t]);
    }
  }
}

// The roundings of 16384 weights may add up to more than 1, but never make white more than 255.
static_assert(255 * (16384 / 2) + half < 1 << weight_bits);

std::uint8_t rounded(std::int32_t sum) { return static_cast<std::uint8_t>(sum >> weight_bits); }

/* The output pixels from `begin` of one row. */
void mix_columns(const std::uint8_t* input, const Axis& axis, std::size_t begin, std::uint8_t* output) {
  const std::size_t taps = axis.taps;
  for (std::size_t i = begin; i < axis.first.size(); ++i) {
    const std::uint8_t* pixels = input + axis.first[i] * channels;
    const std::int32_t* weights = axis.weights.data() + i * taps;
    std::int32_t sums[channels] = {half, half, half};
    for (std::size_t t = 0; t < taps; ++t) {
      for (std::size_t c = 0; c < channels; ++c) sums[c] += pixels[t * channels + c] * weights[t];
    }
    for (std::size_t c = 0; c < channels; ++c) output[i * channels + c] = rounded(sums[c]);
  }
}

/* One output row of `count` bytes, of `taps` rows. */
void mix_rows(const std::uint8_t* const* rows, const std::int32_t* weights, std::size_t taps, std::size_t count,
              std::uint8_t* output) {
  constexpr std::size_t block = 64;
  for (std::size_t at = 0; at < count; at += block) {
    const std::size_t end = std::min(block, count - at);
    std::int32_t sums[block];
    std::fill_n(sums, end, half);
    for (std::size_t t = 0; t < taps; ++t) {
      const std::uint8_t* row = rows[t] + at;
      for (std::size_t i = 0; i < end; ++i) sums[i] += row[i] * weights[t];
    }
    for (std::size_t i = 0; i < end; ++i) output[at + i] = rounded(sums[i]);
  }
}

#if defined(TKF_AVX2)
TKF_AVX2 __m256i widened(const std::uint8_t* bytes) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
}

/* The output pixels that are `in_place`. known_pairs: `spread.pairs` for a loop of that length, 0 for any. */
template <std::size_t known_pairs>
TKF_AVX2 void mix_columns_avx2(const std::uint8_t* input, const Axis& axis, const PixelPairs& spread,
                               std::uint8_t* output) {
  const __m256i second_to_first = _mm256_setr_epi32(3, 4, 5, 3, 4, 5, 3, 4);
  const __m256i nothing = _mm256_setr_epi32(half, half, half, 0, 0, 0, 0, 0);
  const std::size_t pairs = known_pairs != 0 ? known_pairs : spread.pairs, in_place = spread.in_place;
  const std::size_t* first = axis.first.data();
  const auto* weights = reinterpret_cast<const __m256i*>(spread.weights.data());
  for (std::size_t i = 0; i < in_place; ++i, weights += pairs) {
    const std::uint8_t* pixels = input + first[i] * channels;
    __m256i sums = nothing;
    for (std::size_t pair = 0; pair < pairs; ++pair, pixels += 2 * channels) {
      sums = _mm256_add_epi32(sums, _mm256_mullo_epi32(widened(pixels), _mm256_loadu_si256(weights + pair)));
    }
    sums = _mm256_add_epi32(sums, _mm256_permutevar8x32_epi32(sums, second_to_first));
    const __m128i pixel = _mm_srai_epi32(_mm256_castsi256_si128(sums), weight_bits);
    const __m128i words = _mm_packs_epi32(pixel, pixel);
    const std::int32_t rgb = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    std::memcpy(output + i * channels, &rgb, sizeof rgb);
  }
}

/* `count` bytes, at least 32. */
TKF_AVX2 void mix_rows_avx2(const std::uint8_t* const* rows, const std::int32_t* weights, std::size_t taps,
                            std::size_t count, std::uint8_t* output) {
  const __m256i after_packing = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (std::size_t begin = 0; begin < count; begin += 32) {
    // The last 32 overlap those before them: the same bytes once more.
    const std::size_t at = std::min(begin, count - 32);
    __m256i sums[4];
    for (__m256i& sum : sums) sum = _mm256_set1_epi32(half);
    for (std::size_t t = 0; t < taps; ++t) {
      const __m256i weight = _mm256_set1_epi32(weights[t]);
      for (std::size_t v = 0; v < 4; ++v) {
        sums[v] = _mm256_add_epi32(sums[v], _mm256_mullo_epi32(widened(rows[t] + at + 8 * v), weight));
      }
    }
    for (__m256i& sum : sums) sum = _mm256_srai_epi32(sum, weight_bits);
    const __m256i bytes =
        _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(output + at), _mm256_permutevar8x32_epi32(bytes, after_packing));
  }
}
#endif

void resize_columns(const std::uint8_t* input, const Axis& axis, [[maybe_unused]] const PixelPairs& spread,
                    [[maybe_unused]] bool avx2, std::uint8_t* output) {
  std::size_t done = 0;
#if defined(TKF_AVX2)
  if (avx2) {
    // What enlarging takes, and shrinking to a half and to a third.
    switch (spread.pairs) {
      case 1: mix_columns_avx2<1>(input, axis, spread, output); break;
      case 2: mix_columns_avx2<2>(input, axis, spread, output); break;
      case 3: mix_columns_avx2<3>(input, axis, spread, output); break;
      default: mix_columns_avx2<0>(input, axis, spread, output);
    }
    done = spread.in_place;
  }
#endif
  mix_columns(input, axis, done, output);
}

void resize_rows(const std::uint8_t* const* rows, const std::int32_t* weights, std::size_t taps, std::size_t count,
                 [[maybe_unused]] bool avx2, std::uint8_t* output) {
#if defined(TKF_AVX2)
  if (avx2 && count >= 32) return mix_rows_avx2(rows, weights, taps, count, output);
#endif
  mix_rows(rows, weights, taps, count, output);
}

}  // namespace

void resize(const PixelRows& rows, std::size_t width, std::size_t height, std::size_t size, std::uint8_t* pixels,
            bool avx2) {
  const bool rows_first = height > size && (width <= size || height - size > 2 * (width - size));
  const bool columns_before = width != size && !rows_first, columns_after = width != size && rows_first;
  const std::size_t output_bytes = size * channels, input_bytes = width * channels;
  const Axis across(width, size), down(height, size);
  const PixelPairs spread(across, width);
  std::vector<std::uint8_t> room(width != size ? input_bytes : 0); /* a row whose columns are to be resized */
  const auto mixed_row = [&](std::size_t y, std::uint8_t* target) -> const std::uint8_t* {
    if (!columns_before) return rows.row(y, target);
    resize_columns(rows.row(y, room.data()), across, spread, avx2, target);
    return target;
  };

  if (height == size) {
    for (std::size_t y = 0; y < size; ++y, pixels += output_bytes) {
      const std::uint8_t* row = mixed_row(y, pixels);
      if (row != pixels) std::memcpy(pixels, row, output_bytes);
    }
    return;
  }
  // The rows that one output row is made of: row y stays in slot y % taps until row y + taps needs it.
  const std::size_t taps = down.taps, row_bytes = columns_before ? output_bytes : input_bytes;
  std::vector<std::uint8_t> slots(columns_before || !rows.in_place() ? taps * row_bytes : 0);
  std::vector<const std::uint8_t*> kept(taps), window(taps);
  std::size_t next = 0;
  for (std::size_t y = 0; y < size; ++y, pixels += output_bytes) {
    for (; next < down.first[y] + taps; ++next) {
      const std::size_t slot = next % taps;
      kept[slot] = mixed_row(next, slots.empty() ? nullptr : slots.data() + slot * row_bytes);
    }
    for (std::size_t t = 0; t < taps; ++t) window[t] = kept[(down.first[y] + t) % taps];
    std::uint8_t* mixed = columns_after ? room.data() : pixels;
    resize_rows(window.data(), down.weights.data() + y * taps, taps, row_bytes, avx2, mixed);
    if (columns_after) resize_columns(mixed, across, spread, avx2, pixels);
  }
}

}  // namespace tkf
