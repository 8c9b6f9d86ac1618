#include "cuda_driver.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>

namespace tkf {
namespace {

/* The first error that made the GPU context of this process unusable; success while there was none. One per process, as
 * the context is. */
std::atomic<cu::Result> lost_by{cu::success};

/* The process that has called cuInit; 0 while there is none. */
std::atomic<pid_t> initialised_in{0};

/* Errors after which the driver answers every call of the process with the same error, or the context is gone (cuda.h):
 * ECC and NVLink, contained faults, illegal address, time-out, destroyed context, assert, hardware stack, illegal
 * instruction, misaligned, address space, program counter, launch failure, tensor memory leak, MPS client terminated,
 * external device. */
bool is_sticky(cu::Result code) {
  switch (code) {
    case 214: case 220: case 226: case 700: case 702: case 709: case 710: case 714: case 715: case 716: case 717:
    case 718: case 719: case 721: case 810: case 911:
      return true;
    default:
      return false;
  }
}

const char* remedy(cu::Result code) {
  switch (code) {
    case 3: return "CUDA does not survive a fork: open the engine in each process, after the fork";
    case 34: return "the loaded libcuda is the toolkit's stub: put the driver's own first on the library path";
    case 46: return "another process holds the GPU alone, or it is in a bad state: see nvidia-smi";
    case cu::error_no_device:
      return "no GPU is visible: see nvidia-smi and CUDA_VISIBLE_DEVICES, or open an engine for the CPU";
    case 200: return "the engine file's machine code is damaged: build it again";
    case 209: return "the engine file lacks machine code for this GPU: build it again";
    case 802: return "the machine's fabric is not ready: start nvidia-fabricmanager";
    case 803: return "the driver's kernel module and library differ: restart the machine";
    case 804:
      return "the driver library does not support this GPU: remove the CUDA compatibility package from the library "
             "path";
    case 906:
      return "a stream of this process is being captured: use another stream than the default, or end the capture "
             "first";
    default: return "see nvidia-smi and the system log, or update the driver";
  }
}

/* CUDA's name and text of an error, as far as the driver tells. */
std::string described(const cu::Driver& driver, cu::Result code) {
  const char *name = nullptr, *text = nullptr;
  if (driver.cuGetErrorName == nullptr || driver.cuGetErrorName(code, &name) != cu::success || name == nullptr)
    return "error " + std::to_string(code);
  if (driver.cuGetErrorString == nullptr || driver.cuGetErrorString(code, &text) != cu::success || text == nullptr)
    return name;
  return std::string(name) + " (" + text + ")";
}

Error lost(const cu::Driver& driver) {
  return Error(TKF_ERROR_LOST, "the GPU driver reports " + described(driver, lost_by.load()) +
                                   ": the GPU context of this process is unusable from now on; start a new process. If "
                                   "it happens again, run the program under compute-sanitizer");
}

[[noreturn]] void fail(const cu::Driver& driver, cu::Result code) {
  note(code);
  if (is_sticky(code)) throw lost(driver);
  const std::string found = "the GPU driver reports " + described(driver, code);
  if (code == cu::error_out_of_memory)
    throw Error(TKF_ERROR_MEMORY, found + "; free GPU memory, or build an engine with a smaller --max-batch");
  const bool no_gpu = code == cu::error_no_device || code == cu::error_invalid_device;
  throw Error(no_gpu ? TKF_ERROR_DEVICE : TKF_ERROR_BACKEND, found + "; " + remedy(code));
}

Error no_driver(const char* why) {
  return Error(TKF_ERROR_BACKEND, std::string("no NVIDIA driver answers here (") + (why != nullptr ? why : "dlopen") +
                                      "); install the GPU's driver, or open an engine for the CPU");
}

Error incomplete(const char* symbol) {
  return Error(TKF_ERROR_BACKEND, std::string("libcuda.so.1 has no ") + symbol +
                                      "; expected it of every driver for CUDA " + cuda_version(least_cuda_driver) +
                                      " or later; reinstall the GPU's driver");
}

template <class Function>
Function symbol_of(void* library, const char* name) {
  auto* found = reinterpret_cast<Function>(dlsym(library, name));
  if (found == nullptr) throw incomplete(name);
  return found;
}

/* The driver's own look-up gives the entry point of a stated version: a name alone stands for its first version. */
class Lookup {
 public:
  explicit Lookup(void* library) : find_(symbol_of<Find>(library, "cuGetProcAddress_v2")) {}

  template <class Function>
  void operator()(Function& entry, const char* name, int version) const {
    void* found = nullptr;
    const cu::Result result = find_(name, &found, version, cu::get_proc_address_legacy, nullptr);
    if (result != cu::success || found == nullptr) throw incomplete(name);
    entry = reinterpret_cast<Function>(found);
  }

