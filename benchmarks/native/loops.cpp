// One engine in a loop, by libtkfnet or by OpenVINO's own C++ API as its samples use it. Prints milliseconds per call.
//
//   loops tkfnet ENGINE BATCH SAMPLES      a face of 300 x 300 in a frame of 1280 x 720, to probabilities: tkf_run_strided
//   loops sample GRAPH BATCH SAMPLES       the same as OpenVINO's hello_classification does it: the resize in the graph
//   loops bare GRAPH BATCH SAMPLES         the network alone, on pixels that are there: as its sync_benchmark
//   loops overhead ENGINE GRAPH SAMPLES    tkf_run, and the bare call, in turn in one process: two lists
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

#include "tkfnet.hpp"

namespace {

constexpr std::size_t frame_width = 1280, frame_height = 720, face = 300, face_x = 401, face_y = 177;

std::vector<std::uint8_t> smooth_frame() {
  std::vector<std::uint8_t> frame(frame_width * frame_height * 3);
  for (std::size_t y = 0; y < frame_height; ++y)
    for (std::size_t x = 0; x < frame_width * 3; ++x)
      frame[y * frame_width * 3 + x] =
          static_cast<std::uint8_t>(128 + 100 * std::sin(0.013 * static_cast<double>(x)) * std::cos(0.02 * static_cast<double>(y)));
  return frame;
}

double milliseconds(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

void print(const std::vector<double>& times) {
  for (const double time : times) std::printf("%.6f ", time);
  std::printf("\n");
}

void time_and_print(int samples, const std::function<void()>& call) {
  for (int i = 0; i < 5; ++i) call();
  std::vector<double> times;
  for (int i = 0; i < samples; ++i) times.push_back(milliseconds(call));
  print(times);
}

std::string file(const char* path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

// As the engine is compiled: one stream, exact.
ov::CompiledModel compiled(ov::Core& core, const std::shared_ptr<ov::Model>& model) {
  return core.compile_model(model, "CPU", ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                            ov::hint::inference_precision(ov::element::f32));
}

void run_tkfnet(const char* path, std::size_t batch, int samples) {
  auto engine = tkfnet::Engine::open(path);
  auto session = engine.session();
  const auto pixels = smooth_frame();
  tkf_frame frame{};
  frame.struct_size = sizeof frame;
  frame.format = TKF_PIXEL_RGB;
  frame.width = frame_width;
  frame.height = frame_height;
  frame.data = pixels.data();
  const std::vector<tkf_crop> crops(batch, {&frame, face_x, face_y, face, face});
  std::vector<float> probabilities(batch * static_cast<std::size_t>(engine.class_count()));
  time_and_print(samples, [&] { session.run(crops, probabilities); });
}

void run_sample(const char* path, std::size_t batch, int samples) {
  ov::Core core;
  auto model = core.read_model(file(path), ov::Tensor());
  ov::preprocess::PrePostProcessor steps(model);
  steps.input().tensor().set_shape({batch, face, face, 3}).set_element_type(ov::element::u8).set_layout("NHWC");
  steps.input().preprocess().resize(ov::preprocess::ResizeAlgorithm::RESIZE_LINEAR);
  steps.input().model().set_layout("NHWC");
  auto network = compiled(core, steps.build());
  auto request = network.create_infer_request();
  auto input = request.get_input_tensor();
  const auto frame = smooth_frame();
  std::vector<float> probabilities;
  time_and_print(samples, [&] {
    auto* to = input.data<std::uint8_t>();
    for (std::size_t i = 0; i < batch; ++i)
      for (std::size_t y = 0; y < face; ++y, to += face * 3)
        std::memcpy(to, frame.data() + ((face_y + y) * frame_width + face_x) * 3, face * 3);
    request.infer();
    const auto output = request.get_output_tensor();
    const auto* logits = output.data<float>();
    const std::size_t classes = output.get_size() / batch;
    probabilities.assign(logits, logits + output.get_size());
    for (std::size_t i = 0; i < batch; ++i) {
      float* row = probabilities.data() + i * classes;
      const float largest = *std::max_element(row, row + classes);
      float sum = 0;
      for (std::size_t c = 0; c < classes; ++c) sum += row[c] = std::exp(row[c] - largest);
      for (std::size_t c = 0; c < classes; ++c) row[c] /= sum;
    }
  });
}

ov::InferRequest bare_request(const char* path, std::size_t batch) {
  static ov::Core core;
  auto network = compiled(core, core.read_model(file(path), ov::Tensor()));
  auto request = network.create_infer_request();
  const auto side = static_cast<std::size_t>(network.input().get_partial_shape()[1].get_length());
  ov::Tensor pixels(ov::element::u8, {batch, side, side, 3});
  std::memset(pixels.data(), 100, pixels.get_byte_size());
  request.set_input_tensor(pixels);
  return request;
}

void run_bare(const char* path, std::size_t batch, int samples) {
  auto request = bare_request(path, batch);
  time_and_print(samples, [&] { request.infer(); });
}

void run_overhead(const char* engine_path, const char* graph_path, int samples) {
  auto engine = tkfnet::Engine::open(engine_path);
  auto session = engine.session();
  const auto side = static_cast<std::size_t>(engine.input_size());
  const std::vector<std::uint8_t> pixels(side * side * 3, 100);
  std::vector<float> probabilities(static_cast<std::size_t>(engine.class_count()));
  auto request = bare_request(graph_path, 1);
  std::vector<double> ours, theirs;
  for (int i = 0; i < samples + 20; ++i) {
    ours.push_back(milliseconds([&] { session.run(pixels, 1, probabilities); }));
    theirs.push_back(milliseconds([&] { request.infer(); }));
  }
  ours.erase(ours.begin(), ours.begin() + 20);
  theirs.erase(theirs.begin(), theirs.begin() + 20);
  print(ours);
  print(theirs);
}

}  // namespace

int main(int count, char** arguments) try {
  const std::string what = count == 5 ? arguments[1] : "";
  const int samples = count == 5 ? std::stoi(arguments[4]) : 0;
  if (what == "overhead") {
    run_overhead(arguments[2], arguments[3], samples);
    return 0;
  }
  const auto batch = count == 5 ? static_cast<std::size_t>(std::stoul(arguments[3])) : 0;
  if (what == "tkfnet") {
    run_tkfnet(arguments[2], batch, samples);
  } else if (what == "sample") {
    run_sample(arguments[2], batch, samples);
  } else if (what == "bare") {
    run_bare(arguments[2], batch, samples);
  } else {
    std::fprintf(stderr, "see the top of loops.cpp\n");
    return 64;
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
