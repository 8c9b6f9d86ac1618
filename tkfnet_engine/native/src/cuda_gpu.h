/* One GPU and its primary context: memory, streams and machine code, each owned by a C++ object. */
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "cuda_driver.h"

namespace tkf {

/* What the driver gave, destroyed with this object. Quiet: where the context is gone, so is the thing. */
template <class Handle>
class Owned {
 public:
  using Destroy = cu::Result (*)(Handle);

  Owned() = default;
  Owned(const class Gpu& gpu, Destroy destroy, Handle handle) : gpu_(&gpu), destroy_(destroy), handle_(handle) {}
  Owned(Owned&& other) noexcept { swap(other); }
  Owned& operator=(Owned&& other) noexcept {
    Owned old(std::move(*this));
    swap(other);
    return *this;
  }
  ~Owned();

  Handle get() const { return handle_; }

 private:
  void swap(Owned& other) noexcept {
    std::swap(gpu_, other.gpu_);
    std::swap(destroy_, other.destroy_);
    std::swap(handle_, other.handle_);
  }

  const Gpu* gpu_ = nullptr;
  Destroy destroy_ = nullptr;
  Handle handle_{};
};

using DeviceMemory = Owned<cu::DevicePointer>;
using PinnedMemory = Owned<void*>;

/* Loaded machine code and its one kernel. shared_bytes: of dynamic shared memory per block. */
struct Kernel {
  Owned<cu::Module> module;
  cu::Function function = nullptr;
  unsigned shared_bytes = 0;
};

/* The primary context is what PyTorch and the CUDA runtime use as well; it is released with this object, which has to
 * outlive all that it gives. Safe for many threads. But for `current` and `quietly`, a method needs the context to be
 * current. */
class Gpu {
 public:
  /* ordinal: among the visible GPUs, from 0. `Error` TKF_ERROR_DEVICE for one that is not there. */
  explicit Gpu(int ordinal);
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;
  ~Gpu();

  /* Makes the context current for the calling thread while it lives. */
  class Current {
   public:
    explicit Current(const Gpu& gpu);
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;
    ~Current();

   private:
    const cu::Driver& api_;
  };

  /* `Error` TKF_ERROR_LOST if the context is lost, or this is the child of a fork. */
  Current current() const { return Current(*this); }

  /* Calls `call`, which gives a cu::Result, if the context is still there. For destructors. */
  template <class Call>
  void quietly(const Call& call) const noexcept {
    if (!usable() || api.cuCtxPushCurrent(context_) != cu::success) return;
    note(call());
    cu::Context popped = nullptr;
    api.cuCtxPopCurrent(&popped);
  }

  /* --- memory: purpose, for messages: "the network's weights". TKF_ERROR_MEMORY where it does not suffice --- */
  void check_free(std::uint64_t nbytes, const std::string& purpose) const;
  DeviceMemory allocate(std::uint64_t nbytes, const std::string& purpose) const;
  /* A copy of host memory, complete on return. */
  DeviceMemory upload(const void* data, std::size_t nbytes, const std::string& purpose) const;
  /* Page-locked host memory. */
  PinnedMemory pinned(std::uint64_t nbytes) const;

  /* `Error` TKF_ERROR_ARGUMENT unless kernels can use the caller's memory where it stands. name: "pixels". */
  void check_pointer(const void* address, const char* name) const;

  /* --- order --- */
  Owned<cu::Stream> stream() const; /* which does not wait for the default stream */
  Owned<cu::Event> event() const;

  /* A cubin's kernel, allowed `shared_bytes` of dynamic shared memory. `Error` TKF_ERROR_BACKEND where a block of
   * `threads`, or that much shared memory, does not fit this GPU. */
  Kernel kernel(const void* code, const std::string& entry, unsigned shared_bytes, unsigned threads) const;

  const cu::Driver& api;
  const int ordinal;
  std::string name; /* "NVIDIA H200" */
  int major = 0, minor = 0; /* compute capability */

 private:
  bool usable() const noexcept;
  int attribute(int which) const;

  const int process_;
  cu::Device device_ = 0;
  unsigned shared_limit_ = 0;
  cu::Context context_ = nullptr;
};

template <class Handle>
Owned<Handle>::~Owned() {
  if (destroy_ != nullptr) gpu_->quietly([this] { return destroy_(handle_); });
}

}  // namespace tkf
