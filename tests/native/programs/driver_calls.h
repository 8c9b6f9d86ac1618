/* What a program does beside the library with the GPU driver, or with the stand-in for it (tests/backends/fake_cuda.c).
 * Its failures end the program. */
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace driver {

/* NULL where the library or the symbol is not there. */
inline void* symbol(const char* name) {
  static void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  return library != nullptr ? dlsym(library, name) : nullptr;
}

/* While it lives, the stand-in neither counts nor fails what this thread calls. */
class Aside {
 public:
  Aside() { set(1); }
  Aside(const Aside&) = delete;
  Aside& operator=(const Aside&) = delete;
  ~Aside() { set(0); }

 private:
  static void set(int on) {
    if (void* found = symbol("fake_cuda_aside")) reinterpret_cast<void (*)(int)>(found)(on);
  }
};

/* Calls an entry point of the version that CUDA 12.3 has. */
template <class... Arguments>
void call(const char* name, Arguments... arguments) {
  using Find = int (*)(const char*, void**, int, std::uint64_t, int*);
  using Function = int (*)(Arguments...);
  const Aside aside;
  void* find = symbol("cuGetProcAddress_v2");
  void* found = nullptr;
  int status = find != nullptr ? reinterpret_cast<Find>(find)(name, &found, 12030, 1, nullptr) : -1;
  if (status == 0) status = reinterpret_cast<Function>(found)(arguments...);
  if (status != 0) {
    std::fprintf(stderr, "%s: error %d\n", name, status);
    std::exit(3);
  }
}

/* The primary context of a GPU, current while this lives. */
class Current {
 public:
  explicit Current(int device) : device_(device) {
    void* context = nullptr;
    call("cuInit", 0u);
    call("cuDevicePrimaryCtxRetain", &context, device);
    call("cuCtxPushCurrent", context);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  ~Current() {
    void* popped = nullptr;
    call("cuCtxPopCurrent", &popped);
    call("cuDevicePrimaryCtxRelease", device_);
  }

 private:
  int device_;
};

/* Device memory, filled from the host, and a stream; `memory` and `stream` outlive the context's being current. */
class Memory {
 public:
  Memory(int device, const void* content, std::size_t size) : device_(device), size_(size) {
    const Current current(device);
    call("cuMemAlloc", &address_, size);
    write(content);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    const Current current(device_);
    call("cuMemFree", address_);
  }

  void write(const void* content) {
    const Current current(device_);
    call("cuMemcpyHtoDAsync", address_, content, size_, default_stream());
    call("cuStreamSynchronize", default_stream());
  }
  void read(void* content) const {
    const Current current(device_);
    call("cuMemcpyDtoHAsync", content, address_, size_, default_stream());
    call("cuStreamSynchronize", default_stream());
  }
  void* get() const { return reinterpret_cast<void*>(address_); }

 private:
  static void* default_stream() { return nullptr; }

  int device_;
  std::size_t size_;
  std::uint64_t address_ = 0;
};

class Stream {
 public:
  explicit Stream(int device) : device_(device) {
    const Current current(device);
    call("cuStreamCreate", &stream_, 1u);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    const Current current(device_);
    call("cuStreamDestroy", stream_);
  }

  void wait() const {
    const Current current(device_);
    call("cuStreamSynchronize", stream_);
  }
  void* get() const { return stream_; }

 private:
  int device_;
  void* stream_ = nullptr;
};

}  // namespace driver
