#include "cuda_plan.h"

#include <initializer_list>
#include <limits>
#include <utility>

#include "error.h"
#include "sha256.h"
#include "strict_json.h"

namespace tkf {
namespace {

constexpr std::int64_t largest_count = std::int64_t{1} << 62;
constexpr std::int64_t plan_format = 1;

/* What is wrong; the reader that was called says with which file. */
struct Refused {
  std::string why;
};

/* A member of an object. Throws where there is none. */
const Value& field(const Value& object, const char* name) {
  const Value* found = object.find(name);
  if (found == nullptr) throw Refused{std::string("no ") + name};
  return *found;
}

void check_fields(const Value& object, std::initializer_list<const char*> names, const std::string& what) {
  if (!object.is_object()) throw Refused{what + " is no object"};
  for (const char* name : names) field(object, name);
  if (object.members().size() != names.size()) throw Refused{what + " has fields that this version does not know"};
}

std::int64_t number(const Value& value, std::int64_t low, std::int64_t high, const std::string& what) {
  std::int64_t found = 0;
  if (!value.integer(found, low, high))
    throw Refused{what + " is no whole number from " + std::to_string(low) + " to " + std::to_string(high)};
  return found;
}

std::int64_t number(const Value& object, const char* name, std::int64_t low, std::int64_t high = largest_count) {
  return number(field(object, name), low, high, name);
}

std::uint64_t count(const Value& object, const char* name, std::int64_t low) {
  return static_cast<std::uint64_t>(number(object, name, low));
}

const std::string& text(const Value& value, const std::string& what) {
  if (!value.is_text()) throw Refused{what + " is no text"};
  return value.text();
}

const std::vector<Value>& items(const Value& value, const std::string& what) {
  if (!value.is_array()) throw Refused{what + " is no list"};
  return value.items();
}

/* [name, value] -> its two; what: of which list it is an entry. */
std::pair<const std::string&, const Value&> named(const Value& pair, const std::string& what) {
  if (items(pair, what).size() != 2) throw Refused{what + " is no pair"};
  const std::string& name = text(pair.items()[0], what);
  for (const char c : name)
    if (static_cast<unsigned char>(c) > 0x7f) throw Refused{what + " has a name beyond ASCII"};
  return {name, pair.items()[1]};
}

struct Dtype {
  const char* name;
  std::uint64_t bytes;
  const char* triton;
};
constexpr Dtype dtypes[] = {{"u8", 1, "u8"},    {"i8", 1, "i8"},    {"f8", 1, "fp8e4nv"},
                            {"f16", 2, "fp16"}, {"i32", 4, "i32"}, {"f32", 4, "fp32"}};

const Dtype& dtype_of(const Value& value) {
  for (const Dtype& one : dtypes)
    if (text(value, "dtype") == one.name) return one;
  throw Refused{"dtype " + quoted_ascii(value.text())};
}

Space space_of(const Value& value) {
  constexpr const char* names[space_count] = {"pixels", "logits", "weights", "arena", "counters"};
  for (std::size_t i = 0; i < space_count; ++i)
    if (text(value, "space") == names[i]) return static_cast<Space>(i);
  throw Refused{"space " + quoted_ascii(value.text())};
}

bool is_identifier(const std::string& name) {
  for (const char c : name) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    if (!letter && !(c >= '0' && c <= '9')) return false;
  }
  return !name.empty() && !(name[0] >= '0' && name[0] <= '9');
}

/* One launch, and the text that its variant is the digest of. */
class LaunchReader {
 public:
  explicit LaunchReader(const BySpace& space_bytes) : space_bytes_(space_bytes) {}

