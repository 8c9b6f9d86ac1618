/* libtkfnet for C++17: tkfnet.h with owners, exceptions and checked sizes. Header only.
 *
 *     auto engine = tkfnet::Engine::open("face.tkf");
 *     auto session = engine.session();
 *     const std::vector<float> probabilities = session.run(rgb, 1);  // rgb: uint8, size x size x 3
 *     for (const auto& best : tkfnet::top(probabilities, engine.labels(), 1))
 *       std::printf("%s: %.2f\n", best.name.c_str(), best.probability);
 *
 * A function that can fail throws tkfnet::Error, and says when; std::bad_alloc may come from any that returns a vector
 * or a string. What threads may share is as in tkfnet.h. An engine or session that was moved from can be assigned to
 * and destroyed; what else it is asked throws TKF_ERROR_ARGUMENT, or gives 0 or "".
 *
 * With TKFNET_OPENCV defined, which needs OpenCV's core, cv::Mat is taken too. */
#ifndef TKFNET_HPP
#define TKFNET_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tkfnet.h"

#if defined(TKFNET_OPENCV)
#include <opencv2/core.hpp>
#endif

namespace tkfnet {

/* what(): what was found, what was expected and what to do. */
class Error : public std::runtime_error {
 public:
  Error(tkf_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  tkf_status status() const noexcept { return status_; }

 private:
  tkf_status status_;
};

/* A pointer to T and how many, of anything contiguous with data() and size() or of an array, which has to live as long.
 * A temporary that owns its elements is taken for const T only: nobody could read what is written to it. */
template <class T>
class View {
  template <class Container>
  using Element = std::remove_pointer_t<decltype(std::data(std::declval<Container&>()))>;
  // As std::span: only a qualification may be added to the element, so that no derived class is sliced.
  template <class Container>
  using Fits = std::enable_if_t<
      !std::is_same_v<std::decay_t<Container>, View> && std::is_convertible_v<Element<Container> (*)[], T (*)[]> &&
      (std::is_const_v<T> || std::is_lvalue_reference_v<Container> || std::is_trivially_copyable_v<Container>)>;

 public:
  using value_type = std::remove_cv_t<T>;

