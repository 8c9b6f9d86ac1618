/* Opening an engine and asking it, by tkfnet.h, for the programs that run over a GPU or its stand-in. */
#pragma once

#include <cstdint>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "driver_calls.h"
#include "tkfnet.h"

namespace calls {

using Floats = std::vector<float>;

inline std::vector<int> numbers(const std::string& list) {
  std::vector<int> found;
  std::istringstream parts(list);
  for (std::string part; std::getline(parts, part, ',');) found.push_back(std::stoi(part));
  return found;
}

inline std::vector<std::uint8_t> content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  return {content.begin(), content.end()};
}

/* A JSON string of printable ASCII, as `tkf_last_error` is. */
inline std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + "\"";
}

inline tkf_status open_engine(const std::string& path, int device, bool trusted, tkf_engine** engine) {
  tkf_engine_options options{};
  options.struct_size = sizeof options;
  options.device = device;
  options.allow_native_code = trusted;
  return tkf_engine_open(path.c_str(), &options, engine);
}

inline tkf_status open_session(tkf_engine* engine, tkf_session** session) {
  tkf_session_options options{};
  options.struct_size = sizeof options;
  options.output = TKF_OUTPUT_LOGITS;
  return tkf_session_open(engine, &options, session);
}

/* One request. how: run, submit, device (tkf_run_device on the default stream) or stream (on one of our own). The
 * logits go behind `answer`. on_device: the pixels, for the latter two. */
inline tkf_status ask(tkf_session* session, const std::string& how, const driver::Memory* on_device,
                      const std::vector<std::uint8_t>& pixels, std::size_t count, std::size_t classes, int device,
                      Floats& answer) {
  Floats logits(count * classes);
  tkf_status status = TKF_OK;
  if (how == "submit") {
    status = tkf_submit(session, pixels.data(), count, logits.data());
    if (status == TKF_OK) status = tkf_wait(session);
  } else if (how == "run") {
    status = tkf_run(session, pixels.data(), count, logits.data());
  } else {
    const driver::Stream own(device);
    const driver::Memory out(device, logits.data(), logits.size() * sizeof(float));
    void* stream = how == "stream" ? own.get() : nullptr;
    status = tkf_run_device(session, on_device->get(), count, static_cast<float*>(out.get()), stream);
    if (how == "stream") own.wait();
    out.read(logits.data());
  }
  if (status == TKF_OK) answer.insert(answer.end(), logits.begin(), logits.end());
  return status;
}

}  // namespace calls
