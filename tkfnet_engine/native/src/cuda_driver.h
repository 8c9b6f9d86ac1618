/* NVIDIA's driver API, found at run time: nothing of CUDA is needed to build or to link.
 *
 * Only what is used here is declared, after cuda.h of CUDA 12.3 to 13. The tests compare every size, offset and number
 * with that header where it is installed (tests/native/programs/cuda_layouts.cpp). */
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "error.h"

namespace tkf {
namespace cu {

using Result = int;                        // CUresult
using Device = int;                        // CUdevice
using DevicePointer = unsigned long long;  // CUdeviceptr
using Context = struct ContextHandle*;     // CUcontext, and so on
using Stream = struct StreamHandle*;
using Event = struct EventHandle*;
using Module = struct ModuleHandle*;
using Function = struct FunctionHandle*;
using Graph = struct GraphHandle*;
using GraphNode = struct GraphNodeHandle*;
using GraphExec = struct GraphExecHandle*;

constexpr Result success = 0;                  // CUDA_SUCCESS
constexpr Result error_invalid_value = 1;       // CUDA_ERROR_INVALID_VALUE
constexpr Result error_out_of_memory = 2;      // CUDA_ERROR_OUT_OF_MEMORY
constexpr Result error_no_device = 100;        // CUDA_ERROR_NO_DEVICE
constexpr Result error_invalid_device = 101;   // CUDA_ERROR_INVALID_DEVICE
constexpr int get_proc_address_legacy = 1;     // CU_GET_PROC_ADDRESS_LEGACY_STREAM
constexpr int attribute_major = 75;            // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
constexpr int attribute_minor = 76;            // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
constexpr int attribute_shared_memory = 97;    // CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
constexpr int function_max_threads = 0;        // CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
constexpr int function_shared_memory = 8;      // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int pointer_context = 1;             // CU_POINTER_ATTRIBUTE_CONTEXT
constexpr int pointer_memory_type = 2;         // CU_POINTER_ATTRIBUTE_MEMORY_TYPE
constexpr int pointer_device = 9;              // CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
constexpr unsigned memory_type_device = 2;     // CU_MEMORYTYPE_DEVICE
constexpr unsigned stream_non_blocking = 1;    // CU_STREAM_NON_BLOCKING
constexpr unsigned event_disable_timing = 2;   // CU_EVENT_DISABLE_TIMING
constexpr int capture_thread_local = 1;        // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
constexpr int capture_status_none = 0;         // CU_STREAM_CAPTURE_STATUS_NONE
constexpr int attribute_dependent_launch = 6;  // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
constexpr std::uintptr_t stream_legacy = 1;    // CU_STREAM_LEGACY

struct LaunchAttribute {  // CUlaunchAttribute
  int id;
  int padding;
  union {
    std::uint64_t whole[8];
    int dependent_launch_allowed;  // programmaticStreamSerializationAllowed
  } value;
};

struct LaunchConfig {  // CUlaunchConfig
  unsigned grid[3], block[3];
  unsigned shared_bytes;
  Stream stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};

struct KernelNodeParams {  // CUDA_KERNEL_NODE_PARAMS_v2
  Function function;
  unsigned grid[3], block[3];
  unsigned shared_bytes;
  void** parameters;
  void** extra;
  void* kernel;
  Context context;
};

/* The entry points, by their own names, and the driver's version: 13000 is 13.0. */
struct Driver {
  int version = 0;
  Result (*cuInit)(unsigned) = nullptr;
  Result (*cuGetErrorName)(Result, const char**) = nullptr;
  Result (*cuGetErrorString)(Result, const char**) = nullptr;
  Result (*cuDeviceGetCount)(int*) = nullptr;
  Result (*cuDeviceGet)(Device*, int ordinal) = nullptr;
  Result (*cuDeviceGetName)(char*, int size, Device) = nullptr;
  Result (*cuDeviceGetAttribute)(int*, int attribute, Device) = nullptr;
  Result (*cuDevicePrimaryCtxRetain)(Context*, Device) = nullptr;
  Result (*cuDevicePrimaryCtxRelease)(Device) = nullptr;
  Result (*cuCtxPushCurrent)(Context) = nullptr;
  Result (*cuCtxPopCurrent)(Context*) = nullptr;
  Result (*cuMemGetInfo)(std::size_t* free, std::size_t* total) = nullptr;
  Result (*cuMemAlloc)(DevicePointer*, std::size_t) = nullptr;
  Result (*cuMemFree)(DevicePointer) = nullptr;
  Result (*cuMemHostAlloc)(void**, std::size_t, unsigned flags) = nullptr;
  Result (*cuMemFreeHost)(void*) = nullptr;
  Result (*cuMemcpyHtoDAsync)(DevicePointer, const void*, std::size_t, Stream) = nullptr;
  Result (*cuMemcpyDtoHAsync)(void*, DevicePointer, std::size_t, Stream) = nullptr;
  Result (*cuMemsetD8Async)(DevicePointer, unsigned char, std::size_t, Stream) = nullptr;
  Result (*cuPointerGetAttribute)(void*, int attribute, DevicePointer) = nullptr;
  Result (*cuStreamCreate)(Stream*, unsigned flags) = nullptr;
  Result (*cuStreamDestroy)(Stream) = nullptr;
  Result (*cuStreamSynchronize)(Stream) = nullptr;
  Result (*cuStreamIsCapturing)(Stream, int* status) = nullptr;
  Result (*cuStreamWaitEvent)(Stream, Event, unsigned flags) = nullptr;
  Result (*cuStreamBeginCapture)(Stream, int mode) = nullptr;
  Result (*cuStreamEndCapture)(Stream, Graph*) = nullptr;
  Result (*cuStreamGetCaptureInfo)(Stream, int* status, std::uint64_t* id, Graph*, const GraphNode** last,
                                   const void** edges, std::size_t* count) = nullptr;
  Result (*cuEventCreate)(Event*, unsigned flags) = nullptr;
  Result (*cuEventDestroy)(Event) = nullptr;
  Result (*cuEventRecord)(Event, Stream) = nullptr;
  Result (*cuEventSynchronize)(Event) = nullptr;
  Result (*cuModuleLoadData)(Module*, const void*) = nullptr;
  Result (*cuModuleUnload)(Module) = nullptr;
  Result (*cuModuleGetFunction)(Function*, Module, const char*) = nullptr;
  Result (*cuFuncGetAttribute)(int*, int attribute, Function) = nullptr;
  Result (*cuFuncSetAttribute)(Function, int attribute, int value) = nullptr;
  Result (*cuLaunchKernelEx)(const LaunchConfig*, Function, void** parameters, void** extra) = nullptr;
  Result (*cuGraphInstantiateWithFlags)(GraphExec*, Graph, unsigned long long flags) = nullptr;
  Result (*cuGraphDestroy)(Graph) = nullptr;
  Result (*cuGraphExecDestroy)(GraphExec) = nullptr;
  Result (*cuGraphExecKernelNodeSetParams)(GraphExec, GraphNode, const KernelNodeParams*) = nullptr;
  Result (*cuGraphLaunch)(GraphExec, Stream) = nullptr;
};

}  // namespace cu

/* The driver of this machine, loaded on the first call and never unloaded. `Error` TKF_ERROR_BACKEND where there is
 * none, or one that is too old. Safe from any thread, as all here. */
const cu::Driver& cuda_driver();

/* The same, after cuInit. `Error` TKF_ERROR_LOST in a process whose GPU context is lost. */
const cu::Driver& initialised_cuda_driver();

/* Returns where `result` is success. Else `Error`: TKF_ERROR_MEMORY, _DEVICE, _BACKEND or, for an error after which the
 * GPU context is unusable, _LOST; from then on the context counts as lost. */
void check(cu::Result result);

/* Only notes whether the context is lost by it. For destructors. */
void note(cu::Result result) noexcept;

/* Whether an error has made the GPU context of this process unusable. */
bool context_lost() noexcept;

/* `Error` TKF_ERROR_LOST if so. */
void check_not_lost();

/* What is thrown in the child of a fork; parent: of the process that initialised CUDA, or opened the engine. */
Error forked(int parent);

/* "13.0" of 13000. */
std::string cuda_version(int number);

/* The least driver (12.3): the first whose graphs know launches that begin before their predecessor has ended. */
constexpr int least_cuda_driver = 12030;

}  // namespace tkf
