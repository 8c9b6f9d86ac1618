/* The engine file's reader, and all that reads the facts. The first byte of an input is no part of the file: if it is
 * odd, the file's last 32 bytes become its digest, so that what lies behind that check is reached as well. */
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine_file.h"
#include "error.h"
#include "facts.h"
#include "sha256.h"
#include "strict_json.h"

namespace {

void check(bool fine) {
  if (!fine) std::abort();
}

/* Whatever the readers give has to be what their headers promise. */
void use(tkf::EngineFile& file, std::size_t size) {
  check(tkf::parse_json(file.facts_text()).is_object());
  const std::string written = tkf::parse_json(file.facts_text()).json();
  check(tkf::parse_json(written).json() == written);
  try {
    const tkf::Facts facts = tkf::facts_from(file);
    check(facts.classes() >= 2 && facts.classes() <= TKF_MAX_CLASSES && facts.size >= 32 && facts.max_batch >= 1);
    check((facts.weight_bits != 0) == (facts.precision == "int8"));
  } catch (const tkf::Error& error) {
    check(error.status == TKF_ERROR_FILE && std::string(error.code) == "facts");
  }
  std::size_t total = 0;
  for (const std::string& name : file.names()) {
    const tkf::Tensor tensor = file.take(name);
    tkf::Sha256 every_byte;
    every_byte.update(tensor.data.data(), tensor.data.size());
    check(every_byte.digest().size() == 32 && tensor.data.size() > 0 && !file.has(name));
    total += tensor.data.size();
  }
  check(file.names().empty() && total < size && file.sha256().size() == 64);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const bool sealed = data[0] % 2 == 1;
  std::vector<std::uint8_t> content(data + 1, data + size);
  content.shrink_to_fit();
  if (sealed && content.size() >= 32) {
    tkf::Sha256 hash;
    hash.update(content.data(), content.size() - 32);
    const tkf::Sha256Digest digest = hash.digest();
    std::copy(digest.begin(), digest.end(), content.end() - 32);
  }
  try {
    tkf::EngineFile file = tkf::EngineFile::read(content.data(), content.size());
    use(file, content.size());
  } catch (const tkf::Error& error) {
    check(error.status == TKF_ERROR_FILE || error.status == TKF_ERROR_VERSION);
    check(error.code[0] != '\0' && error.what()[0] != '\0');
  }
  return 0;
}
