#include "session.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.h"
#include "frame.h"

using tkf::Error;

tkf_session::tkf_session(std::shared_ptr<const OpenedEngine> engine, tkf_output output)
    : engine_(std::move(engine)), output_kind_(output), backend_(engine_->backend->open_session()) {}

void tkf_session::run(const std::uint8_t* rgb, std::size_t count, float* output) {
  const std::size_t image_bytes = engine_->facts.image_bytes();
  run_in_parts(count, output, [&](std::size_t first, std::size_t part) {
    return backend_->run(rgb + first * image_bytes, part, image_bytes);
  });
}

void tkf_session::run_crops(const tkf_crop* crops, std::size_t count, float* output) {
  const std::size_t image_bytes = engine_->facts.image_bytes();
  const auto size = static_cast<std::int32_t>(engine_->facts.size);
  run_in_parts(count, output, [&](std::size_t first, std::size_t part) {
    std::uint8_t* pixels = backend_->pixels(part);
    for (std::size_t i = 0; i < part; ++i) tkf::prepare(crops[first + i], size, pixels + i * image_bytes);
    return backend_->run(pixels, part, image_bytes);
  });
}

/* run_part: (first image, how many) -> their logits. `output` is written once all parts have succeeded. */
template <class RunPart>
void tkf_session::run_in_parts(std::size_t count, float* output, const RunPart& run_part) {
  check_not_submitted();
  const std::size_t classes = engine_->facts.classes(), most = engine_->facts.max_batch;
  if (count <= most) {
    give(run_part(0, count), count, output);
    return;
  }
  answer_.resize(count * classes);
  for (std::size_t first = 0; first < count; first += most) {
    const std::size_t part = std::min(most, count - first);
    give(run_part(first, part), part, answer_.data() + first * classes);
  }
  std::memcpy(output, answer_.data(), answer_.size() * sizeof(float));
}

void tkf_session::submit(const std::uint8_t* rgb, std::size_t count, float* output) {
  check_one_request(count);
  std::memcpy(backend_->pixels(count), rgb, count * engine_->facts.image_bytes());
  begin(count, output);
}

void tkf_session::submit_crops(const tkf_crop* crops, std::size_t count, float* output) {
  check_one_request(count);
  const auto size = static_cast<std::int32_t>(engine_->facts.size);
  std::uint8_t* pixels = backend_->pixels(count);
  for (std::size_t i = 0; i < count; ++i) tkf::prepare(crops[i], size, pixels + i * engine_->facts.image_bytes());
  begin(count, output);
}

void tkf_session::begin(std::size_t count, float* output) {
  backend_->begin(count);
  submitted_output_ = output;
  submitted_count_ = count;
}

void tkf_session::wait() {
  if (submitted_output_ == nullptr)
    throw Error(TKF_ERROR_ARGUMENT, "nothing was submitted; expected tkf_submit before; call that first");
  float* output = submitted_output_;
  submitted_output_ = nullptr;  // whatever comes of it, it has ended
  give(backend_->end(), submitted_count_, output);
}

void tkf_session::run_device(const void* pixels, std::size_t count, float* logits, void* stream) {
  check_one_request(count);
  backend_->run_device(pixels, count, logits, stream);
}

void tkf_session::check_not_submitted() const {
  if (submitted_output_ != nullptr)
    throw Error(TKF_ERROR_BUSY, "a submitted request is still out; expected tkf_wait before the next; call that first");
}

void tkf_session::check_one_request(std::size_t count) const {
  check_not_submitted();
  if (count > engine_->facts.max_batch)
    throw Error(TKF_ERROR_ARGUMENT,
                "got " + std::to_string(count) + " images in one request; expected 1 to " +
                    std::to_string(engine_->facts.max_batch) +
                    ", this engine's largest batch; split them, or build with a larger --max-batch");
}

/* Logits, float32 [count, classes] -> what the session was opened for. Nothing is written if they are not finite. */
void tkf_session::give(const float* logits, std::size_t count, float* output) const {
  const std::size_t classes = engine_->facts.classes();
  const auto finite = [](float value) { return std::isfinite(value); };
  if (!std::all_of(logits, logits + count * classes, finite))
    throw Error(TKF_ERROR_ANSWER, std::string("backend ") + engine_->backend->name() +
                                      " gave an answer that is not finite numbers; the engine file is not at fault if "
                                      "it verifies: python -m tkfnet_engine.info");
  if (output_kind_ == TKF_OUTPUT_LOGITS) {
    std::memcpy(output, logits, count * classes * sizeof(float));
    return;
  }
  for (std::size_t i = 0; i < count; ++i, logits += classes, output += classes) {
    const double largest = *std::max_element(logits, logits + classes);
    double sum = 0;
    for (std::size_t c = 0; c < classes; ++c) sum += std::exp(logits[c] - largest);
    for (std::size_t c = 0; c < classes; ++c) output[c] = static_cast<float>(std::exp(logits[c] - largest) / sum);
  }
}
