#include "engine_layout.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "strict_json.h"

namespace tkf {
namespace {

constexpr char kFormat[] = "tkfnet-engine";
constexpr std::int64_t kFormatVersion = 1;
constexpr std::size_t kMaxName = 200, kMaxRank = 8;
constexpr std::int64_t kMaxDim = std::int64_t{1} << 48;
constexpr char kMetadata[] = "__metadata__", kFacts[] = "tkfnet", kDigest[] = "~sha256";

constexpr struct {
  const char* name;
  unsigned bytes;
} kDtypes[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"I16", 2},  {"U16", 2}, {"I32", 4}, {"U32", 4},
               {"I64", 8},  {"U64", 8}, {"F16", 2}, {"BF16", 2}, {"F32", 4}, {"F64", 8}};

// A header may claim sizes far beyond 64 bits. No offset of 32 digits, the most it may write, reaches kUnreachable.
using Wide = unsigned __int128;
constexpr Wide kUnreachable = Wide{1} << 112;

std::string shortened(const std::string& text) { return text.size() <= 80 ? text : text.substr(0, 77) + "..."; }

std::string shown(const Value& value) { return shortened(value.json()); }

std::string decimal(Wide number) {
  std::string digits;
  do {
    digits.insert(digits.begin(), static_cast<char>('0' + static_cast<int>(number % 10)));
    number /= 10;
  } while (number > 0);
  return digits;
}

Value parsed(std::string_view text, const char* where) {
  try {
    return parse_json(text);
  } catch (const JsonError& error) {
    throw Refused{error.code, std::string("in the ") + where + ": " + error.found, error.expected};
  }
}

// The text of the facts. Format and version come first: a newer version may change the rest.
std::string checked_facts(const Value* metadata) {
  const Value* held = metadata != nullptr ? metadata->find(kFacts) : nullptr;
  if (metadata == nullptr || metadata->kind() == Value::Kind::Null || (metadata->is_object() && held == nullptr)) {
    throw Refused{"not-an-engine", "a safetensors file without our facts, so not an engine file",
                  "the metadata key 'tkfnet'", Refused::kNotOurs};
  }
  if (held == nullptr || !held->is_text()) {
    throw Refused{"metadata", "metadata of another type", "the key 'tkfnet' with a string"};
  }
  const Value facts = parsed(held->text(), "facts");
  if (!facts.is_object()) throw Refused{"facts", "facts that are " + shown(facts), "a JSON object"};
  const Value* format = facts.find("format");
  if (format == nullptr || !format->is_text() || format->text() != kFormat) {
    throw Refused{"format", "format " + (format != nullptr ? shown(*format) : "null"),
                  std::string("'") + kFormat + "'", Refused::kNotOurs};
  }
  const Value* version = facts.find("format_version");
  const std::string number = version != nullptr ? shown(*version) : "null", known = std::to_string(kFormatVersion);
  if (version == nullptr || version->kind() != Value::Kind::Integer || number[0] == '-' || number == "0") {
    throw Refused{"version", "format_version " + number, "1 to " + known};
  }
  if (std::int64_t small = 0; !version->integer(small, 1, kFormatVersion)) {
    throw Refused{"version-newer", "format_version " + number + ", written by a newer tkfnet-engine",
                  known + " at most", "upgrade libtkfnet, or build the engine again with this version"};
  }
  if (const std::size_t count = metadata->members().size(); count != 1) {
    throw Refused{"metadata", std::to_string(count) + " metadata keys", "only 'tkfnet'"};
  }
  return held->text();
}

void check_name(const std::string& name) {
  const bool sound = !name.empty() && name.size() <= kMaxName && name[0] != '/' && name != kMetadata &&
                     name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_./-") == std::string::npos &&
                     name.find("..") == std::string::npos;
  if (!sound) {
    throw Refused{"name", "a tensor named " + quoted(name),
                  "1 to " + std::to_string(kMaxName) + " of a-z 0-9 _ . / - without '..' or a leading '/'"};
  }
}

std::vector<std::uint64_t> checked_shape(const std::string& name, const Value& shape) {
  std::vector<std::uint64_t> extents;
  bool sound = shape.is_array() && shape.items().size() <= kMaxRank;
  for (std::size_t i = 0; sound && i < shape.items().size(); ++i) {
    std::int64_t extent = 0;
    // An empty tensor would share its offset with its neighbour, and so leave the order open.
    sound = shape.items()[i].integer(extent, 1, kMaxDim - 1);
    extents.push_back(static_cast<std::uint64_t>(extent));
  }
  if (!sound) {
    throw Refused{"shape", "tensor " + name + ": shape " + shown(shape),
                  "at most " + std::to_string(kMaxRank) + " dimensions of 1 to 2**48 - 1"};
  }
  return extents;
}

bool is_number(const Value& value, const std::string& digits) {
  return value.kind() == Value::Kind::Integer && value.json() == digits;
}

// One tensor's line of the header, given that the bytes before `position` are taken; `position` moves behind it.
TensorEntry checked_entry(const std::string& name, const Value& fields, Wide& position) {
  if (name != kDigest) check_name(name);
  const Value *dtype = fields.find("dtype"), *shape = fields.find("shape"), *offsets = fields.find("data_offsets");
  if (dtype == nullptr || shape == nullptr || offsets == nullptr || fields.members().size() != 3) {
    throw Refused{"entry", "tensor " + name + ": " + shown(fields), "exactly dtype, shape and data_offsets"};
  }
  const auto known = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                  [&](const auto& one) { return dtype->is_text() && dtype->text() == one.name; });
  if (known == std::end(kDtypes)) {
    std::string all;
    for (const auto& one : kDtypes) all += std::string(" ") + one.name;
    throw Refused{"dtype", "tensor " + name + ": dtype " + shown(*dtype), "one of" + all};
  }
  TensorEntry entry{name, known->name, checked_shape(name, *shape)};
  Wide bytes = known->bytes;
  for (const std::uint64_t extent : entry.shape) {
    bytes = bytes > kUnreachable / extent ? kUnreachable : bytes * extent;
  }
  // No holes, no overlaps, nothing behind the end: each tensor starts where the one before it ends.
  const std::string begin = decimal(position), end = decimal(position + bytes);
  const bool pair = offsets->is_array() && offsets->items().size() == 2;
  if (!pair || !is_number(offsets->items()[0], begin) || !is_number(offsets->items()[1], end)) {
    throw Refused{"offsets", "tensor " + name + ": data_offsets " + shown(*offsets),
                  "[" + begin + ", " + end + "] for " + known->name + " " + shown(*shape)};
  }
  position += bytes;
  entry.bytes = static_cast<std::size_t>(bytes);  // what does not fit the file, and so maybe size_t, is refused below
  return entry;
}

}  // namespace

