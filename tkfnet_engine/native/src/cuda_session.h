/* A session of a fused engine: a stream, a set of buffers with its graphs; and what the sessions of an engine share. */
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend.h"
#include "cuda_graph.h"

namespace tkf {

/* The engine file's machine code for this GPU, each kernel loaded when the first plan that needs it runs. Safe for many
 * threads. */
class Kernels {
 public:
  /* codes: by variant, as in `index`. */
  Kernels(const Gpu& gpu, KernelIndex index, std::map<std::string, Bytes> codes);

  /* One for each launch of the plan, valid while this object lives. The context must be current. */
  std::vector<const Kernel*> of(const Plan& plan);

 private:
  const Kernel& loaded(const Launch& launch);

  const Gpu& gpu_;
  const KernelIndex index_;
  const std::map<std::string, Bytes> codes_;
  std::mutex mutex_;
  std::map<std::string, Kernel> loaded_;
};

/* Everything of an engine on a GPU that is not one session's. */
class FusedEngine {
 public:
  /* plans: by batch. weights: copied to the GPU. */
  FusedEngine(std::unique_ptr<const Gpu> gpu, std::map<std::uint64_t, Plan> plans, KernelIndex index,
              std::map<std::string, Bytes> codes, const Bytes& weights);

  /* The plan that runs so many images: the smallest that holds them. */
  const Plan& plan_for(std::size_t count) const { return plans_.lower_bound(count)->second; }
  /* The most images that a plan holds. */
  std::uint64_t largest_batch() const { return plans_.rbegin()->first; }
  std::vector<const Kernel*> kernels_of(const Plan& plan) { return kernels_.of(plan); }
  const Gpu& gpu() const { return *gpu_; }
  std::uint64_t weights() const { return weights_.get(); }
  /* What a session holds of each space, so that every plan can run in it; of the weights, nothing. */
  BySpace session_bytes() const;

 private:
  const std::unique_ptr<const Gpu> gpu_; /* goes last */
  const std::map<std::uint64_t, Plan> plans_;
  Kernels kernels_;
  DeviceMemory weights_;
};

/* One caller at a time queues work in it. Work of a caller's stream may still be running when the next request comes:
 * the event orders the two. */
class FusedSession final : public BackendSession {
 public:
  explicit FusedSession(std::shared_ptr<FusedEngine> engine);
  ~FusedSession() override;

  std::uint8_t* pixels(std::size_t count) override;
  void begin(std::size_t count) override;
  const float* end() override;
  void run_device(const void* pixels, std::size_t count, float* logits, void* stream) override;

 private:
  BucketGraph& graph_for(const Plan& plan);
  void follow(cu::Stream stream);
  void settle(cu::Stream stream) noexcept;

  const std::shared_ptr<FusedEngine> engine_;
  const Gpu& gpu_;
  DeviceMemory memory_;
  BySpace base_{}; /* address of each space */
  Owned<cu::Stream> stream_;
  Owned<cu::Event> event_;  /* recorded behind the work of a caller's stream */
  std::map<std::uint64_t, BucketGraph> graphs_;  /* by batch */
  PinnedMemory staging_;  /* logits, and behind them images */
  std::uint64_t staging_bytes_ = 0;
  bool running_ = false;  /* between `begin` and `end` */
  bool pending_ = false;  /* there may be work of a caller's stream */
};

}  // namespace tkf
