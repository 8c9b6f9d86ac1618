// libtkfnet on a GPU, for part_native.py. One JSON object on standard output.
//
//   native_engine answers ENGINE PIXELS OUT   logits of raw uint8 [N, S, S, 3], in requests of at most the largest batch
//   native_engine cold ENGINE                 from an existing CUDA context to the first answer, and what memory is used
//   native_engine latency ENGINE BLOCKS       batch 1: microseconds per tkf_run_device in a queue of 200, and per tkf_run
#include <dlfcn.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "tkfnet.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double microseconds(Clock::time_point since) {
  return std::chrono::duration<double, std::micro>(Clock::now() - since).count();
}

// The few calls that a program of its own would make with the CUDA toolkit's headers.
struct Cuda {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  void* stream = nullptr;

  template <class... Arguments>
  void call(const char* name, Arguments... arguments) const {
    auto* function = library != nullptr ? dlsym(library, name) : nullptr;
    if (function == nullptr) throw std::runtime_error(std::string(name) + " is not in libcuda.so.1");
    if (const int code = reinterpret_cast<int (*)(Arguments...)>(function)(arguments...))
      throw std::runtime_error(std::string(name) + " gives " + std::to_string(code));
  }

  void start() {
    void* context = nullptr;
    int device = 0;
    call("cuInit", 0u);
    call("cuDeviceGet", &device, 0);
    call("cuDevicePrimaryCtxRetain", &context, device);
    call("cuCtxPushCurrent_v2", context);
    call("cuStreamCreate", &stream, 1u);
  }

  void* allocate(std::size_t bytes) const {
    unsigned long long address = 0;
    call("cuMemAlloc_v2", &address, bytes);
    call("cuMemsetD8_v2", address, static_cast<unsigned char>(100), bytes);
    return reinterpret_cast<void*>(address);
  }

  void wait() const { call("cuStreamSynchronize", stream); }
};

tkfnet::Engine opened(const char* path) {
  tkfnet::EngineOptions options;
  options.allow_native_code = true;
  return tkfnet::Engine::open(path, options);
}

std::size_t image_bytes(const tkfnet::Engine& engine) {
  const auto side = static_cast<std::size_t>(engine.input_size());
  return side * side * 3;
}

void answers(const char* path, const char* pixels_path, const char* out_path) {
  auto engine = opened(path);
  std::ifstream file(pixels_path, std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  const std::vector<std::uint8_t> pixels(content.begin(), content.end());
  const auto logits = engine.session(TKF_OUTPUT_LOGITS).run(pixels, pixels.size() / image_bytes(engine));
  std::ofstream(out_path, std::ios::binary)
      .write(reinterpret_cast<const char*>(logits.data()), static_cast<std::streamsize>(logits.size() * sizeof(float)));
  std::printf("{\"images\": %zu}\n", pixels.size() / image_bytes(engine));
}

long resident_kib(const char* field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind(field, 0) == 0) return std::stol(line.substr(std::string(field).size()));
  return -1;
}

void cold(const char* path) {
  Cuda cuda;
  cuda.start();
  const long before = resident_kib("VmRSS:");
  const auto start = Clock::now();
  auto engine = opened(path);
  const double load = microseconds(start);
  auto session = engine.session();
  const auto answer = session.run(std::vector<std::uint8_t>(image_bytes(engine), 100), 1);
  const double first = microseconds(start);
  std::printf("{\"load_ms\": %.3f, \"first_ms\": %.3f, \"context_kib\": %ld, \"resident_kib\": %ld, \"peak_kib\": %ld}\n",
              load / 1e3, first / 1e3, before, resident_kib("VmRSS:"), resident_kib("VmHWM:"));
}

void latency(const char* path, int blocks) {
  constexpr int in_block = 200;
  Cuda cuda;
  cuda.start();
  auto engine = opened(path);
  auto session = engine.session();
  const auto* pixels = static_cast<const std::uint8_t*>(cuda.allocate(image_bytes(engine)));
  auto* logits = static_cast<float*>(cuda.allocate(sizeof(float) * static_cast<std::size_t>(engine.class_count())));
  const std::vector<std::uint8_t> rgb(image_bytes(engine), 100);
  std::vector<float> probabilities(static_cast<std::size_t>(engine.class_count()));
  std::string device, host;
  for (int block = -3; block < blocks; ++block) {  // the first three warm up
    auto start = Clock::now();
    for (int i = 0; i < in_block; ++i) session.run_device(pixels, 1, logits, cuda.stream);
    cuda.wait();
    const double queued = microseconds(start) / in_block;
    start = Clock::now();
    for (int i = 0; i < in_block; ++i) session.run(rgb, 1, probabilities);
    const double whole = microseconds(start) / in_block;
    if (block < 0) continue;
    device += (block != 0 ? ", " : "") + std::to_string(queued);
    host += (block != 0 ? ", " : "") + std::to_string(whole);
  }
  std::printf("{\"device_us\": [%s], \"host_us\": [%s]}\n", device.c_str(), host.c_str());
}

}  // namespace

int main(int count, char** arguments) try {
  const std::string what = count > 2 ? arguments[1] : "";
  if (what == "answers" && count == 5) {
    answers(arguments[2], arguments[3], arguments[4]);
  } else if (what == "cold" && count == 3) {
    cold(arguments[2]);
  } else if (what == "latency" && count == 4) {
    latency(arguments[2], std::stoi(arguments[3]));
  } else {
    std::fprintf(stderr, "see the top of native_engine.cpp\n");
    return 64;
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