std::string quoted(std::string_view text) { return shortened(quoted_ascii(text)); }

EngineLayout layout_from_header(std::string_view header, std::uint64_t file_size) {
  if (header.substr(0, 1) != "{") {
    throw Refused{"header-start", "a header that starts with " + quoted(header.substr(0, 4)), "'{'",
                  Refused::kNotOurs};
  }
  const Value fields = parsed(header, "header");
  EngineLayout layout{checked_facts(fields.find(kMetadata)), {}};
  Wide position = 0;
  for (const Value::Member& member : fields.members()) {
    if (member.key != kMetadata) layout.tensors.push_back(checked_entry(member.key, member.value, position));
  }
  if (const Wide expected = 8 + Wide{header.size()} + position; expected != file_size) {
    throw Refused{file_size < expected ? "truncated" : "trailing", "a file of " + std::to_string(file_size) + " bytes",
                  decimal(expected) + " bytes, as its header says"};
  }
  TensorEntry last;
  if (!layout.tensors.empty()) {
    last = std::move(layout.tensors.back());
    layout.tensors.pop_back();
  }
  if (last.name != kDigest || last.dtype != "U8" || last.shape != std::vector<std::uint64_t>{32}) {
    throw Refused{"digest-form", "the last tensor " + quoted(last.name), "the digest '~sha256', U8 [32]"};
  }
  return layout;
}

}  // namespace tkf
