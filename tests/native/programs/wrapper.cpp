/* Every member of tkfnet.hpp over an engine: wrapper ENGINE. A line per check; exit 1 if one fails. */
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "tkfnet.hpp"

namespace {

using tkfnet::Engine;
using tkfnet::Session;
using tkfnet::View;
using Bytes = std::vector<std::uint8_t>;
using Floats = std::vector<float>;

static_assert(!std::is_copy_constructible_v<Engine> && !std::is_copy_assignable_v<Engine>);
static_assert(!std::is_copy_constructible_v<Session> && !std::is_copy_assignable_v<Session>);
static_assert(std::is_nothrow_move_constructible_v<Engine> && std::is_nothrow_move_assignable_v<Engine>);
static_assert(std::is_nothrow_move_constructible_v<Session> && std::is_nothrow_move_assignable_v<Session>);
static_assert(!std::is_constructible_v<View<float>, const Floats&>, "const");
static_assert(!std::is_constructible_v<View<float>, Floats>, "written to what goes");
static_assert(!std::is_constructible_v<View<const float>, std::vector<double>&>, "another type");
static_assert(!std::is_constructible_v<View<const std::uint8_t>, std::vector<tkf_crop>&>, "another type");
static_assert(std::is_constructible_v<View<const float>, Floats> && std::is_constructible_v<View<float>, Floats&>);
static_assert(std::is_constructible_v<View<const float>, View<float>>);

int failures = 0;

void check(bool met, const std::string& what) {
  std::printf("%s: %s\n", met ? "ok" : "FAILED", what.c_str());
  failures += !met;
}

/* That `work` throws an Error of this status, whose message has all of `parts`. */
void refused(const std::string& what, tkf_status status, const std::vector<std::string>& parts,
             const std::function<void()>& work) {
  try {
    work();
  } catch (const tkfnet::Error& error) {
    bool met = error.status() == status;
    for (const std::string& part : parts) met = met && std::string(error.what()).find(part) != std::string::npos;
    check(met, what + " is refused (" + tkf_status_name(error.status()) + "): " + error.what());
    return;
  }
  check(false, what + " is refused");
}

tkfnet::EngineOptions trusting() {
  tkfnet::EngineOptions options;
  options.allow_native_code = true;
  options.threads = 1;
  return options;
}

Bytes noise(std::size_t size, unsigned seed = 1) {
  std::mt19937 draw(seed);
  Bytes bytes(size);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(draw() >> 5);
  return bytes;
}

std::string text(std::size_t number) { return std::to_string(number); }

/* What the checks of sessions share. */
struct Setup {
  const Engine& engine;
  std::size_t side, classes, image;
  Bytes pixels; /* two images */
  Floats answer; /* logits of them, by the C API: a stand-in's probabilities may all be 0 and 1 */
};

tkf_frame rgb_frame(const Bytes& pixels, int width, int height) {
  tkf_frame frame{};
  frame.struct_size = sizeof frame;
  frame.format = TKF_PIXEL_RGB;
  frame.width = width;
  frame.height = height;
  frame.data = pixels.data();
  return frame;
}

void check_views() {
  int numbers[] = {1, 2, 3};
  const std::array<float, 2> pair{1.0f, 2.0f};
  Floats many(5, 0.5f);
  const View<int> of_array(numbers);
  of_array[1] = 7;
  check(of_array.size() == 3 && numbers[1] == 7 && !of_array.empty(), "a view of an array writes to it");
  check(View<const float>(pair).size() == 2 && View<const float>(pair)[1] == 2.0f, "a view of a const array");
  const View<float> view(many);
  const View<const float> read_only = view;
  check(read_only.data() == many.data() && read_only.end() - read_only.begin() == 5, "a view of a view");
  check(std::accumulate(view.begin(), view.end(), 0.0f) == 2.5f, "a view is a range");
  check(View<float>().empty() && View<float>(many.data() + 1, 2).size() == 2, "views of nothing and of a part");
}

void check_top() {
  const std::vector<std::string> labels{"a", "b", "c", "d"};
  const auto best = tkfnet::top(Floats{0.2f, 0.4f, 0.0f, 0.4f}, labels, 3);
  check(best.size() == 3 && best[0].label == 1 && best[1].label == 3 && best[2].label == 0, "top: best first");
  check(best[0].name == "b" && best[0].probability == 0.4f, "top: name and probability");
  check(tkfnet::top(Floats{1, 2, 3, 4}, labels).size() == 1 && tkfnet::top(Floats{1, 2, 3, 4}, labels, 9).size() == 4,
        "top: one, and no more than there are");
  check(tkfnet::top(Floats{NAN, -1, NAN, -2}, labels)[0].label == 1, "top: no number is never best");
  refused("top: another number of labels", TKF_ERROR_ARGUMENT, {"got 3, expected 4"},
          [&] { (void)tkfnet::top(Floats{1, 2, 3}, labels); });
}

void check_engine(const std::string& path, const Engine& engine) {
  check(engine.input_size() == tkf_input_size(engine.get()) && engine.input_size() > 0, "input_size");
  check(engine.class_count() == tkf_class_count(engine.get()) && engine.class_count() > 0, "class_count");
  check(engine.max_batch() == tkf_max_batch(engine.get()) && engine.max_batch() > 0, "max_batch");
  const auto labels = engine.labels();
  check(labels.size() == static_cast<std::size_t>(engine.class_count()) && labels[0] == engine.label(0), "labels");
  check(engine.label(-1).empty() && engine.label(engine.class_count()).empty(), "label of none");
  check(!engine.precision().empty() && !engine.backend().empty() && !engine.device_name().empty(), "other facts");
  check(engine.facts_json().find("\"" + engine.precision() + "\"") != std::string::npos, "facts_json");

  refused("no file", TKF_ERROR_FILE, {"/nowhere/of.tkf"}, [] { (void)Engine::open("/nowhere/of.tkf"); });
  refused("a NUL in a path", TKF_ERROR_ARGUMENT, {"path", "NUL"},
          [&] { (void)Engine::open(path + std::string("\0x", 2), trusting()); });
  refused("a NUL in an option", TKF_ERROR_ARGUMENT, {"openvino_library", "NUL"}, [&] {
    auto options = trusting();
    options.openvino_library = std::string("a\0b", 3);
    (void)Engine::open(path, options);
  });
  for (const auto field : {&tkfnet::EngineOptions::device, &tkfnet::EngineOptions::threads}) {
    refused("an option out of its range", TKF_ERROR_ARGUMENT, {"-7"}, [&] {
      auto options = trusting();
      options.*field = -7;
      (void)Engine::open(path, options);
    });
  }
  if (engine.backend() == "openvino") {
    refused("a library that is none", TKF_ERROR_BACKEND, {"/nowhere/of.so"}, [&] {
      auto options = trusting();
      options.openvino_library = "/nowhere/of.so";
      (void)Engine::open(path, options);
    });
  } else {
    refused("code that is not trusted", TKF_ERROR_UNTRUSTED, {}, [&] { (void)Engine::open(path); });
  }
}

void check_memory(const std::string& path, const Setup& setup) {
  std::ifstream file(path, std::ios::binary);
  const std::string read{std::istreambuf_iterator<char>(file), {}};
  Bytes content(read.begin(), read.end());
  auto engine = Engine::from_memory(content, trusting());
  std::fill(content.begin(), content.end(), std::uint8_t{0});
  check(engine.session(TKF_OUTPUT_LOGITS).run(setup.pixels, 2) == setup.answer, "from_memory, whose bytes may go");
  refused("memory that is no engine", TKF_ERROR_FILE, {}, [&] { (void)Engine::from_memory(content); });
  refused("no memory", TKF_ERROR_ARGUMENT, {"data"}, [] { (void)Engine::from_memory({}); });
}

void check_sizes(Session& session, const Setup& setup) {
  Floats output(2 * setup.classes, -1.0f), other(2 * setup.classes + 1);
  const auto some = [&](std::size_t size) { return View<const std::uint8_t>(setup.pixels.data(), size); };
  const std::size_t huge = std::numeric_limits<std::size_t>::max() / setup.image + 1;
  const std::string got = text(2 * setup.image - 1), expected = text(2 * setup.image);
  refused("too few pixels", TKF_ERROR_ARGUMENT, {got, expected},
          [&] { (void)session.run(some(2 * setup.image - 1), 2); });
  refused("too many pixels", TKF_ERROR_ARGUMENT, {expected, text(setup.image)},
          [&] { (void)session.run(setup.pixels, 1); });
  refused("a count that overflows", TKF_ERROR_ARGUMENT, {"more than there can be"},
          [&] { (void)session.run(some(huge * setup.image), huge); });
  refused("no images", TKF_ERROR_ARGUMENT, {}, [&] { (void)session.run(some(0), 0); });
  const std::vector<std::string> sizes{text(other.size()), text(output.size())};
  refused("too large an output", TKF_ERROR_ARGUMENT, sizes, [&] { session.run(setup.pixels, 2, other); });
  refused("too large an output of submit", TKF_ERROR_ARGUMENT, sizes, [&] { session.submit(setup.pixels, 2, other); });
  refused("too few pixels of submit", TKF_ERROR_ARGUMENT, {got, expected},
          [&] { session.submit(some(2 * setup.image - 1), 2, output); });
  const tkf_frame frame = rgb_frame(setup.pixels, static_cast<int>(setup.side), static_cast<int>(2 * setup.side));
  const std::vector<tkf_crop> crops(2, {&frame, 0, 0, 1, 1});
  refused("too large an output of crops", TKF_ERROR_ARGUMENT, sizes, [&] { session.run(crops, other); });
  refused("too large an output of submitted crops", TKF_ERROR_ARGUMENT, sizes, [&] { session.submit(crops, other); });
  check(output == Floats(output.size(), -1.0f), "a refusal writes nothing");
}

void check_session(const Setup& setup) {
  auto session = setup.engine.session(TKF_OUTPUT_LOGITS);
  Floats output(2 * setup.classes);
  check(session.run(setup.pixels, 2) == setup.answer, "run gives what the C API gives");
  check(session.run(Bytes(setup.pixels), 2) == setup.answer, "run of a temporary");
  session.run(setup.pixels, 2, output);
  check(output == setup.answer, "run into memory of ours");
  std::fill(output.begin(), output.end(), 0.0f);
  session.submit(Bytes(setup.pixels), 2, output);
  refused("a second request", TKF_ERROR_BUSY, {"wait()"}, [&] { (void)session.run(setup.pixels, 2); });
  session.wait();
  check(output == setup.answer, "submit and wait");
  refused("waiting for nothing", TKF_ERROR_ARGUMENT, {"submit"}, [&] { session.wait(); });
  const auto count = static_cast<std::size_t>(setup.engine.max_batch()) + 1;
  const Bytes many = noise(count * setup.image);
  Floats answers(count * setup.classes);
  refused("submitting more than max_batch", TKF_ERROR_ARGUMENT, {text(count)},
          [&] { session.submit(many, count, answers); });
  check(session.run(many, count).size() == answers.size(), "run of more than max_batch");
  const auto probabilities = setup.engine.session().run(setup.pixels, 2);
  const View<const float> of_first(probabilities.data(), setup.classes), logits(setup.answer.data(), setup.classes);
  const float sum = std::accumulate(of_first.begin(), of_first.end(), 0.0f);
  check(std::abs(sum - 1) < 1e-5f && probabilities != setup.answer, "probabilities are the default");
  const auto labels = setup.engine.labels();
  check(tkfnet::top(of_first, labels)[0].name == tkfnet::top(logits, labels)[0].name, "and their best is the logits'");
  refused("run_device of nothing", TKF_ERROR_ARGUMENT, {"pixels"},
          [&] { session.run_device(nullptr, 1, output.data()); });
  if (setup.engine.backend() == "openvino")
    refused("run_device on a CPU", TKF_ERROR_ARGUMENT, {"CPU"},
            [&] { session.run_device(setup.pixels.data(), 1, output.data(), nullptr); });
  check_sizes(session, setup);
}

void check_crops(const Setup& setup) {
  const int side = static_cast<int>(setup.side);
  const tkf_frame frame = rgb_frame(setup.pixels, side, 2 * side);
  std::vector<tkf_crop> crops{{&frame, 0, 0, side, side}, {&frame, 0, side, side, side}};
  auto session = setup.engine.session(TKF_OUTPUT_LOGITS);
  Floats output(2 * setup.classes);
  check(tkfnet::prepare(crops, side) == setup.pixels, "prepare of boxes of the input size copies");
  Bytes rgb(2 * 5 * 5 * 3);
  tkfnet::prepare(crops, 5, rgb);
  check(rgb == tkfnet::prepare(crops, 5), "prepare into memory of ours");
  refused("prepare into too little", TKF_ERROR_ARGUMENT, {"150", "216"}, [&] { tkfnet::prepare(crops, 6, rgb); });
  for (const int size : {0, -1, 16385, 1 << 30}) {
    refused("prepare of a size", TKF_ERROR_ARGUMENT, {text(16384)}, [&] { (void)tkfnet::prepare(crops, size); });
    refused("prepare of a size", TKF_ERROR_ARGUMENT, {text(16384)}, [&] { tkfnet::prepare(crops, size, rgb); });
  }
  check(session.run(crops) == setup.answer, "run of crops");
  session.run(crops, output);
  check(output == setup.answer, "run of crops into memory of ours");
  std::fill(output.begin(), output.end(), 0.0f);
  session.submit(crops, output);
  session.wait();
  check(output == setup.answer, "submit of crops");
  crops[1].x = side;
  refused("a box outside", TKF_ERROR_ARGUMENT, {"crop 1", "box"}, [&] { (void)session.run(crops); });
  refused("a box outside", TKF_ERROR_ARGUMENT, {"crop 1", "box"}, [&] { (void)tkfnet::prepare(crops, 5); });
}

void check_moves(const std::string& path, const Setup& setup) {
  auto engine = Engine::open(path, trusting());
  auto session = engine.session(TKF_OUTPUT_LOGITS);
  Engine taken(std::move(engine));
  Session kept(std::move(session));
  check(engine.get() == nullptr && taken.get() != nullptr, "moving an engine");  // NOLINT: what is left is looked at
  check(engine.input_size() == 0 && engine.labels().empty() && engine.backend().empty(), "facts of none");
  refused("a session of none", TKF_ERROR_ARGUMENT, {"engine"}, [&] { (void)engine.session(); });
  check(session.get() == nullptr && kept.run(setup.pixels, 2) == setup.answer, "moving a session");
  refused("running none", TKF_ERROR_ARGUMENT, {"session"}, [&] { (void)session.run(setup.pixels, 2); });
  refused("waiting for none", TKF_ERROR_ARGUMENT, {"session"}, [&] { session.wait(); });
  Engine& same_engine = taken;
  Session& same_session = kept;
  taken = std::move(same_engine);
  kept = std::move(same_session);
  check(taken.input_size() > 0 && kept.run(setup.pixels, 2) == setup.answer, "moving to itself");
  session = taken.session(TKF_OUTPUT_LOGITS);
  engine = Engine::open(path, trusting());
  check(session.get() != nullptr && engine.input_size() > 0, "what was moved from is assigned to");
  session = std::move(kept);
  check(session.run(setup.pixels, 2) == setup.answer, "moving over an open session closes that");
  engine = std::move(taken);
  { const Engine closed(std::move(engine)); }
  check(session.run(setup.pixels, 2) == setup.answer, "a session runs on when its engine is closed");
}

#if defined(TKFNET_OPENCV)
void check_opencv(const Setup& setup) {
  const int side = static_cast<int>(setup.side);
  cv::Mat rgb(2 * side, side, CV_8UC3, const_cast<std::uint8_t*>(setup.pixels.data()));
  cv::Mat large(2 * side + 4, side + 6, CV_8UC3, cv::Scalar(1, 2, 3));
  cv::Mat with_alpha(2 * side, side, CV_8UC4, cv::Scalar(9));
  cv::Mat bgr = large(cv::Rect(5, 3, side, 2 * side));  // its rows lie further apart than they are long
  const int swapped[] = {0, 2, 1, 1, 2, 0};
  cv::mixChannels(&rgb, 1, &bgr, 1, swapped, 3);
  cv::mixChannels(&rgb, 1, &with_alpha, 1, swapped, 3);
  const std::vector<cv::Rect> boxes{{0, 0, side, side}, {0, side, side, side}};
  auto session = setup.engine.session(TKF_OUTPUT_LOGITS);
  check(session.run(bgr, boxes) == setup.answer, "run of part of a cv::Mat");
  check(session.run(with_alpha, boxes) == setup.answer, "run of a cv::Mat with alpha");
  const tkf_frame frame = tkfnet::frame_from(bgr);
  check(frame.width == side && frame.height == 2 * side && frame.stride == large.step[0] && frame.data == bgr.data,
        "frame_from honours the step");
  refused("a box outside of a cv::Mat", TKF_ERROR_ARGUMENT, {"crop 0", "box"},
          [&] { (void)session.run(bgr, {cv::Rect(1, 0, side, side)}); });
  refused("an empty cv::Mat", TKF_ERROR_ARGUMENT, {"an empty one", "CV_8UC3"},
          [] { (void)tkfnet::frame_from(cv::Mat()); });
  for (const int type : {CV_8UC1, CV_16UC3, CV_32FC3, CV_8UC2})
    refused("a cv::Mat of another type", TKF_ERROR_ARGUMENT, {cv::typeToString(type), "CV_8UC3"},
            [&] { (void)tkfnet::frame_from(cv::Mat(4, 4, type)); });
  const int sizes[] = {4, 4, 4};
  refused("a cv::Mat of more dimensions", TKF_ERROR_ARGUMENT, {"3 dimensions"},
          [&] { (void)tkfnet::frame_from(cv::Mat(3, sizes, CV_8UC3)); });
}
#endif

int run(const std::string& path) {
  const auto engine = Engine::open(path, trusting());
  const auto side = static_cast<std::size_t>(engine.input_size());
  const auto classes = static_cast<std::size_t>(engine.class_count());
  const std::size_t image = side * side * 3;
  Setup setup{engine, side, classes, image, noise(2 * image), Floats(2 * classes)};
  tkf_session* session = nullptr;
  const tkf_session_options logits{sizeof logits, TKF_OUTPUT_LOGITS};
  check(tkf_session_open(engine.get(), &logits, &session) == TKF_OK &&
            tkf_run(session, setup.pixels.data(), 2, setup.answer.data()) == TKF_OK,
        "the C API answers");
  tkf_session_close(session);

  check_views();
  check_top();
  check_engine(path, engine);
  check_memory(path, setup);
  check_session(setup);
  check_crops(setup);
  check_moves(path, setup);
#if defined(TKFNET_OPENCV)
  check_opencv(setup);
#endif
  return failures != 0;
}

}  // namespace

int main(int count, char** arguments) try {
  if (count == 2) return run(arguments[1]);
  std::fprintf(stderr, "usage: wrapper ENGINE\n");
  return 64;
} catch (const std::exception& error) {
  std::printf("FAILED: %s\n", error.what());
  return 1;
}
