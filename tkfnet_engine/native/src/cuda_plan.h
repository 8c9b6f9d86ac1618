/* The launch plan of a fused engine: the whole network as an ordered list of kernel launches over named memory.
 * kernels/plan.py says what it means, and is the other reader: both take and refuse the same plans. */
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace tkf {

/* Where a launch's buffers lie. Plan sizes and base addresses are kept by these numbers. */
enum class Space { Pixels, Logits, Weights, Arena, Counters };
constexpr std::size_t space_count = 5;
/* A number for each space; 64 bits hold every one that a validated buffer can reach. */
using BySpace = std::array<std::uint64_t, space_count>;

/* Every buffer starts on such a boundary. */
constexpr std::uint64_t plan_alignment = 256;

/* A run-time parameter of a kernel. */
struct Argument {
  enum class Kind { Buffer, Int32, Images };  /* Images: an int32 that may be lowered to how many there are */
  Kind kind = Kind::Int32;
  Space space = Space::Pixels;   /* of a buffer, as `offset`: bytes into the space */
  std::uint64_t offset = 0;
  std::int32_t value = 0;        /* of the others */
};

struct Launch {
  std::string variant;  /* names its machine code: `Launch.variant` of plan.py */
  std::array<unsigned, 3> grid{};
  unsigned warps = 0;
  bool dependent = false;  /* may begin before the launch before it has ended */
  std::vector<Argument> arguments;
};

struct Plan {
  std::uint64_t batch = 0;
  std::string precision, arch;
  std::uint64_t size = 0, classes = 0, arena_bytes = 0, counter_bytes = 0, weight_bytes = 0;
  std::vector<Launch> launches;

  /* How much of each space it uses; the largest uint64 stands for all that is more. */
  BySpace space_bytes() const;
};

/* `Error` TKF_ERROR_FILE, code "plan", for anything that is not a sound plan of this version. where: names it. */
Plan plan_from_json(std::string_view text, const std::string& where);

/* `cubins/<arch>/index`. driver: the least version that loads the machine code. */
struct KernelIndex {
  struct Entry {
    std::string entry;  /* the kernel's name in its cubin */
    unsigned shared_bytes = 0;
  };
  int driver = 0;
  std::map<std::string, Entry> cubins;  /* by variant */
};

/* `Error` TKF_ERROR_FILE, code "cubins", for a damaged one. */
KernelIndex kernel_index_from_json(std::string_view text, const std::string& where);

/* The sum and the product, or the largest uint64. */
std::uint64_t saturating_add(std::uint64_t a, std::uint64_t b);
std::uint64_t saturating_multiply(std::uint64_t a, std::uint64_t b);

}  // namespace tkf
