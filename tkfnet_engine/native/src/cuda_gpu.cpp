#include "cuda_gpu.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace tkf {
namespace {

/* What every GPU gives a block without being asked. */
constexpr unsigned shared_for_all = 48 * 1024;
/* Of the pointers that kernels are compiled for: their widest access. */
constexpr std::uintptr_t address_alignment = 16;

std::string mib(std::uint64_t nbytes) {
  char text[48];
  std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(nbytes) / (1 << 20));
  return text;
}

const char* const fewer = "; free some, or build an engine with a smaller --max-batch";

int checked_ordinal(const cu::Driver& api, int ordinal) {
  int count = 0;
  check(api.cuDeviceGetCount(&count));
  if (count < 1) check(cu::error_no_device);
  if (ordinal >= 0 && ordinal < count) return ordinal;
  throw Error(TKF_ERROR_DEVICE, "device: got GPU " + std::to_string(ordinal) + ", and this process sees " +
                                    std::to_string(count) + "; expected 0 to " + std::to_string(count - 1) +
                                    "; CUDA_VISIBLE_DEVICES chooses what is counted");
}

}  // namespace

Gpu::Gpu(int number) : api(initialised_cuda_driver()), ordinal(checked_ordinal(api, number)), process_(getpid()) {
  check(api.cuDeviceGet(&device_, ordinal));
  char text[129] = "";
  check(api.cuDeviceGetName(text, sizeof text - 1, device_));
  name = text;
  major = attribute(cu::attribute_major);
  minor = attribute(cu::attribute_minor);
  shared_limit_ = static_cast<unsigned>(std::max(0, attribute(cu::attribute_shared_memory)));
  check(api.cuDevicePrimaryCtxRetain(&context_, device_));
}

Gpu::~Gpu() {
  if (getpid() == process_) api.cuDevicePrimaryCtxRelease(device_);
}

int Gpu::attribute(int which) const {
  int value = 0;
  check(api.cuDeviceGetAttribute(&value, which, device_));
  return value;
}

bool Gpu::usable() const noexcept { return !context_lost() && getpid() == process_; }

Gpu::Current::Current(const Gpu& gpu) : api_(gpu.api) {
  check_not_lost();
  if (getpid() != gpu.process_) throw forked(gpu.process_);
  check(api_.cuCtxPushCurrent(gpu.context_));
}

Gpu::Current::~Current() {
  cu::Context popped = nullptr;
  api_.cuCtxPopCurrent(&popped);
}

/* --- memory ----------------------------------------------------------------------------------------------- */

void Gpu::check_free(std::uint64_t nbytes, const std::string& purpose) const {
  std::size_t free = 0, total = 0;
  check(api.cuMemGetInfo(&free, &total));
  if (nbytes > free)
    throw Error(TKF_ERROR_MEMORY, "not enough GPU memory: " + purpose + " needs " + mib(nbytes) + ", and " + name +
                                      " has " + mib(free) + " of " + mib(total) + " free" + fewer);
}

DeviceMemory Gpu::allocate(std::uint64_t nbytes, const std::string& purpose) const {
  cu::DevicePointer address = 0;
  const cu::Result result = api.cuMemAlloc(&address, std::max<std::uint64_t>(nbytes, 1));
  if (result == cu::error_out_of_memory) {
    check_free(nbytes, purpose);
    throw Error(TKF_ERROR_MEMORY, "not enough GPU memory: " + purpose + " needs " + mib(nbytes) +
                                      " in one piece, which " + name + " does not have" + fewer);
  }
  check(result);
  return {*this, api.cuMemFree, address};
}

DeviceMemory Gpu::upload(const void* data, std::size_t nbytes, const std::string& purpose) const {
  DeviceMemory memory = allocate(nbytes, purpose);
  // On a stream of its own: it waits for nobody else's work.
  const Owned<cu::Stream> own = stream();
  check(api.cuMemcpyHtoDAsync(memory.get(), data, nbytes, own.get()));
  check(api.cuStreamSynchronize(own.get()));
  return memory;
}

