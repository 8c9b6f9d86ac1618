#include "backend.h"

#include <cstring>

#include "error.h"

namespace tkf {

const float* BackendSession::run(const std::uint8_t* rgb, std::size_t count, std::size_t image_bytes) {
  std::uint8_t* own = pixels(count);
  if (rgb != own) std::memcpy(own, rgb, count * image_bytes);
  begin(count);
  return end();
}

void BackendSession::run_device(const void*, std::size_t, float*, void*) {
  throw Error(TKF_ERROR_ARGUMENT,
              "this engine runs on the CPU, and takes images from host memory only; call tkf_run, or build an engine for "
              "a GPU: python -m tkfnet_engine.build --fp16 --device cuda --backend fused");
}

}  // namespace tkf
