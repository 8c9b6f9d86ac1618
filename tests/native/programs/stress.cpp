/* The library under load, by its public functions:
 *   stress cycles ENGINE COUNT            open, run, close; prints resident KiB after each tenth of them
 *   stress threads ENGINE THREADS RUNS    sessions of one engine at once; every answer must be the first thread's own
 *   stress creating ENGINE THREADS        that many threads open an engine each at the same time
 *   stress answers ENGINE PIXELS OUT      logits of raw uint8 [N, S, S, 3] as raw float32; --bf16 behind it for that */
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tkfnet.hpp"

namespace {

using tkfnet::Engine;

tkfnet::EngineOptions trusting() {
  tkfnet::EngineOptions options;
  options.allow_native_code = true;
  return options;
}

std::vector<std::uint8_t> noise(const Engine& engine, std::size_t count, unsigned seed) {
  const auto side = static_cast<std::size_t>(engine.input_size());
  std::mt19937 draw(seed);
  std::vector<std::uint8_t> pixels(count * side * side * 3);
  for (auto& value : pixels) value = static_cast<std::uint8_t>(draw() >> 7);
  return pixels;
}

long resident_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmRSS:", 0) == 0) return std::stol(line.substr(6));
  return -1;
}

int cycles(const char* path, int count) {
  std::vector<float> first;
  for (int i = 0; i < count; ++i) {
    auto engine = Engine::open(path, trusting());
    auto session = engine.session();
    const auto answer = session.run(noise(engine, 1, 1), 1);
    if (first.empty()) first = answer;
    if (answer != first) return 1;
    if ((i + 1) % (count >= 10 ? count / 10 : 1) == 0) std::printf("%ld\n", resident_kib());
  }
  return 0;
}

int threads(const char* path, unsigned count, int runs) {
  auto engine = Engine::open(path, trusting());
  constexpr unsigned kinds = 4;  // images that differ, so that an answer of another thread's would show
  std::vector<std::vector<std::uint8_t>> images;
  std::vector<std::vector<float>> expected;
  auto alone = engine.session();
  for (unsigned k = 0; k < kinds; ++k) {
    images.push_back(noise(engine, 1, k));
    expected.push_back(alone.run(images[k], 1));
  }
  std::mutex lock;
  int wrong = 0, done = 0;
  std::exception_ptr failure;
  const auto work = [&](unsigned t) {
    auto session = engine.session();
    std::vector<float> answer(expected[0].size());
    int own_wrong = 0;
    for (int i = 0; i < runs; ++i) {
      const auto kind = (t + static_cast<unsigned>(i)) % kinds;
      if (i % 2 == 0) {
        session.run(images[kind], 1, answer);
      } else {
        session.submit(images[kind], 1, answer);
        session.wait();
      }
      own_wrong += answer != expected[kind];
    }
    const std::lock_guard hold(lock);
    wrong += own_wrong;
    done += runs;
  };
  std::vector<std::thread> workers;
  for (unsigned t = 0; t < count; ++t)
    workers.emplace_back([&, t] {
      try {
        work(t);
      } catch (...) {
        const std::lock_guard hold(lock);
        failure = std::current_exception();
      }
    });
  for (auto& worker : workers) worker.join();
  if (failure) std::rethrow_exception(failure);
  std::printf("%d runs, %d wrong\n", done, wrong);
  return wrong != 0;
}

int creating(const char* path, unsigned count) {
  std::mutex lock;
  std::vector<std::vector<float>> answers;
  std::vector<std::thread> workers;
  for (unsigned t = 0; t < count; ++t)
    workers.emplace_back([&] {
      auto engine = Engine::open(path, trusting());
      auto session = engine.session();
      auto answer = session.run(noise(engine, 1, 1), 1);
      const std::lock_guard hold(lock);
      answers.push_back(std::move(answer));
    });
  for (auto& worker : workers) worker.join();
  for (const auto& answer : answers)
    if (answer != answers[0]) return 1;
  return answers.size() == count ? 0 : 1;
}

int answers(const char* path, const char* pixels_path, const char* out_path, bool bfloat16) {
  auto options = trusting();
  if (bfloat16) options.cpu_math = TKF_CPU_MATH_BFLOAT16;
  auto engine = Engine::open(path, options);
  std::ifstream file(pixels_path, std::ios::binary);
  const std::vector<char> content{std::istreambuf_iterator<char>(file), {}};
  const auto side = static_cast<std::size_t>(engine.input_size());
  std::vector<std::uint8_t> pixels(content.size());
  std::memcpy(pixels.data(), content.data(), content.size());
  const auto logits = engine.session(TKF_OUTPUT_LOGITS).run(pixels, pixels.size() / (side * side * 3));
  std::ofstream(out_path, std::ios::binary)
      .write(reinterpret_cast<const char*>(logits.data()), static_cast<std::streamsize>(logits.size() * sizeof(float)));
  return 0;
}

}  // namespace

int main(int count, char** arguments) try {
  const std::string what = count > 2 ? arguments[1] : "";
  if (what == "cycles" && count == 4) return cycles(arguments[2], std::stoi(arguments[3]));
  if (what == "threads" && count == 5)
    return threads(arguments[2], static_cast<unsigned>(std::stoi(arguments[3])), std::stoi(arguments[4]));
  if (what == "creating" && count == 4) return creating(arguments[2], static_cast<unsigned>(std::stoi(arguments[3])));
  if (what == "answers" && (count == 5 || count == 6))
    return answers(arguments[2], arguments[3], arguments[4], count == 6);
  std::fprintf(stderr, "see the top of stress.cpp\n");
  return 64;
} catch (const tkfnet::Error& error) {
  std::fprintf(stderr, "%s: %s\n", tkf_status_name(error.status()), error.what());
  return 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
