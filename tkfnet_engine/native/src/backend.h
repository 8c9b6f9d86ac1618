/* What an engine runs on. api.cpp knows these two classes and no backend; a backend knows nothing of the C API. */
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "engine_file.h"
#include "facts.h"
#include "tkfnet.h"

namespace tkf {

/* What one request at a time needs. Never called by two threads at once; api.cpp sees to that. */
class BackendSession {
 public:
  virtual ~BackendSession() = default; /* waits for what `begin` began */

  /* Where the images of the next request go: room for `count`, from 1 to max_batch, uint8 [count, S, S, 3]. Valid until
   * the request has ended. Nothing is in flight when this is called. */
  virtual std::uint8_t* pixels(std::size_t count) = 0;

  /* Begins a request of the first `count` images of `pixels(count)`. Returns once it is queued. */
  virtual void begin(std::size_t count) = 0;

  /* Waits for it, and gives float32 logits [count, classes], valid until the next call. Also after a throw, nothing is
   * in flight any more. */
  virtual const float* end() = 0;

  /* The whole request, of the caller's images, or of `pixels(count)` itself. This one copies them there. */
  virtual const float* run(const std::uint8_t* rgb, std::size_t count, std::size_t image_bytes);

  /* As tkf_run_device. The arguments are not null, and count is from 1 to max_batch. This one refuses. */
  virtual void run_device(const void* pixels, std::size_t count, float* logits, void* stream);
};

/* Safe for many threads at once. Sessions keep alive what they need of it. */
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::unique_ptr<BackendSession> open_session() = 0;
  virtual const char* name() const = 0;           /* as tkf_backend */
  virtual std::string device_name() const = 0;    /* as tkf_device_name */
};

/* Each takes from `file` what it needs. They throw `Error`. */
std::unique_ptr<Backend> open_openvino(const Facts& facts, EngineFile& file, const tkf_engine_options& options);
std::unique_ptr<Backend> open_cuda(const Facts& facts, EngineFile& file, const tkf_engine_options& options);

}  // namespace tkf
