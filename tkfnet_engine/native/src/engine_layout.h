/* The engine file's header: every rule of docs/engine-file.md that needs no tensor's bytes. */
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tkf {

/* What is wrong with a file; engine_file.cpp adds its name. code: of docs/engine-file.md, a literal. */
struct Refused {
  const char* code;
  std::string found, expected, remedy = kDamaged;

  static constexpr char kDamaged[] =
      "the file is damaged or was changed: copy it again, or build it again (python -m tkfnet_engine.build)";
  static constexpr char kNotOurs[] =
      "is it a checkpoint? Build an engine from it: python -m tkfnet_engine.build --checkpoint FILE";
};

struct TensorEntry {
  std::string name, dtype;
  std::vector<std::uint64_t> shape;
  std::size_t bytes = 0;
};

struct EngineLayout {
  std::string facts_text;
  std::vector<TensorEntry> tensors; /* in file order, without the digest; their sum fits the file */
};

/* `header` is the JSON of a file of `file_size` bytes. Throws `Refused`. */
EngineLayout layout_from_header(std::string_view header, std::uint64_t file_size);

/* Something the file says, as JSON, and short: for messages. */
std::string quoted(std::string_view text);

}  // namespace tkf
