/* One launch plan as a CUDA graph: captured once, replayed with other addresses or fewer images. */
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "cuda_gpu.h"
#include "cuda_plan.h"

namespace tkf {

/* What a replay may change. pixels, logits: device addresses. images: at most the plan's batch. */
struct Replay {
  std::uint64_t pixels = 0, logits = 0;
  std::int32_t images = 0;
};

/* Not for two threads at once. The GPU's context must be current in the constructor and in `replay`. */
class BucketGraph {
 public:
  /* kernels: one for each launch of the plan. base: address of each space. Nothing of it runs. */
  BucketGraph(const Gpu& gpu, const Plan& plan, const std::vector<const Kernel*>& kernels, const BySpace& base);

  /* Queues the launches on `stream`. */
  void replay(cu::Stream stream, const Replay& now);

 private:
  /* A launch's parameters as the driver reads them. */
  struct Parameters {
    Parameters(const Launch& launch, const BySpace& base);
    std::vector<std::uint64_t> values; /* of an int32 the first half */
    std::vector<void*> pointers;       /* to each of them */
  };

  /* A captured launch of whose parameters some may be replaced. */
  struct Node {
    cu::GraphNode handle;
    cu::KernelNodeParams params;
    Parameters parameters;
    std::vector<std::pair<std::size_t, Argument>> replaceable; /* which of them */
    std::vector<std::uint64_t> sent;                           /* what the graph last heard of these */
  };

  void capture(const Launch& launch, const Kernel& kernel, const BySpace& base, const Replay& now, cu::Stream stream);
  cu::GraphNode last_node(cu::Stream stream) const;

  const Gpu& gpu_;
  std::vector<Node> nodes_;
  Owned<cu::Graph> graph_;
  Owned<cu::GraphExec> exec_;
};

}  // namespace tkf
