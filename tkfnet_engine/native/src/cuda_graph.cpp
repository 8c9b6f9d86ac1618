#include "cuda_graph.h"

#include <algorithm>
#include <cstring>

namespace tkf {
namespace {

/* What a replaceable parameter should be. */
std::uint64_t wanted(const Argument& argument, const Replay& now) {
  if (argument.kind == Argument::Kind::Images) return static_cast<std::uint64_t>(now.images);
  return (argument.space == Space::Pixels ? now.pixels : now.logits) + argument.offset;
}

bool is_replaceable(const Argument& argument) {
  if (argument.kind != Argument::Kind::Buffer) return argument.kind == Argument::Kind::Images;
  return argument.space == Space::Pixels || argument.space == Space::Logits;
}

/* value: an address, or an int32. */
void put(std::uint64_t& slot, const Argument& argument, std::uint64_t value) {
  if (argument.kind == Argument::Kind::Buffer) {
    slot = value;
  } else {
    const auto narrow = static_cast<std::int32_t>(value);
    std::memcpy(&slot, &narrow, sizeof narrow);
  }
}

}  // namespace

BucketGraph::Parameters::Parameters(const Launch& launch, const BySpace& base) {
  for (const Argument& argument : launch.arguments) {
    const bool buffer = argument.kind == Argument::Kind::Buffer;
    const std::uint64_t place = base[static_cast<std::size_t>(argument.space)] + argument.offset;
    put(values.emplace_back(0), argument, buffer ? place : static_cast<std::uint64_t>(argument.value));
  }
  // Triton's own two: global scratch and profiling scratch, which these kernels do not use.
  values.insert(values.end(), 2, 0);
  for (std::uint64_t& value : values) pointers.push_back(&value);
}

BucketGraph::BucketGraph(const Gpu& gpu, const Plan& plan, const std::vector<const Kernel*>& kernels,
                         const BySpace& base)
    : gpu_(gpu) {
  const cu::Driver& api = gpu.api;
  // Of its own: should the capture not come to its end, no other work is on it.
  const Owned<cu::Stream> capturing = gpu.stream();
  const cu::Stream stream = capturing.get();
  const Replay now{base[static_cast<std::size_t>(Space::Pixels)], base[static_cast<std::size_t>(Space::Logits)],
                   static_cast<std::int32_t>(plan.batch)};
  // Thread-local: what other threads allocate meanwhile is no concern of this capture.
  check(api.cuStreamBeginCapture(stream, cu::capture_thread_local));
  cu::Graph captured = nullptr;
  try {
    for (std::size_t i = 0; i < kernels.size(); ++i) capture(plan.launches[i], *kernels[i], base, now, stream);
  } catch (...) {
    // What was captured so far is handed out all the same.
    if (!context_lost() && api.cuStreamEndCapture(stream, &captured) == cu::success)
      graph_ = Owned<cu::Graph>(gpu, api.cuGraphDestroy, captured);
    throw;
  }
  check(api.cuStreamEndCapture(stream, &captured));
  graph_ = Owned<cu::Graph>(gpu, api.cuGraphDestroy, captured);
  cu::GraphExec exec = nullptr;
  check(api.cuGraphInstantiateWithFlags(&exec, captured, 0));
  exec_ = Owned<cu::GraphExec>(gpu, api.cuGraphExecDestroy, exec);
}

void BucketGraph::capture(const Launch& launch, const Kernel& kernel, const BySpace& base, const Replay& now,
                          cu::Stream stream) {
  Parameters parameters(launch, base);
  const unsigned threads = 32 * launch.warps;
  cu::LaunchAttribute dependent{};
  dependent.id = cu::attribute_dependent_launch;
  dependent.value.dependent_launch_allowed = 1;
  cu::LaunchConfig config{};
  std::copy(launch.grid.begin(), launch.grid.end(), config.grid);
  config.block[0] = threads, config.block[1] = config.block[2] = 1;
  config.shared_bytes = kernel.shared_bytes;
  config.stream = stream;
  if (launch.dependent) {
    config.attributes = &dependent;
    config.attribute_count = 1;
  }
  check(gpu_.api.cuLaunchKernelEx(&config, kernel.function, parameters.pointers.data(), nullptr));

  Node node{nullptr, {}, std::move(parameters), {}, {}};
  for (std::size_t i = 0; i < launch.arguments.size(); ++i) {
    if (!is_replaceable(launch.arguments[i])) continue;
    node.replaceable.emplace_back(i, launch.arguments[i]);
    node.sent.push_back(wanted(launch.arguments[i], now));
  }
  if (node.replaceable.empty()) return;
  node.handle = last_node(stream);
  node.params.function = kernel.function;
  std::copy(config.grid, config.grid + 3, node.params.grid);
  std::copy(config.block, config.block + 3, node.params.block);
  node.params.shared_bytes = kernel.shared_bytes;
  node.params.parameters = node.parameters.pointers.data();
  nodes_.push_back(std::move(node));
}

/* The node that the next one captured would depend on: the launch just captured. */
cu::GraphNode BucketGraph::last_node(cu::Stream stream) const {
  int status = cu::capture_status_none;
  const cu::GraphNode* nodes = nullptr;
  const void* edges = nullptr;
  std::size_t count = 0;
  check(gpu_.api.cuStreamGetCaptureInfo(stream, &status, nullptr, nullptr, &nodes, &edges, &count));
  if (status == cu::capture_status_none || count != 1)
    throw Error(TKF_ERROR_BACKEND, "the GPU driver has captured " + std::to_string(count) +
                                       " ends of a chain of launches; expected one; update the driver");
  return nodes[0];
}

void BucketGraph::replay(cu::Stream stream, const Replay& now) {
  for (Node& node : nodes_) {
    bool changed = false;
    for (std::size_t i = 0; i < node.replaceable.size(); ++i) {
      const auto& [index, argument] = node.replaceable[i];
      const std::uint64_t value = wanted(argument, now);
      changed = changed || value != node.sent[i];
      put(node.parameters.values[index], argument, value);
    }
    if (!changed) continue;
    // Launches already queued keep the values they were queued with.
    check(gpu_.api.cuGraphExecKernelNodeSetParams(exec_.get(), node.handle, &node.params));
    for (std::size_t i = 0; i < node.replaceable.size(); ++i) node.sent[i] = wanted(node.replaceable[i].second, now);
  }
  check(gpu_.api.cuGraphLaunch(exec_.get(), stream));
}

}  // namespace tkf