  Launch read(const Value& fields) {
    check_fields(fields,
                 {"name", "kernel", "grid", "args", "constexprs", "warps", "stages", "flops", "reads", "writes",
                  "loads"},
                 "a launch");
    const std::string& kernel = text(field(fields, "kernel"), "kernel");
    if (!is_identifier(kernel)) throw Refused{"kernel " + quoted_ascii(kernel)};
    text(field(fields, "name"), "name");
    for (const char* name : {"flops", "reads", "writes", "loads"}) number(fields, name, 0);
    read_grid(field(fields, "grid"));
    launch_.warps = static_cast<unsigned>(number(fields, "warps", 1, 32));
    if ((launch_.warps & (launch_.warps - 1)) != 0) throw Refused{std::to_string(launch_.warps) + " warps"};
    const auto stages = number(fields, "stages", 1, 10);
    // Exactly as Python's json.dumps writes it: the digest of this text names the machine code.
    facts_ = "[" + quoted_ascii(kernel) + ", [";
    for (const Value& argument : items(field(fields, "args"), "args")) read_argument(argument);
    facts_ += "], [";
    first_ = true;
    for (const Value& constant : items(field(fields, "constexprs"), "constexprs")) read_constant(constant);
    facts_ += "], " + std::to_string(launch_.warps) + ", " + std::to_string(stages) + "]";
    Sha256 digest;
    digest.update(facts_.data(), facts_.size());
    launch_.variant = kernel + "-" + hexadecimal(digest.digest()).substr(0, 20);
    return std::move(launch_);
  }

 private:
  void read_grid(const Value& grid) {
    // CUDA's limits.
    constexpr std::int64_t limits[3] = {(std::int64_t{1} << 31) - 1, 65535, 65535};
    const auto& extents = items(grid, "grid");
    if (extents.size() != 3) throw Refused{"a grid of " + std::to_string(extents.size()) + " dimensions"};
    for (std::size_t i = 0; i < 3; ++i)
      launch_.grid[i] = static_cast<unsigned>(number(extents[i], 1, limits[i], "grid"));
  }

  void read_argument(const Value& pair) {
    const auto [name, value] = named(pair, "args");
    Argument argument;
    std::string type = "i32";
    if (value.is_object()) {
      check_fields(value, {"space", "offset", "dtype", "count"}, name);
      const Dtype& dtype = dtype_of(field(value, "dtype"));
      argument.kind = Argument::Kind::Buffer;
      argument.space = space_of(field(value, "space"));
      argument.offset = count(value, "offset", 0);
      const std::uint64_t nbytes = saturating_multiply(count(value, "count", 1), dtype.bytes);
      const std::uint64_t room = space_bytes_[static_cast<std::size_t>(argument.space)];
      if (argument.offset % plan_alignment != 0 || saturating_add(argument.offset, nbytes) > room)
        throw Refused{name + " is not within its space"};
      type = std::string("*") + dtype.triton;
    } else {
      using Limits = std::numeric_limits<std::int32_t>;
      argument.kind = name == "images" ? Argument::Kind::Images : Argument::Kind::Int32;
      argument.value = static_cast<std::int32_t>(number(value, Limits::min(), Limits::max(), name));
    }
    facts_ += separator() + "[" + quoted_ascii(name) + ", \"" + type + "\"]";
    launch_.arguments.push_back(argument);
  }

  void read_constant(const Value& pair) {
    const auto [name, value] = named(pair, "constexprs");
    const bool truth = value.kind() == Value::Kind::Bool;
    std::int64_t whole = 0;
    if (!truth && value.kind() != Value::Kind::Null && !value.integer(whole))
      throw Refused{"constexpr " + name + " is no whole number of 64 bits, true, false or null"};
    if (name == "PDL" && (truth ? value.as_bool() : whole == 1)) launch_.dependent = true;
    facts_ += separator() + "[" + quoted_ascii(name) + ", " + value.json() + "]";
  }

  std::string separator() { return std::exchange(first_, false) ? "" : ", "; }

