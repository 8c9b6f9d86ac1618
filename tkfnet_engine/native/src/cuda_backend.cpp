/* The fused engine on an NVIDIA GPU: cubins and launch plans of an engine file, replayed as CUDA graphs. Nothing is
 * compiled here. tkfnet_engine/backends/fused.py is the other implementation. */
#include "cuda_backend.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "backend.h"
#include "cuda_session.h"
#include "golden.h"

namespace tkf {
namespace {

constexpr const char* weights_name = "weights.packed";

bool starts_with(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

std::string joined(const std::vector<std::string>& parts, const char* separator) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : separator) + part;
  return text;
}

/* What is behind `prefix` in the names of the tensors that begin with it. */
std::vector<std::string> names_below(const EngineFile& file, const std::string& prefix) {
  std::vector<std::string> found;
  for (const std::string& name : file.names())
    if (starts_with(name, prefix)) found.push_back(name.substr(prefix.size()));
  return found;
}

/* The architectures that there is machine code for, in order. */
std::vector<std::string> archs_of(const EngineFile& file) {
  std::vector<std::string> archs;
  for (const std::string& name : names_below(file, "cubins/")) {
    const std::size_t slash = name.find('/');
    if (slash != std::string::npos && name.substr(slash) == "/index") archs.push_back(name.substr(0, slash));
  }
  std::sort(archs.begin(), archs.end());
  return archs;
}

/* By batch. */
std::map<std::uint64_t, Plan> take_plans(EngineFile& file, const std::string& arch) {
  std::map<std::uint64_t, Plan> plans;
  const std::string prefix = "plans/" + arch + "/";
  for (const std::string& name : names_below(file, prefix)) {
    Plan plan = plan_from_json(file.take(prefix + name).data.text(), file.name() + ": " + prefix + name);
    plans.insert_or_assign(plan.batch, std::move(plan));
  }
  return plans;
}

/* By variant. */
std::map<std::string, Bytes> take_codes(EngineFile& file, const std::string& arch) {
  std::map<std::string, Bytes> codes;
  const std::string prefix = "cubins/" + arch + "/";
  for (const std::string& name : names_below(file, prefix)) codes[name] = file.take(prefix + name).data;
  return codes;
}

/* `Error` unless plans, machine code, weights and facts are of one build. */
void check_consistent(const std::string& where, const Facts& facts, const std::map<std::uint64_t, Plan>& plans,
                      const KernelIndex& index, const std::map<std::string, Bytes>& codes, std::size_t weight_bytes) {
  bool kernels = true, weights = true, shapes = true;
  std::vector<std::string> batches;
  for (const auto& [batch, plan] : plans) {
    batches.push_back(std::to_string(batch));
    for (const Launch& launch : plan.launches)
      kernels = kernels && index.cubins.count(launch.variant) != 0 && codes.count(launch.variant) != 0;
    weights = weights && plan.weight_bytes == weight_bytes;
    shapes = shapes && plan.size == facts.size && plan.classes == facts.classes();
  }
  std::vector<std::string> wrong;
  if (plans.empty() || plans.rbegin()->first < facts.max_batch)
    wrong.push_back("plans for batches [" + joined(batches, ", ") + "]");
  if (!kernels) wrong.push_back(std::to_string(codes.size()) + " kernels");
  if (!weights) wrong.push_back(std::to_string(weight_bytes) + " bytes of weights");
  if (!shapes)
    wrong.push_back(std::to_string(facts.classes()) + " labels and images of " + std::to_string(facts.size));
  if (wrong.empty()) return;
  throw Error(TKF_ERROR_FILE, where + ": the engine file's " + joined(wrong, "; ") +
                                  " do not fit its launch plans; expected all of one build; build it again",
              "plan");
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(std::shared_ptr<FusedEngine> engine) : engine_(std::move(engine)) {}

  std::unique_ptr<BackendSession> open_session() override { return std::make_unique<FusedSession>(engine_); }
  const char* name() const override { return "cuda"; }
  std::string device_name() const override { return engine_->gpu().name; }

 private:
  const std::shared_ptr<FusedEngine> engine_;
};

}  // namespace

std::string chosen_arch(int major, int minor, const std::vector<std::string>& held, const std::string& gpu) {
  const std::string own = "sm_" + std::to_string(major) + std::to_string(minor);
  for (int m = minor; m >= (major == 8 ? 0 : minor); --m) {
    const std::string arch = "sm_" + std::to_string(major) + std::to_string(m);
    if (std::find(held.begin(), held.end(), arch) != held.end()) return arch;
  }
  const std::string needed = gpu + " has compute capability " + std::to_string(major) + "." + std::to_string(minor);
  if (major < 8)
    throw Error(TKF_ERROR_DEVICE, needed + "; expected 8.0 or later; use an engine for the CPU: "
                                           "python -m tkfnet_engine.build --backend openvino");
  throw Error(TKF_ERROR_DEVICE, "this engine holds machine code for " + (held.empty() ? "no GPU" : joined(held, ", ")) +
                                    ", and " + needed + "; expected code for it; build it: python -m "
                                    "tkfnet_engine.build --fp16 --device cuda --arch " + own);
}

std::unique_ptr<Backend> open_cuda(const Facts& facts, EngineFile& file, const tkf_engine_options& options) {
  if (options.allow_native_code == 0)
    throw Error(TKF_ERROR_UNTRUSTED,
                file.name() + ": it holds machine code, which the GPU would run; expected leave to do so; if the file "
                              "comes from someone whose programs you would run, set allow_native_code in "
                              "tkf_engine_options");
  auto gpu = std::make_unique<const Gpu>(options.device);
  const std::string arch = chosen_arch(gpu->major, gpu->minor, archs_of(file), gpu->name);
  const std::string index_name = "cubins/" + arch + "/index";
  KernelIndex index = kernel_index_from_json(file.take(index_name).data.text(), file.name() + ": " + index_name);
  if (gpu->api.version < index.driver)
    throw Error(TKF_ERROR_BACKEND, "the GPU driver is for CUDA " + cuda_version(gpu->api.version) +
                                       ", and this engine needs " + cuda_version(index.driver) +
                                       " or later; update the driver");
  std::map<std::uint64_t, Plan> plans = take_plans(file, arch);
  std::map<std::string, Bytes> codes = take_codes(file, arch);
  const Tensor weights = file.take(weights_name);
  check_consistent(file.name(), facts, plans, index, codes, weights.data.size());
  log(TKF_LOG_INFO, "cuda: GPU " + std::to_string(options.device) + ", " + gpu->name + ", driver for CUDA " +
                        cuda_version(gpu->api.version) + ", code for " + arch + ", " + std::to_string(plans.size()) +
                        " plans");
  auto engine = std::make_shared<FusedEngine>(std::move(gpu), std::move(plans), std::move(index), std::move(codes),
                                              weights.data);
  {
    FusedSession session(engine);
    check_golden(facts, file, engine->largest_batch(), [&](const std::uint8_t* pixels, std::size_t count) {
      return session.run(pixels, count, facts.image_bytes());
    });
  }
  return std::make_unique<CudaBackend>(std::move(engine));
}

}  // namespace tkf
