/* Engines for the CPU, on OpenVINO: one compiled model per engine, one infer request per session. */
#include <cstring>
#include <vector>

#include "backend.h"
#include "cores.h"
#include "error.h"
#include "openvino_api.h"

namespace tkf {
namespace {

/* A handle that OpenVINO gave, freed by its own function. */
template <class T>
using Handle = std::unique_ptr<T, void (*)(T*)>;

class Model {
 public:
  Model(const Facts& its_facts, EngineFile& file, const tkf_engine_options& options)
      : api(OpenVino::load(options.openvino_library)), facts(its_facts), compiled_(nullptr, api.compiled_model_free) {
    ov_core* core = nullptr;
    api.check(api.core_create(&core), "it started");
    core_ = Handle<ov_core>(core, api.core_free);
    compile(file, options);
    read_types();
    device_name = property("FULL_DEVICE_NAME", [&](const char* key, char** value) {
      return api.core_get_property(core_.get(), "CPU", key, value);
    });
    log(TKF_LOG_INFO, "runs on OpenVINO, " + api.path + ", on " + device_name);
  }

  Handle<ov_infer_request> request() const {
    ov_infer_request* request = nullptr;
    api.check(api.compiled_model_create_infer_request(compiled_.get(), &request), "it made a request");
    return {request, api.infer_request_free};
  }

  const OpenVino api;
  const Facts facts;
  std::string device_name;
  int pixel_type = 0;

 private:
  void compile(EngineFile& file, const tkf_engine_options& options) {
    const Tensor graph = file.take("graph.onnx");
    ov_model* read = nullptr;
    api.check(api.core_read_model_from_memory_buffer(core_.get(), graph.data.text().data(), graph.data.size(), nullptr,
                                                     &read),
              "it read the engine's graph");
    const Handle<ov_model> model(read, api.model_free);
    const bool bfloat16 = options.cpu_math == TKF_CPU_MATH_BFLOAT16;
    const std::string threads = std::to_string(options.threads > 0 ? options.threads : usable_cores());
    // Without the hint its default is BF16 on processors that have it: another precision than the one asked for.
    const char* math = bfloat16 ? "bf16" : "f32";
    ov_compiled_model* compiled = nullptr;
    api.check(api.core_compile_model(core_.get(), model.get(), "CPU", 6, &compiled, "PERFORMANCE_HINT", "LATENCY",
                                     "INFERENCE_NUM_THREADS", threads.c_str(), "INFERENCE_PRECISION_HINT", math),
              "it compiled the engine's graph");
    compiled_.reset(compiled);
    const auto got = property("INFERENCE_PRECISION_HINT", [&](const char* key, char** value) {
      return api.compiled_model_get_property(compiled_.get(), key, value);
    });
    if (bfloat16 && got != math)
      throw Error(TKF_ERROR_BACKEND, "OpenVINO computes in " + got +
                                         " on this processor; expected bf16, as cpu_math asks for; leave cpu_math at "
                                         "TKF_CPU_MATH_EXACT here");
  }

  /* What the images' elements are called in this version of OpenVINO, if the graph is of our form. */
  void read_types() {
    std::size_t inputs = 0, outputs = 0;
    api.check(api.compiled_model_inputs_size(compiled_.get(), &inputs), "it counted inputs");
    api.check(api.compiled_model_outputs_size(compiled_.get(), &outputs), "it counted outputs");
    if (inputs != 1 || outputs != 1)
      throw Error(TKF_ERROR_FILE,
                  "the engine's graph has " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) +
                      " outputs; expected one of each; build it again: python -m tkfnet_engine.build",
                  "tensor");
    ov_port* port = nullptr;
    api.check(api.compiled_model_input(compiled_.get(), &port), "it named its input");
    const Handle<ov_port> input(port, api.output_const_port_free);
    api.check(api.port_get_element_type(input.get(), &pixel_type), "it named its input's type");
  }

  template <class Ask>
  std::string property(const char* key, const Ask& ask) const {
    char* value = nullptr;
    api.check(ask(key, &value), "it was asked for a property");
    const std::string text = value != nullptr ? value : "";
    api.free(value);
    return text;
  }

  Handle<ov_core> core_{nullptr, nullptr};
  Handle<ov_compiled_model> compiled_;
};

class OpenVinoSession final : public BackendSession {
 public:
  explicit OpenVinoSession(std::shared_ptr<const Model> model)
      : model_(std::move(model)),
        api_(model_->api),
        request_(model_->request()),
        input_(nullptr, api_.tensor_free),
        output_(nullptr, api_.tensor_free) {}