PinnedMemory Gpu::pinned(std::uint64_t nbytes) const {
  void* address = nullptr;
  const cu::Result result = api.cuMemHostAlloc(&address, nbytes, 0);
  if (result == cu::error_out_of_memory)
    throw Error(TKF_ERROR_MEMORY, "not enough host memory: " + mib(nbytes) + " cannot be page-locked for the copy to " +
                                      name + "; free some, or run smaller batches");
  check(result);
  return {*this, api.cuMemFreeHost, address};
}

void Gpu::check_pointer(const void* address, const char* argument) const {
  const auto place = reinterpret_cast<std::uintptr_t>(address);
  const std::string got = std::string(argument) + ": got ";
  const std::string expected = "; expected it on GPU " + std::to_string(ordinal) + ", " + name;
  unsigned kind = 0;
  const cu::Result known = api.cuPointerGetAttribute(&kind, cu::pointer_memory_type, place);
  // That is how the driver says that it knows nothing of an address, as of ordinary host memory's.
  if (known != cu::error_invalid_value) check(known);
  if (known != cu::success || kind != cu::memory_type_device)
    throw Error(TKF_ERROR_ARGUMENT, got + "memory that is not a GPU's" + expected + "; copy it there, or call tkf_run");
  int where = 0;
  check(api.cuPointerGetAttribute(&where, cu::pointer_device, place));
  if (where != ordinal)
    throw Error(TKF_ERROR_ARGUMENT, got + "memory of GPU " + std::to_string(where) + expected + "; copy it there");
  // Memory of a pool belongs to none.
  cu::Context owner = nullptr;
  const cu::Result owned = api.cuPointerGetAttribute(&owner, cu::pointer_context, place);
  if (owned != cu::error_invalid_value) check(owned);
  if (owned == cu::success && owner != nullptr && owner != context_)
    throw Error(TKF_ERROR_ARGUMENT, got + "memory of another CUDA context than the device's primary one; expected the "
                                          "one that libraries share; get it with cuDevicePrimaryCtxRetain");
  if (place % address_alignment != 0)
    throw Error(TKF_ERROR_ARGUMENT, got + "an address that is no multiple of " + std::to_string(address_alignment) +
                                        " bytes; expected one, as the kernels need it; copy it into memory of its own");
}

/* --- order, machine code ------------------------------------------------------------------------------------ */

Owned<cu::Stream> Gpu::stream() const {
  cu::Stream made = nullptr;
  check(api.cuStreamCreate(&made, cu::stream_non_blocking));
  return {*this, api.cuStreamDestroy, made};
}

Owned<cu::Event> Gpu::event() const {
  cu::Event made = nullptr;
  check(api.cuEventCreate(&made, cu::event_disable_timing));
  return {*this, api.cuEventDestroy, made};
}

Kernel Gpu::kernel(const void* code, const std::string& entry, unsigned shared_bytes, unsigned threads) const {
  if (shared_bytes > shared_limit_)
    throw Error(TKF_ERROR_BACKEND, entry + " needs " + std::to_string(shared_bytes) + " bytes of shared memory, and " +
                                       name + " allows " + std::to_string(shared_limit_) +
                                       "; build the engine for this GPU");
  cu::Module loaded = nullptr;
  check(api.cuModuleLoadData(&loaded, code));
  Kernel kernel{{*this, api.cuModuleUnload, loaded}, nullptr, shared_bytes};
  check(api.cuModuleGetFunction(&kernel.function, loaded, entry.c_str()));
  // Reading an attribute also makes a lazily loading driver load the code now, not during a capture.
  int limit = 0;
  check(api.cuFuncGetAttribute(&limit, cu::function_max_threads, kernel.function));
  if (limit < 0 || threads > static_cast<unsigned>(limit))
    throw Error(TKF_ERROR_BACKEND, entry + " runs in blocks of " + std::to_string(threads) +
                                       " threads, and its registers allow " + std::to_string(limit) + " on " + name +
                                       "; build the engine again");
  if (shared_bytes > shared_for_all)
    check(api.cuFuncSetAttribute(kernel.function, cu::function_shared_memory, static_cast<int>(shared_bytes)));
  return kernel;
}

}  // namespace tkf
