// Four threads on one engine, a session each: four_threads ENGINE.tkf [IMAGES PER THREAD]
//
// Prints the images per second of one thread and of four. On a CPU one request uses every core by itself, so that four
// gain little there; on a GPU they hide the time that one spends in the host.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "tkfnet.hpp"

namespace {

std::vector<std::uint8_t> noise(std::size_t bytes, unsigned seed) {
  std::mt19937 draw(seed);
  std::vector<std::uint8_t> pixels(bytes);
  for (auto& value : pixels) value = static_cast<std::uint8_t>(draw());
  return pixels;
}

// Images per second of `threads` threads that run `each` images, one at a time.
double rate(tkfnet::Engine& engine, unsigned threads, int each) {
  std::vector<tkfnet::Session> sessions;
  for (unsigned t = 0; t < threads; ++t) sessions.push_back(engine.session());
  const auto side = static_cast<std::size_t>(engine.input_size());
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> workers;
  for (unsigned t = 0; t < threads; ++t)
    workers.emplace_back([&, t] {
      const auto pixels = noise(side * side * 3, t);
      std::vector<float> probabilities(static_cast<std::size_t>(engine.class_count()));
      for (int i = 0; i < each; ++i) sessions[t].run(pixels, 1, probabilities);
    });
  for (auto& worker : workers) worker.join();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return threads * each / seconds.count();
}

}  // namespace

int main(int count, char** arguments) try {
  if (count < 2 || count > 3) {
    std::fprintf(stderr, "usage: %s ENGINE.tkf [IMAGES PER THREAD]\n", arguments[0]);
    return 64;
  }
  const int each = count == 3 ? std::atoi(arguments[2]) : 100;
  tkfnet::EngineOptions options;
  options.allow_native_code = true;  // the file is ours
  auto engine = tkfnet::Engine::open(arguments[1], options);
  rate(engine, 1, 3);  // the first requests are slower
  std::printf("%s on %s\n", engine.precision().c_str(), engine.device_name().c_str());
  std::printf("1 thread:  %.1f images/s\n", rate(engine, 1, each));
  std::printf("4 threads: %.1f images/s\n", rate(engine, 4, each));
  return 0;
} catch (const tkfnet::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
