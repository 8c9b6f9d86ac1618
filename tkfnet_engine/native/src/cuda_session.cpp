#include "cuda_session.h"

#include <algorithm>
#include <utility>

namespace tkf {
namespace {

constexpr std::size_t at(Space space) { return static_cast<std::size_t>(space); }

std::uint64_t aligned(std::uint64_t nbytes) {
  return saturating_add(nbytes, plan_alignment - 1) / plan_alignment * plan_alignment;
}

std::uint64_t sum(const BySpace& sizes) {
  std::uint64_t total = 0;
  for (const std::uint64_t nbytes : sizes) total = saturating_add(total, nbytes);
  return total;
}

}  // namespace

/* --- what sessions share ---------------------------------------------------------------------------------- */

Kernels::Kernels(const Gpu& gpu, KernelIndex index, std::map<std::string, Bytes> codes)
    : gpu_(gpu), index_(std::move(index)), codes_(std::move(codes)) {}

std::vector<const Kernel*> Kernels::of(const Plan& plan) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<const Kernel*> found;
  for (const Launch& launch : plan.launches) found.push_back(&loaded(launch));
  return found;
}

const Kernel& Kernels::loaded(const Launch& launch) {
  const auto found = loaded_.find(launch.variant);
  if (found != loaded_.end()) return found->second;
  const auto& [entry, shared_bytes] = index_.cubins.at(launch.variant);
  const Bytes& code = codes_.at(launch.variant);
  Kernel kernel = gpu_.kernel(code.data(), entry, shared_bytes, 32 * launch.warps);
  return loaded_.emplace(launch.variant, std::move(kernel)).first->second;
}

FusedEngine::FusedEngine(std::unique_ptr<const Gpu> gpu, std::map<std::uint64_t, Plan> plans, KernelIndex index,
                         std::map<std::string, Bytes> codes, const Bytes& weights)
    : gpu_(std::move(gpu)), plans_(std::move(plans)), kernels_(*gpu_, std::move(index), std::move(codes)) {
  const auto current = gpu_->current();
  gpu_->check_free(saturating_add(weights.size(), sum(session_bytes())),
                   "this engine, for batches of up to " + std::to_string(largest_batch()) + ",");
  weights_ = gpu_->upload(weights.data(), weights.size(), "the network's weights");
}

BySpace FusedEngine::session_bytes() const {
  BySpace most{};
  for (const auto& [batch, plan] : plans_) {
    const BySpace used = plan.space_bytes();
    for (std::size_t i = 0; i < space_count; ++i) most[i] = std::max(most[i], aligned(used[i]));
  }
  most[at(Space::Weights)] = 0;
  return most;
}

/* --- one session ------------------------------------------------------------------------------------------ */

FusedSession::FusedSession(std::shared_ptr<FusedEngine> engine) : engine_(std::move(engine)), gpu_(engine_->gpu()) {
  const auto current = gpu_.current();
  const BySpace sizes = engine_->session_bytes();
  memory_ = gpu_.allocate(sum(sizes), "one request's buffers");
  std::uint64_t next = memory_.get();
  for (std::size_t i = 0; i < space_count; ++i) {
    base_[i] = next;
    next += sizes[i];
  }
  base_[at(Space::Weights)] = engine_->weights();
  stream_ = gpu_.stream();
  event_ = gpu_.event();
  if (const std::uint64_t nbytes = sizes[at(Space::Counters)]) {
    // Once: every launch that counts leaves zeros behind.
    check(gpu_.api.cuMemsetD8Async(base_[at(Space::Counters)], 0, nbytes, stream_.get()));
    check(gpu_.api.cuStreamSynchronize(stream_.get()));
  }
}

FusedSession::~FusedSession() {
  if (running_) settle(stream_.get());
  if (pending_) gpu_.quietly([this] { return gpu_.api.cuEventSynchronize(event_.get()); });
}