  const BySpace& space_bytes_;
  Launch launch_;
  std::string facts_;
  bool first_ = true;
};

Plan plan_from(const Value& fields) {
  check_fields(fields,
               {"format", "batch", "precision", "arch", "size", "classes", "launches", "arena_bytes", "counter_bytes",
                "weight_bytes"},
               "the plan");
  number(fields, "format", plan_format, plan_format);
  Plan plan;
  plan.batch = count(fields, "batch", 1);
  plan.size = count(fields, "size", 1);
  plan.classes = count(fields, "classes", 1);
  plan.weight_bytes = count(fields, "weight_bytes", 1);
  plan.arena_bytes = count(fields, "arena_bytes", 0);
  plan.counter_bytes = count(fields, "counter_bytes", 0);
  plan.arch = text(field(fields, "arch"), "arch");
  plan.precision = text(field(fields, "precision"), "precision");
  const auto& launches = items(field(fields, "launches"), "launches");
  if (launches.empty()) throw Refused{"no launches"};
  const BySpace space_bytes = plan.space_bytes();
  for (const Value& launch : launches) {
    try {
      plan.launches.push_back(LaunchReader(space_bytes).read(launch));
    } catch (const Refused& refused) {
      throw Refused{"launch " + std::to_string(plan.launches.size()) + ": " + refused.why};
    }
  }
  return plan;
}

KernelIndex index_from(const Value& fields) {
  KernelIndex index;
  index.driver = static_cast<int>(number(fields, "driver", 0, std::numeric_limits<int>::max()));
  const Value& cubins = field(fields, "cubins");
  if (!cubins.is_object()) throw Refused{"cubins is no object"};
  for (const Value::Member& member : cubins.members()) {
    // What one block of any GPU could have, and more.
    constexpr std::int64_t most = 1 << 30;
    KernelIndex::Entry entry;
    entry.entry = text(field(member.value, "entry"), "entry");
    if (!is_identifier(entry.entry)) throw Refused{"entry " + quoted_ascii(entry.entry)};
    number(member.value, "registers", 0, std::numeric_limits<int>::max());
    entry.shared_bytes = static_cast<unsigned>(number(member.value, "shared_bytes", 0, most));
    index.cubins.emplace(member.key, std::move(entry));
  }
  return index;
}

/* What `read` makes of the text, and "", or why it is refused. */
template <class Result>
std::pair<Result, std::string> read_or_why(std::string_view json, Result (*read)(const Value&)) {
  try {
    return {read(parse_json(json)), ""};
  } catch (const JsonError& error) {
    return {{}, error.what()};
  } catch (const Refused& refused) {
    return {{}, refused.why};
  }
}

}  // namespace

BySpace Plan::space_bytes() const {
  const std::uint64_t pixels = saturating_multiply(saturating_multiply(batch, 3), saturating_multiply(size, size));
  const std::uint64_t logits = saturating_multiply(saturating_multiply(batch, 4), classes);
  return {pixels, logits, weight_bytes, arena_bytes, counter_bytes};
}

Plan plan_from_json(std::string_view json, const std::string& where) {
  const auto [plan, why] = read_or_why(json, plan_from);
  if (why.empty()) return plan;
  throw Error(TKF_ERROR_FILE, where + ": a launch plan that is not one of this version (" + why +
                                  "); expected one of format 1; build the engine again",
              "plan");
}

KernelIndex kernel_index_from_json(std::string_view json, const std::string& where) {
  const auto [index, why] = read_or_why(json, index_from);
  if (why.empty()) return index;
  throw Error(TKF_ERROR_FILE, where + ": its index of kernels is damaged (" + why +
                                  "); expected a driver version and kernels; build the engine again",
              "cubins");
}

std::uint64_t saturating_add(std::uint64_t a, std::uint64_t b) {
  constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
  return a > most - b ? most : a + b;
}

std::uint64_t saturating_multiply(std::uint64_t a, std::uint64_t b) {
  constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
  return b != 0 && a > most / b ? most : a * b;
}

}  // namespace tkf
