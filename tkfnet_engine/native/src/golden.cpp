#include "golden.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "error.h"

namespace tkf {
namespace {

constexpr const char* pixels_name = "golden/pixels";
constexpr const char* logits_name = "golden/logits";

std::string rounded(const char* format, double value) {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

[[noreturn]] void refuse(const EngineFile& file, const std::string& what, const char* code) {
  throw Error(TKF_ERROR_FILE,
              file.name() + ": " + what + "; expected uint8 images of the network's size and finite float32 logits of "
                                          "each; build the engine again",
              code);
}

/* Of a list that is not empty. */
double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double root_mean_square(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum / static_cast<double>(values.size()));
}

/* `expected` less each class's mean over the images, so that a constant answer is no signal. */
double signal_of(const std::vector<float>& expected, std::size_t classes) {
  std::vector<double> spread(expected.begin(), expected.end());
  for (std::size_t c = 0; c < classes; ++c) {
    std::vector<double> column;
    for (std::size_t i = c; i < spread.size(); i += classes) column.push_back(spread[i]);
    const double middle = mean(column);
    for (std::size_t i = c; i < spread.size(); i += classes) spread[i] -= middle;
  }
  return root_mean_square(spread);
}

/* One image has no spread over images. Four standard deviations of the error that is allowed, and the spread over
 * classes instead. */
std::string fault_of_one(const std::vector<float>& expected, const std::vector<float>& got, double allowed) {
  std::vector<double> spread(expected.begin(), expected.end());
  const double middle = mean(spread);
  for (double& value : spread) value -= middle;
  const double limit = 4 * root_mean_square(spread) * allowed;
  double error = 0;
  bool finite = true;
  for (std::size_t i = 0; i < got.size(); ++i) {
    finite = finite && std::isfinite(got[i]);
    error = std::max(error, std::fabs(static_cast<double>(got[i]) - expected[i]));
  }
  if (finite && error <= limit) return "";
  return "an error of " + rounded("%.3g", finite ? error : INFINITY) + ", expected at most " + rounded("%.3g", limit) +
         ", on one image";
}

}  // namespace

std::string golden_fault(const std::vector<float>& expected, const std::vector<float>& got, std::size_t classes) {
  constexpr double cap_db = 200;  // identical answers would be infinitely good
  const double allowed = std::pow(10.0, -required_sqnr_db / 20);
  const std::size_t images = expected.size() / classes;
  if (images < 2) return fault_of_one(expected, got, allowed);
  const double signal = signal_of(expected, classes);
  const bool finite = std::all_of(got.begin(), got.end(), [](float value) { return std::isfinite(value); });
  std::vector<double> errors;
  for (std::size_t i = 0; i < got.size(); ++i) errors.push_back(static_cast<double>(got[i]) - expected[i]);
  const double rms = finite ? root_mean_square(errors) : INFINITY;
  double sqnr = rms == 0 ? cap_db : -cap_db;
  if (finite && rms != 0 && signal != 0)
    sqnr = std::min(cap_db, std::max(-cap_db, 20 * std::log10(signal / rms)));
  if (sqnr < required_sqnr_db)
    return "SQNR " + rounded("%.1f", sqnr) + " dB on " + std::to_string(images) + " images, expected at least " +
           rounded("%.0f", required_sqnr_db) + " dB";
  // A near-tie is a gap that the allowed error may close: three standard deviations of a difference of two errors. It
  // follows from the requirement, not from the error found.
  const double margin = 4 * signal * allowed;
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < images; ++i) {
    const float* row = expected.data() + i * classes;
    const float* own = got.data() + i * classes;
    const auto best = std::max_element(row, row + classes) - row;
    const auto chosen = std::max_element(own, own + classes) - own;
    if (best != chosen && static_cast<double>(row[best]) - row[chosen] > margin) ++wrong;
  }
  if (wrong == 0) return "";
  return std::to_string(wrong) + " of " + std::to_string(images) + " images get another label";
}

void check_golden(const Facts& facts, const EngineFile& file, std::size_t batch, const Answer& answer) {
  if (!file.has(pixels_name)) return;
  const Tensor& pixels = file.tensor(pixels_name);
  const Tensor& logits = file.tensor(logits_name);
  if (pixels.dtype != "U8" || logits.dtype != "F32")
    refuse(file, "verification images of " + pixels.dtype + " and logits of " + logits.dtype, "dtype");
  const std::vector<std::uint64_t> shape{logits.shape.empty() ? 0 : logits.shape[0], facts.size, facts.size, 3};
  if (pixels.shape != shape || logits.shape != std::vector<std::uint64_t>{shape[0], facts.classes()})
    refuse(file, "verification images, or the logits of them, of another shape", "shape");
  std::vector<float> expected(logits.data.size() / sizeof(float)), got;
  std::memcpy(expected.data(), logits.data.data(), logits.data.size());
  if (!std::all_of(expected.begin(), expected.end(), [](float value) { return std::isfinite(value); }))
    refuse(file, "verification logits that are not finite", "tensor");
  for (std::size_t first = 0; first < shape[0]; first += batch) {
    const std::size_t count = std::min<std::size_t>(batch, shape[0] - first);
    const float* part = answer(pixels.data.data() + first * facts.image_bytes(), count);
    got.insert(got.end(), part, part + count * facts.classes());
  }
  if (const std::string fault = golden_fault(expected, got, facts.classes()); !fault.empty())
    throw Error(TKF_ERROR_ANSWER, "this GPU does not answer as the network: " + fault +
                                      "; expected the answer in the engine file; update the driver, and if it stays so "
                                      "build the engine on this machine");
}

}  // namespace tkf