std::uint8_t* FusedSession::pixels(std::size_t count) {
  const BySpace bytes = engine_->plan_for(count).space_bytes();
  const std::uint64_t logit_bytes = aligned(bytes[at(Space::Logits)]);
  const std::uint64_t needed = saturating_add(logit_bytes, bytes[at(Space::Pixels)]);
  if (needed > staging_bytes_) {
    const auto current = gpu_.current();
    staging_bytes_ = 0;
    staging_ = PinnedMemory();
    staging_ = gpu_.pinned(needed);
    staging_bytes_ = needed;
  }
  return static_cast<std::uint8_t*>(staging_.get()) + logit_bytes;
}

void FusedSession::begin(std::size_t count) {
  const auto current = gpu_.current();
  const cu::Driver& api = gpu_.api;
  const Plan& plan = engine_->plan_for(count);
  const void* images = pixels(count);
  BucketGraph& graph = graph_for(plan);
  const cu::Stream stream = stream_.get();
  const Replay now{base_[at(Space::Pixels)], base_[at(Space::Logits)], static_cast<std::int32_t>(count)};
  try {
    follow(stream);
    check(api.cuMemcpyHtoDAsync(now.pixels, images, count * plan.size * plan.size * 3, stream));
    graph.replay(stream, now);
    check(api.cuMemcpyDtoHAsync(staging_.get(), now.logits, count * plan.classes * sizeof(float), stream));
  } catch (...) {
    settle(stream);
    throw;
  }
  running_ = true;
}

const float* FusedSession::end() {
  running_ = false;
  try {
    const auto current = gpu_.current();
    check(gpu_.api.cuStreamSynchronize(stream_.get()));
  } catch (...) {
    settle(stream_.get());
    throw;
  }
  pending_ = false;
  return static_cast<const float*>(staging_.get());
}

void FusedSession::run_device(const void* pixels, std::size_t count, float* logits, void* given) {
  const auto current = gpu_.current();
  const cu::Driver& api = gpu_.api;
  // By this handle it means the same whatever the process was compiled with.
  const auto default_stream = reinterpret_cast<cu::Stream>(cu::stream_legacy);
  const auto stream = given != nullptr ? static_cast<cu::Stream>(given) : default_stream;
  int capturing = cu::capture_status_none;
  check(api.cuStreamIsCapturing(stream, &capturing));
  if (capturing != cu::capture_status_none)
    throw Error(TKF_ERROR_ARGUMENT,
                "stream: got one that is being captured into a graph, and the engine replays graphs of its own; "
                "expected one that is not; call it outside of the capture");
  gpu_.check_pointer(pixels, "pixels");
  gpu_.check_pointer(logits, "logits");
  BucketGraph& graph = graph_for(engine_->plan_for(count));
  const Replay now{reinterpret_cast<std::uintptr_t>(pixels), reinterpret_cast<std::uintptr_t>(logits),
                   static_cast<std::int32_t>(count)};
  try {
    follow(stream);
    graph.replay(stream, now);
    check(api.cuEventRecord(event_.get(), stream));
  } catch (...) {
    settle(stream);
    throw;
  }
  pending_ = true;
}

BucketGraph& FusedSession::graph_for(const Plan& plan) {
  const auto found = graphs_.find(plan.batch);
  if (found != graphs_.end()) return found->second;
  BucketGraph made(gpu_, plan, engine_->kernels_of(plan), base_);
  return graphs_.emplace(plan.batch, std::move(made)).first->second;
}

/* Makes `stream` wait for the work that still uses this session's buffers. */
void FusedSession::follow(cu::Stream stream) {
  if (pending_) check(gpu_.api.cuStreamWaitEvent(stream, event_.get(), 0));
}

/* After a failure halfway: nothing may still run that would write into the next request's buffers. */
void FusedSession::settle(cu::Stream stream) noexcept {
  gpu_.quietly([&] { return gpu_.api.cuStreamSynchronize(stream); });
}

}  // namespace tkf