  ~OpenVinoSession() override {
    if (running_) api_.infer_request_wait(request_.get());
  }

  std::uint8_t* pixels(std::size_t count) override {
    const std::size_t needed = count * model_->facts.image_bytes();
    if (own_.size() < needed) {
      show(nullptr, 0);  // the old memory is about to go
      own_ = Bytes(needed);
    }
    return own_.data();
  }

  void begin(std::size_t count) override {
    show(own_.data(), count);
    api_.check(api_.infer_request_start_async(request_.get()), "it began");
    running_ = true;
  }

  const float* end() override {
    running_ = false;
    api_.check(api_.infer_request_wait(request_.get()), "it ran");
    return answer();
  }

  const float* run(const std::uint8_t* rgb, std::size_t count, std::size_t) override {
    show(rgb, count);  // where the caller has them: nothing is copied
    api_.check(api_.infer_request_infer(request_.get()), "it ran");
    return answer();
  }

 private:
  /* Makes `count` images at `rgb` the request's input. */
  void show(const std::uint8_t* rgb, std::size_t count) {
    if (rgb == shown_ && count == count_) return;
    shown_ = nullptr;
    count_ = 0;
    input_.reset();
    if (rgb == nullptr) return;
    const auto side = static_cast<std::int64_t>(model_->facts.size);
    std::int64_t dims[] = {static_cast<std::int64_t>(count), side, side, 3};
    ov_tensor* tensor = nullptr;
    // The library's tensors are mutable, its inputs are not written to.
    void* memory = const_cast<std::uint8_t*>(rgb);
    api_.check(api_.tensor_create_from_host_ptr(model_->pixel_type, {4, dims}, memory, &tensor), "it took the images");
    input_.reset(tensor);
    check_size(tensor, count * model_->facts.image_bytes(), "images of one byte a sample");
    api_.check(api_.infer_request_set_input_tensor(request_.get(), tensor), "it took the images");
    shown_ = rgb;
    count_ = count;
  }

  const float* answer() {
    ov_tensor* tensor = nullptr;
    api_.check(api_.infer_request_get_output_tensor(request_.get(), &tensor), "it answered");
    output_.reset(tensor);
    check_size(tensor, count_ * model_->facts.classes() * sizeof(float), "an answer of float32 per class");
    void* data = nullptr;
    api_.check(api_.tensor_data(tensor, &data), "it answered");
    return static_cast<const float*>(data);
  }

  void check_size(const ov_tensor* tensor, std::size_t expected, const char* what) const {
    std::size_t got = 0;
    api_.check(api_.tensor_get_byte_size(tensor, &got), "it gave a size");
    if (got != expected)
      throw Error(TKF_ERROR_FILE,
                  "the engine's graph has a tensor of " + std::to_string(got) + " bytes; expected " +
                      std::to_string(expected) + ", " + what + "; build it again: python -m tkfnet_engine.build",
                  "tensor");
  }

  std::shared_ptr<const Model> model_;
  const OpenVino& api_;
  Handle<ov_infer_request> request_;
  Handle<ov_tensor> input_, output_;
  Bytes own_;
  const std::uint8_t* shown_ = nullptr;
  std::size_t count_ = 0;
  bool running_ = false;
};

class OpenVinoBackend final : public Backend {
 public:
  explicit OpenVinoBackend(std::shared_ptr<const Model> model) : model_(std::move(model)) {}
  std::unique_ptr<BackendSession> open_session() override { return std::make_unique<OpenVinoSession>(model_); }
  const char* name() const override { return "openvino"; }
  std::string device_name() const override { return model_->device_name; }

 private:
  std::shared_ptr<const Model> model_;
};

}  // namespace

std::unique_ptr<Backend> open_openvino(const Facts& facts, EngineFile& file, const tkf_engine_options& options) {
  if (facts.weight_bits == 8 && !has_exact_byte_products())
    throw Error(TKF_ERROR_BACKEND,
                "this processor sums products of bytes in 16 bits, which saturate, and the engine was built for one that "
                "does not: its accuracy is not what the build proved; build it again on this machine");
  return std::make_unique<OpenVinoBackend>(std::make_shared<const Model>(facts, file, options));
}

}  // namespace tkf
