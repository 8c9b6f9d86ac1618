/* Parts of the engine for CUDA that need no GPU, for many inputs in one process: one line of standard output for each
 * line of standard input.
 *
 * fused_parts plan     a launch plan's text, in hexadecimal -> what was read of it as JSON, or {"refused": "why"}
 * fused_parts index    the same of an index of kernels
 * fused_parts golden   "classes expected got", the latter float32 in hexadecimal -> what is wrong with got, or nothing
 * fused_parts arch     "major minor sm_80 sm_90 .." -> the one that a GPU of this capability runs, or the error
 */
#include <cstdio>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "cuda_backend.h"
#include "cuda_plan.h"
#include "error.h"
#include "golden.h"
#include "strict_json.h"

namespace {

using tkf::quoted_ascii;

std::string bytes_of(const std::string& hexadecimal) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < hexadecimal.size(); i += 2)
    bytes += static_cast<char>(std::stoi(hexadecimal.substr(i, 2), nullptr, 16));
  return bytes;
}

std::vector<float> floats_of(const std::string& hexadecimal) {
  const std::string bytes = bytes_of(hexadecimal);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

template <class Items, class Text>
std::string list(const Items& items, const Text& text) {
  std::string result;
  for (const auto& item : items) result += (result.empty() ? "" : ", ") + text(item);
  return "[" + result + "]";
}

std::string argument_text(const tkf::Argument& argument) {
  using Kind = tkf::Argument::Kind;
  if (argument.kind == Kind::Buffer)
    return "[" + std::to_string(static_cast<int>(argument.space)) + ", " + std::to_string(argument.offset) + "]";
  return argument.kind == Kind::Images ? "[\"images\", " + std::to_string(argument.value) + "]"
                                       : std::to_string(argument.value);
}

std::string plan_text(const std::string& text) {
  const tkf::Plan plan = tkf::plan_from_json(text, "a file");
  const auto number = [](auto value) { return std::to_string(value); };
  const auto launch_text = [&](const tkf::Launch& launch) {
    return "[" + quoted_ascii(launch.variant) + ", " + list(launch.grid, number) + ", " + number(launch.warps) + ", " +
           (launch.dependent ? "true" : "false") + ", " + list(launch.arguments, argument_text) + "]";
  };
  return "{\"batch\": " + number(plan.batch) + ", \"size\": " + number(plan.size) + ", \"classes\": " +
         number(plan.classes) + ", \"precision\": " + quoted_ascii(plan.precision) + ", \"arch\": " +
         quoted_ascii(plan.arch) + ", \"bytes\": " + list(plan.space_bytes(), number) + ", \"launches\": " +
         list(plan.launches, launch_text) + "}";
}

std::string index_text(const std::string& text) {
  const tkf::KernelIndex index = tkf::kernel_index_from_json(text, "a file");
  return "{\"driver\": " + std::to_string(index.driver) + ", \"cubins\": " + list(index.cubins, [](const auto& item) {
           return "[" + quoted_ascii(item.first) + ", " + quoted_ascii(item.second.entry) + ", " +
                  std::to_string(item.second.shared_bytes) + "]";
         }) + "}";
}

std::string golden_text(const std::string& line) {
  std::istringstream parts(line);
  std::size_t classes = 0;
  std::string expected, got;
  parts >> classes >> expected >> got;
  return tkf::golden_fault(floats_of(expected), floats_of(got), classes);
}

std::string arch_text(const std::string& line) {
  std::istringstream parts(line);
  int major = 0, minor = 0;
  parts >> major >> minor;
  std::vector<std::string> held;
  for (std::string arch; parts >> arch;) held.push_back(arch);
  return tkf::chosen_arch(major, minor, held, "A GPU");
}

}  // namespace

int main(int count, char** arguments) {
  const std::string what = count == 2 ? arguments[1] : "";
  for (std::string line; std::getline(std::cin, line);) {
    std::string answer;
    try {
      if (what == "plan") answer = plan_text(bytes_of(line));
      else if (what == "index") answer = index_text(bytes_of(line));
      else if (what == "golden") answer = golden_text(line);
      else if (what == "arch") answer = arch_text(line);
      else return 64;
    } catch (const tkf::Error& error) {
      answer = "{\"refused\": " + quoted_ascii(error.what()) + ", \"status\": " + std::to_string(error.status) +
               ", \"code\": " + quoted_ascii(error.code) + "}";
    }
    std::cout << answer << "\n";
  }
  return 0;
}