 private:
  using Find = cu::Result (*)(const char*, void**, int, std::uint64_t, int*);
  Find find_;
};

cu::Driver loaded_driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw no_driver(dlerror());
  cu::Driver driver;
  const auto get_version = symbol_of<cu::Result (*)(int*)>(library, "cuDriverGetVersion");
  if (const cu::Result result = get_version(&driver.version); result != cu::success) fail(driver, result);
  // Before anything that an older one lacks.
  if (driver.version < least_cuda_driver)
    throw Error(TKF_ERROR_BACKEND, "the GPU driver is for CUDA " + cuda_version(driver.version) +
                                       ", and this engine needs " + cuda_version(least_cuda_driver) +
                                       " or later; update the driver");
  const Lookup find(library);
  // With the first CUDA version that has the declared signature.
  find(driver.cuInit, "cuInit", 2000);
  find(driver.cuGetErrorName, "cuGetErrorName", 6000);
  find(driver.cuGetErrorString, "cuGetErrorString", 6000);
  find(driver.cuDeviceGetCount, "cuDeviceGetCount", 2000);
  find(driver.cuDeviceGet, "cuDeviceGet", 2000);
  find(driver.cuDeviceGetName, "cuDeviceGetName", 2000);
  find(driver.cuDeviceGetAttribute, "cuDeviceGetAttribute", 2000);
  find(driver.cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", 7000);
  find(driver.cuDevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease", 11000);
  find(driver.cuCtxPushCurrent, "cuCtxPushCurrent", 4000);
  find(driver.cuCtxPopCurrent, "cuCtxPopCurrent", 4000);
  find(driver.cuMemGetInfo, "cuMemGetInfo", 3020);
  find(driver.cuMemAlloc, "cuMemAlloc", 3020);
  find(driver.cuMemFree, "cuMemFree", 3020);
  find(driver.cuMemHostAlloc, "cuMemHostAlloc", 2020);
  find(driver.cuMemFreeHost, "cuMemFreeHost", 2000);
  find(driver.cuMemcpyHtoDAsync, "cuMemcpyHtoDAsync", 3020);
  find(driver.cuMemcpyDtoHAsync, "cuMemcpyDtoHAsync", 3020);
  find(driver.cuMemsetD8Async, "cuMemsetD8Async", 3020);
  find(driver.cuPointerGetAttribute, "cuPointerGetAttribute", 4000);
  find(driver.cuStreamCreate, "cuStreamCreate", 2000);
  find(driver.cuStreamDestroy, "cuStreamDestroy", 4000);
  find(driver.cuStreamSynchronize, "cuStreamSynchronize", 2000);
  find(driver.cuStreamIsCapturing, "cuStreamIsCapturing", 10000);
  find(driver.cuStreamWaitEvent, "cuStreamWaitEvent", 3020);
  find(driver.cuStreamBeginCapture, "cuStreamBeginCapture", 10010);
  find(driver.cuStreamEndCapture, "cuStreamEndCapture", 10000);
  find(driver.cuStreamGetCaptureInfo, "cuStreamGetCaptureInfo", 12030);
  find(driver.cuEventCreate, "cuEventCreate", 2000);
  find(driver.cuEventDestroy, "cuEventDestroy", 4000);
  find(driver.cuEventRecord, "cuEventRecord", 2000);
  find(driver.cuEventSynchronize, "cuEventSynchronize", 2000);
  find(driver.cuModuleLoadData, "cuModuleLoadData", 2000);
  find(driver.cuModuleUnload, "cuModuleUnload", 2000);
  find(driver.cuModuleGetFunction, "cuModuleGetFunction", 2000);
  find(driver.cuFuncGetAttribute, "cuFuncGetAttribute", 2020);
  find(driver.cuFuncSetAttribute, "cuFuncSetAttribute", 9000);
  find(driver.cuLaunchKernelEx, "cuLaunchKernelEx", 11060);
  find(driver.cuGraphInstantiateWithFlags, "cuGraphInstantiateWithFlags", 11040);
  find(driver.cuGraphDestroy, "cuGraphDestroy", 10000);
  find(driver.cuGraphExecDestroy, "cuGraphExecDestroy", 10000);
  find(driver.cuGraphExecKernelNodeSetParams, "cuGraphExecKernelNodeSetParams", 12000);
  find(driver.cuGraphLaunch, "cuGraphLaunch", 10000);
  return driver;
}

}  // namespace

const cu::Driver& cuda_driver() {
  // If it throws, the next call tries again.
  static const cu::Driver driver = loaded_driver();
  return driver;
}

const cu::Driver& initialised_cuda_driver() {
  check_not_lost();
  const cu::Driver& driver = cuda_driver();
  const pid_t here = getpid();
  if (const pid_t parent = initialised_in.load(); parent != 0 && parent != here) throw forked(parent);
  check(driver.cuInit(0));
  initialised_in.store(here);
  return driver;
}

void check(cu::Result result) {
  if (result != cu::success) fail(cuda_driver(), result);
}

void note(cu::Result result) noexcept {
  cu::Result none = cu::success;
  if (is_sticky(result)) lost_by.compare_exchange_strong(none, result);
}

bool context_lost() noexcept { return lost_by.load() != cu::success; }

void check_not_lost() {
  if (context_lost()) throw lost(cuda_driver());
}

Error forked(int parent) {
  return Error(TKF_ERROR_LOST,
               "CUDA was in use in process " + std::to_string(parent) + ", before a fork; " + remedy(3));
}

std::string cuda_version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

}  // namespace tkf
