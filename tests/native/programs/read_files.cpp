/* What the engine file's readers make of many inputs, in one process: one JSON object per line of standard input.
 *
 * read_files engine        the lines are paths of engine files; read from the path, and, below 16 MiB, from memory
 * read_files engine HOW    the same, while something happens to the file or to the system's `read`:
 *                          interrupts, shrinks, grows or fails
 * read_files json          the lines are JSON documents, each in hexadecimal
 * read_files sha256        the lines are sizes "12 0 7": digests of bytes 0 1 2 .. in parts of these sizes
 */
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "engine_file.h"
#include "error.h"
#include "facts.h"
#include "sha256.h"
#include "strict_json.h"

namespace {

using tkf::quoted_ascii;

std::string disturbance, path_being_read;  // "" is none
long calls = 0;

}  // namespace

/* In the place of libc's, for the library that is linked into this program. The third call is the first behind the
 * header. */
extern "C" ssize_t disturbed_read(int descriptor, void* to, std::size_t size) __asm__("read");

extern "C" ssize_t disturbed_read(int descriptor, void* to, std::size_t size) {
  if (!path_being_read.empty()) ++calls;
  if (!path_being_read.empty() && disturbance == "interrupts") {
    if (calls % 2 == 1) {
      errno = EINTR;
      return -1;
    }
    size = std::min<std::size_t>(size, 7);
  } else if (calls == 3) {
    const auto length = static_cast<off_t>(std::ifstream(path_being_read, std::ios::ate).tellg());
    if (disturbance == "fails") {
      errno = EIO;
      return -1;
    }
    const off_t change = disturbance == "shrinks" ? -40 : disturbance == "grows" ? 1 : 0;
    if (::truncate(path_being_read.c_str(), length + change) != 0) std::abort();
  }
  return static_cast<ssize_t>(::syscall(SYS_read, descriptor, to, size));
}

namespace {

std::string sha256_of(std::string_view bytes) {
  tkf::Sha256 hash;
  hash.update(bytes.data(), bytes.size());
  return tkf::hexadecimal(hash.digest());
}

std::string text_field(const char* key, std::string_view value) {
  return std::string("\"") + key + "\":" + quoted_ascii(value);
}

std::string refusal(const tkf::Error& error) {
  return text_field("code", error.code) + ",\"status\":" + std::to_string(error.status) + ',' +
         text_field("message", error.what());
}

std::string facts_of(const tkf::EngineFile& file) {
  try {
    const tkf::Facts facts = tkf::facts_from(file);
    std::string labels;
    for (const std::string& label : facts.labels) labels += (labels.empty() ? "" : ",") + quoted_ascii(label);
    return '{' + text_field("code", "ok") + ",\"labels\":[" + labels + "]," + text_field("precision", facts.precision) +
           ',' + text_field("backend", facts.backend) + ',' + text_field("device", facts.device) +
           ",\"size\":" + std::to_string(facts.size) + ",\"max_batch\":" + std::to_string(facts.max_batch) +
           ",\"weight_bits\":" + std::to_string(facts.weight_bits) + '}';
  } catch (const tkf::Error& error) {
    return '{' + refusal(error) + '}';
  }
}

std::string described(const std::function<tkf::EngineFile()>& read) {
  try {
    tkf::EngineFile file = read();
    std::string tensors;
    for (const std::string& name : file.names()) {
      const tkf::Tensor tensor = file.take(name);
      if (reinterpret_cast<std::uintptr_t>(tensor.data.data()) % 64 != 0 || file.has(name)) std::abort();
      std::string shape;
      for (const std::uint64_t extent : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(extent);
      tensors += (tensors.empty() ? "" : ",") + quoted_ascii(name) + ":{" + text_field("dtype", tensor.dtype) +
                 ",\"shape\":[" + shape + "]," + text_field("sha256", sha256_of(tensor.data.text())) + '}';
    }
    return text_field("code", "ok") + ',' + text_field("name", file.name()) + ',' +
           text_field("sha256", file.sha256()) + ',' + text_field("facts_sha256", sha256_of(file.facts_text())) +
           ",\"tensors\":{" + tensors + "},\"facts\":" + facts_of(file);
  } catch (const tkf::Error& error) {
    return refusal(error);
  }
}

std::string engine_line(const std::string& path) {
  path_being_read = disturbance.empty() ? "" : path;
  calls = 0;
  const std::string from_path = described([&] { return tkf::EngineFile::read(path); });
  path_being_read.clear();
  struct stat facts = {};
  const bool small = ::stat(path.c_str(), &facts) == 0 && S_ISREG(facts.st_mode) && facts.st_size < 16 << 20;
  std::ifstream stream;
  if (small && disturbance.empty()) stream.open(path, std::ios::binary);
  if (!stream.is_open()) return '{' + from_path + '}';
  std::string content{std::istreambuf_iterator<char>(stream), {}};
  // Without a byte to spare, so that a sanitizer sees a read behind the end.
  const std::vector<char> exact(content.begin(), content.end());
  const std::string copy = described([&] { return tkf::EngineFile::read(exact.data(), exact.size()); });
  return '{' + from_path + ",\"memory\":{" + copy + "}}";
}

std::string bytes_from_hexadecimal(const std::string& line) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < line.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(line.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

std::string json_line(const std::string& line) {
  const std::string text = bytes_from_hexadecimal(line);
  try {
    return '{' + text_field("code", "ok") + ",\"value\":" + tkf::parse_json(text).json() + '}';
  } catch (const tkf::JsonError& error) {
    return '{' + text_field("code", error.code) + ',' + text_field("message", error.what()) + '}';
  }
}

std::string sha256_line(const std::string& line) {
  std::istringstream sizes(line);
  tkf::Sha256 chosen, portable(true);
  std::string bytes;
  for (std::size_t size = 0, next = 0; sizes >> size; next += size) {
    bytes.clear();
    for (std::size_t i = 0; i < size; ++i) bytes += static_cast<char>((next + i) % 256);
    chosen.update(bytes.data(), bytes.size());
    portable.update(bytes.data(), bytes.size());
  }
  return "{\"instructions\":" + std::string(tkf::has_sha256_instructions() ? "true" : "false") + ',' +
         text_field("chosen", tkf::hexadecimal(chosen.digest())) + ',' +
         text_field("portable", tkf::hexadecimal(portable.digest())) + '}';
}

}  // namespace

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  disturbance = count > 2 ? arguments[2] : "";
  std::string (*answer)(const std::string&) = nullptr;
  if (mode == "engine") answer = engine_line;
  if (mode == "json") answer = json_line;
  if (mode == "sha256") answer = sha256_line;
  if (answer == nullptr) {
    std::fprintf(stderr, "usage: read_files engine [HOW] | json | sha256\n");
    return 2;
  }
  std::string line;
  while (std::getline(std::cin, line)) std::cout << answer(line) << '\n' << std::flush;
  return 0;
}
