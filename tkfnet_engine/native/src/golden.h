/* The verification images that an engine file carries, and whether a GPU gives the reference's answer on them: as
 * tkfnet_engine/backends/golden.py and compare.py judge it. */
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine_file.h"
#include "facts.h"

namespace tkf {

/* What a build demands of the whole verification set (export/verify.py). */
constexpr double required_sqnr_db = 40;

/* uint8 [count, S, S, 3], how many -> float32 logits [count, classes], valid until the next call. */
using Answer = std::function<const float*(const std::uint8_t* pixels, std::size_t count)>;

/* `Error` TKF_ERROR_ANSWER unless `answer` gives the reference's on the file's images, if it has any, in parts of up to
 * `batch`; TKF_ERROR_FILE if these are not images and logits of the facts. */
void check_golden(const Facts& facts, const EngineFile& file, std::size_t batch, const Answer& answer);

/* What is wrong with logits [expected.size() / classes, classes], or "". At least one image. */
std::string golden_fault(const std::vector<float>& expected, const std::vector<float>& got, std::size_t classes);

}  // namespace tkf