  constexpr View() noexcept = default;
  constexpr View(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
  template <class Container, class = Fits<Container>>
  constexpr View(Container&& container) : data_(std::data(container)), size_(std::size(container)) {}

  constexpr T* data() const noexcept { return data_; }
  constexpr std::size_t size() const noexcept { return size_; }
  constexpr bool empty() const noexcept { return size_ == 0; }
  constexpr T* begin() const noexcept { return data_; }
  constexpr T* end() const noexcept { return data_ + size_; }
  constexpr T& operator[](std::size_t index) const { return data_[index]; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

namespace detail {

/* Throws the last failure of `session`, or with NULL this thread's. */
inline void check(tkf_status status, const tkf_session* session = nullptr) {
  if (status == TKF_OK) return;
  // The session's own message may be another thread's to write.
  if (status == TKF_ERROR_BUSY)
    throw Error(status, "this session is in use by another thread, or a submitted request is still out; expected one "
                        "request at a time; open a session per thread, or call wait() first");
  throw Error(status, tkf_last_error(session));
}

/* Throws unless `got` is count x each, in numbers that do not overflow. */
inline void check_size(const char* what, std::size_t got, std::size_t count, std::size_t each, const char* of_each) {
  const bool fits = each == 0 || count <= std::numeric_limits<std::size_t>::max() / each;
  if (fits && got == count * each) return;
  const std::string expected = fits ? std::to_string(count * each) : "more than there can be";
  throw Error(TKF_ERROR_ARGUMENT, std::string(what) + ": got " + std::to_string(got) + ", expected " + expected +
                                      " = " + std::to_string(count) + " x " + std::to_string(each) + " (" + of_each +
                                      "); pass the number of images, and all of their memory");
}

inline std::size_t image_bytes(std::int32_t size) {
  return static_cast<std::size_t>(size) * static_cast<std::size_t>(size) * 3;
}

/* Whether tkf_prepare takes it; no memory is allocated for another. */
inline bool is_size(std::int32_t size) { return size >= 1 && size <= 16384; }

inline const char* c_string(const std::string& text, const char* name) {
  if (text.find('\0') == std::string::npos) return text.c_str();
  throw Error(TKF_ERROR_ARGUMENT, std::string(name) + ": got " + std::to_string(text.size()) +
                                      " characters with a NUL among them, expected a path; cut it there");
}

}  // namespace detail

/* One class of an answer. */
struct Prediction {
  int label = 0; /* its index, counted from 0 */
  std::string name;
  float probability = 0;
};

/* The `most` likeliest classes of one image, best first. probabilities, or logits: one for each label; for image i of a
 * batch View<const float>(answer.data() + i * labels.size(), labels.size()). Throws Error TKF_ERROR_ARGUMENT if there
 * are more or fewer. */
inline std::vector<Prediction> top(View<const float> probabilities, const std::vector<std::string>& labels,
                                   std::size_t most = 1) {
  detail::check_size("probabilities", probabilities.size(), 1, labels.size(), "the labels");
  std::vector<std::size_t> order(labels.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  const auto value = [&](std::size_t i) { return std::isnan(probabilities[i]) ? -HUGE_VALF : probabilities[i]; };
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return value(a) > value(b); });
  order.resize(std::min(most, order.size()));
  std::vector<Prediction> best;
  for (const std::size_t i : order) best.push_back({static_cast<int>(i), labels[i], probabilities[i]});
  return best;
}

/* What a network of input size `size` would be shown of the crops: uint8 [crops, size, size, 3]. Throws Error
 * TKF_ERROR_ARGUMENT for a crop or size that tkf_prepare does not take, or an `rgb` of another size. */
inline void prepare(View<const tkf_crop> crops, std::int32_t size, View<std::uint8_t> rgb) {
  if (detail::is_size(size))
    detail::check_size("rgb", rgb.size(), crops.size(), detail::image_bytes(size), "size x size x 3 bytes");
  detail::check(tkf_prepare(crops.data(), crops.size(), size, rgb.data()));
}

/* The same. Throws also std::bad_alloc. */
[[nodiscard]] inline std::vector<std::uint8_t> prepare(View<const tkf_crop> crops, std::int32_t size) {
  std::vector<std::uint8_t> rgb(detail::is_size(size) ? crops.size() * detail::image_bytes(size) : 1);
  detail::check(tkf_prepare(crops.data(), crops.size(), size, rgb.data()));
  return rgb;
}

#if defined(TKFNET_OPENCV)
/* The frame of a picture, which has to live as long: CV_8UC3 is BGR, CV_8UC4 is BGRA. Part of a larger picture is fine.
 * Throws Error TKF_ERROR_ARGUMENT for another type, and for an empty or not two-dimensional one. */
inline tkf_frame frame_from(const cv::Mat& image) {
  if (image.empty() || image.dims != 2 || (image.type() != CV_8UC3 && image.type() != CV_8UC4)) {
    const std::string found = image.empty() ? "an empty one" : cv::typeToString(image.type());
    throw Error(TKF_ERROR_ARGUMENT, "image: got " + found + " of " + std::to_string(image.dims) +
                                        " dimensions, expected CV_8UC3 (BGR) or CV_8UC4 (BGRA) of 2; check that it was "
                                        "read, and convert it: cv::cvtColor, convertTo");
  }
  tkf_frame frame{};
  frame.struct_size = sizeof frame;
  frame.format = image.type() == CV_8UC3 ? TKF_PIXEL_BGR : TKF_PIXEL_BGRA;
  frame.width = image.cols;
  frame.height = image.rows;
  frame.data = image.data;
  frame.stride = image.step[0];
  return frame;
}
#endif

/* What one request at a time needs. Move only; keeps what it needs of its engine alive. */
class Session {
 public:
  /* Names the expressions on `count` images, packed uint8 [count, size, size, 3] RGB: float [count, classes]. Throws
   * Error TKF_ERROR_ARGUMENT for sizes that do not agree, else as tkf_run fails: _BACKEND, _DEVICE, _MEMORY, _ANSWER,
   * _BUSY, _LOST. */
  [[nodiscard]] std::vector<float> run(View<const std::uint8_t> rgb, std::size_t count) {
    check_images(rgb, count);
    std::vector<float> output(count * classes());
    run(rgb, count, output);
    return output;
  }

  /* The same without an allocation. */
  void run(View<const std::uint8_t> rgb, std::size_t count, View<float> output) {
    check_images(rgb, count);
    check_output(count, output);
    check(tkf_run(get(), rgb.data(), count, output.data()));
  }

  /* The same of crops of frames. */
  [[nodiscard]] std::vector<float> run(View<const tkf_crop> crops) {
    std::vector<float> output(crops.size() * classes());
    run(crops, output);
    return output;
  }
  void run(View<const tkf_crop> crops, View<float> output) {
    check_output(crops.size(), output);
    check(tkf_run_strided(get(), crops.data(), crops.size(), output.data()));
  }

  /* Begins `run`, of at most max_batch() images, and returns; `wait` ends it. rgb and crops may go when this returns;
   * `output` must live until `wait`, which writes it. Throws as `run`. */
  void submit(View<const std::uint8_t> rgb, std::size_t count, View<float> output) {
    check_images(rgb, count);
    check_output(count, output);
    check(tkf_submit(get(), rgb.data(), count, output.data()));
  }
  void submit(View<const tkf_crop> crops, View<float> output) {
    check_output(crops.size(), output);
    check(tkf_submit_strided(get(), crops.data(), crops.size(), output.data()));
  }

  /* Throws as `run`, and Error TKF_ERROR_ARGUMENT if nothing was submitted. */
  void wait() { check(tkf_wait(get())); }

  /* As tkf_run_device, of addresses in GPU memory, whose sizes nobody checks. Throws as `run`, and Error
   * TKF_ERROR_ARGUMENT on a CPU. */
  void run_device(const void* pixels, std::size_t count, float* logits, void* stream = nullptr) {
    check(tkf_run_device(get(), pixels, count, logits, stream));
  }

#if defined(TKFNET_OPENCV)
  /* `run` of the faces in a picture. Throws also as `frame_from`. */
  [[nodiscard]] std::vector<float> run(const cv::Mat& image, const std::vector<cv::Rect>& boxes) {
    const tkf_frame frame = frame_from(image);
    std::vector<tkf_crop> crops;
    for (const cv::Rect& box : boxes) crops.push_back({&frame, box.x, box.y, box.width, box.height});
    return run(crops);
  }
#endif

  /* NULL once it was moved from. */
  tkf_session* get() const noexcept { return session_.get(); }

 private:
  friend class Engine;
  struct Close {
    void operator()(tkf_session* session) const noexcept { tkf_session_close(session); }
  };

  Session(tkf_session* session, std::int32_t size, std::int32_t classes) noexcept
      : session_(session), size_(size), classes_(classes) {}

  std::size_t classes() const noexcept { return static_cast<std::size_t>(classes_); }
  void check(tkf_status status) const { detail::check(status, get()); }
  void check_images(View<const std::uint8_t> rgb, std::size_t count) const {
    detail::check_size("rgb", rgb.size(), count, detail::image_bytes(size_), "size x size x 3 bytes");
  }
  void check_output(std::size_t count, View<float> output) const {
    detail::check_size("output", output.size(), count, classes(), "the classes");
  }

  std::unique_ptr<tkf_session, Close> session_;
  std::int32_t size_, classes_;
};

/* As tkf_engine_options; zero and empty are the defaults. */
struct EngineOptions {
  int device = 0;
  int threads = 0;
  bool allow_native_code = false;
  tkf_cpu_math cpu_math = TKF_CPU_MATH_EXACT;
  std::string openvino_library;
};

/* An opened engine file. Move only; any number of threads may use one. */
class Engine {
 public:
  /* Throws Error as tkf_engine_open fails: TKF_ERROR_FILE, _VERSION, _UNTRUSTED, _BACKEND, _DEVICE, _MEMORY, _ANSWER,
   * _ARGUMENT. */
  [[nodiscard]] static Engine open(const std::string& path, const EngineOptions& options = {}) {
    const tkf_engine_options known = c_options(options);
    tkf_engine* engine = nullptr;
    detail::check(tkf_engine_open(detail::c_string(path, "path"), &known, &engine));
    return Engine(engine);
  }

  /* The same of the file's content, which may go when this returns. */
  [[nodiscard]] static Engine from_memory(View<const std::uint8_t> content, const EngineOptions& options = {}) {
    const tkf_engine_options known = c_options(options);
    tkf_engine* engine = nullptr;
    detail::check(tkf_engine_open_memory(content.data(), content.size(), &known, &engine));
    return Engine(engine);
  }

  /* Throws Error as tkf_session_open fails: TKF_ERROR_BACKEND, _DEVICE, _MEMORY, _LOST. */
  [[nodiscard]] Session session(tkf_output output = TKF_OUTPUT_PROBABILITIES) const {
    tkf_session_options options{};
    options.struct_size = sizeof options;
    options.output = output;
    tkf_session* session = nullptr;
    detail::check(tkf_session_open(get(), &options, &session));
    return Session(session, input_size(), class_count());
  }

  /* The facts, which throw no Error. */
  int input_size() const noexcept { return tkf_input_size(get()); }
  int class_count() const noexcept { return tkf_class_count(get()); }
  int max_batch() const noexcept { return tkf_max_batch(get()); }
  std::string label(int index) const { return tkf_label(get(), index); }
  std::vector<std::string> labels() const {
    std::vector<std::string> all;
    for (int i = 0; i < class_count(); ++i) all.push_back(label(i));
    return all;
  }
  std::string precision() const { return tkf_precision(get()); }
  std::string backend() const { return tkf_backend(get()); }
  std::string device_name() const { return tkf_device_name(get()); }
  std::string facts_json() const { return tkf_facts_json(get()); }

  /* NULL once it was moved from. */
  tkf_engine* get() const noexcept { return engine_.get(); }

 private:
  struct Close {
    void operator()(tkf_engine* engine) const noexcept { tkf_engine_close(engine); }
  };

  explicit Engine(tkf_engine* engine) noexcept : engine_(engine) {}

  static tkf_engine_options c_options(const EngineOptions& options) {
    tkf_engine_options known{};
    known.struct_size = sizeof known;
    known.device = options.device;
    known.threads = options.threads;
    known.allow_native_code = options.allow_native_code ? 1 : 0;
    known.cpu_math = options.cpu_math;
    if (!options.openvino_library.empty())
      known.openvino_library = detail::c_string(options.openvino_library, "openvino_library");
    return known;
  }

  std::unique_ptr<tkf_engine, Close> engine_;
};

}  // namespace tkfnet

#endif
