/* A face in a frame -> the network's square of RGB pixels. tkfnet_engine/preprocess.py is the other implementation. */
#pragma once

#include <cstddef>
#include <cstdint>

#include "avx2.h"
#include "tkfnet.h"

namespace tkf {

/* Checks everything, before a pixel is read; throws `Error` TKF_ERROR_ARGUMENT that names the crop by `number`. */
void check_crop(const tkf_crop& crop, std::size_t number);

/* rgb: uint8 [size, size, 3]. crop: passed `check_crop`. size: 1 to 16384. avx2: for tests. Safe for many threads;
 * throws std::bad_alloc. */
void prepare(const tkf_crop& crop, std::int32_t size, std::uint8_t* rgb, bool avx2 = has_avx2());

}  // namespace tkf
