/* Our declarations of the driver API against NVIDIA's own header: this compiles only if they agree. Not run. */
#include <cuda.h>

#include <cstddef>
#include <type_traits>

#include "cuda_driver.h"

namespace cu = tkf::cu;

static_assert(CUDA_VERSION >= 12030);

template <class Ours, class Theirs>
constexpr bool alike = sizeof(Ours) == sizeof(Theirs) && alignof(Ours) == alignof(Theirs);

static_assert(alike<cu::Result, CUresult> && alike<cu::Device, CUdevice> && alike<cu::DevicePointer, CUdeviceptr>);
static_assert(alike<cu::LaunchAttribute, CUlaunchAttribute> && alike<cu::LaunchConfig, CUlaunchConfig>);
static_assert(alike<cu::KernelNodeParams, CUDA_KERNEL_NODE_PARAMS>);

static_assert(offsetof(cu::LaunchAttribute, id) == offsetof(CUlaunchAttribute, id));
static_assert(offsetof(cu::LaunchAttribute, value) == offsetof(CUlaunchAttribute, value));
static_assert(offsetof(CUlaunchAttributeValue, programmaticStreamSerializationAllowed) == 0);
static_assert(alike<int, decltype(CUlaunchAttributeValue::programmaticStreamSerializationAllowed)>);

static_assert(offsetof(cu::LaunchConfig, grid) == offsetof(CUlaunchConfig, gridDimX));
static_assert(offsetof(cu::LaunchConfig, grid) + 8 == offsetof(CUlaunchConfig, gridDimZ));
static_assert(offsetof(cu::LaunchConfig, block) == offsetof(CUlaunchConfig, blockDimX));
static_assert(offsetof(cu::LaunchConfig, block) + 8 == offsetof(CUlaunchConfig, blockDimZ));
static_assert(offsetof(cu::LaunchConfig, shared_bytes) == offsetof(CUlaunchConfig, sharedMemBytes));
static_assert(offsetof(cu::LaunchConfig, stream) == offsetof(CUlaunchConfig, hStream));
static_assert(offsetof(cu::LaunchConfig, attributes) == offsetof(CUlaunchConfig, attrs));
static_assert(offsetof(cu::LaunchConfig, attribute_count) == offsetof(CUlaunchConfig, numAttrs));

static_assert(offsetof(cu::KernelNodeParams, function) == offsetof(CUDA_KERNEL_NODE_PARAMS, func));
static_assert(offsetof(cu::KernelNodeParams, grid) == offsetof(CUDA_KERNEL_NODE_PARAMS, gridDimX));
static_assert(offsetof(cu::KernelNodeParams, block) == offsetof(CUDA_KERNEL_NODE_PARAMS, blockDimX));
static_assert(offsetof(cu::KernelNodeParams, shared_bytes) == offsetof(CUDA_KERNEL_NODE_PARAMS, sharedMemBytes));
static_assert(offsetof(cu::KernelNodeParams, parameters) == offsetof(CUDA_KERNEL_NODE_PARAMS, kernelParams));
static_assert(offsetof(cu::KernelNodeParams, extra) == offsetof(CUDA_KERNEL_NODE_PARAMS, extra));
static_assert(offsetof(cu::KernelNodeParams, kernel) == offsetof(CUDA_KERNEL_NODE_PARAMS, kern));
static_assert(offsetof(cu::KernelNodeParams, context) == offsetof(CUDA_KERNEL_NODE_PARAMS, ctx));

static_assert(cu::success == CUDA_SUCCESS && cu::error_invalid_value == CUDA_ERROR_INVALID_VALUE);
static_assert(cu::error_out_of_memory == CUDA_ERROR_OUT_OF_MEMORY);
static_assert(cu::error_no_device == CUDA_ERROR_NO_DEVICE && cu::error_invalid_device == CUDA_ERROR_INVALID_DEVICE);
static_assert(cu::get_proc_address_legacy == CU_GET_PROC_ADDRESS_LEGACY_STREAM);
static_assert(cu::attribute_major == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(cu::attribute_minor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(cu::attribute_shared_memory == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
static_assert(cu::function_max_threads == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
static_assert(cu::function_shared_memory == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
static_assert(cu::pointer_context == CU_POINTER_ATTRIBUTE_CONTEXT);
static_assert(cu::pointer_memory_type == CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
static_assert(cu::pointer_device == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
static_assert(cu::memory_type_device == CU_MEMORYTYPE_DEVICE);
static_assert(cu::stream_non_blocking == CU_STREAM_NON_BLOCKING);
static_assert(cu::event_disable_timing == CU_EVENT_DISABLE_TIMING);
static_assert(cu::capture_thread_local == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
static_assert(cu::capture_status_none == CU_STREAM_CAPTURE_STATUS_NONE);
static_assert(cu::attribute_dependent_launch == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);

/* The errors that have a meaning of their own in cuda_driver.cpp. */
static_assert(CUDA_ERROR_NOT_INITIALIZED == 3 && CUDA_ERROR_STUB_LIBRARY == 34);
static_assert(CUDA_ERROR_DEVICE_UNAVAILABLE == 46 && CUDA_ERROR_INVALID_IMAGE == 200);
static_assert(CUDA_ERROR_NO_BINARY_FOR_GPU == 209 && CUDA_ERROR_SYSTEM_NOT_READY == 802);
static_assert(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH == 803 && CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE == 804);
static_assert(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT == 906);

/* Each entry point of ours may be called with what NVIDIA's may be called with: the same count of parameters, each of
 * the same size and kind, pointer or number. */
template <class Ours, class Theirs>
constexpr bool parameter_alike = sizeof(Ours) == sizeof(Theirs) && std::is_pointer_v<Ours> == std::is_pointer_v<Theirs>;

template <class Ours, class Theirs>
constexpr bool same_call = false;
template <class... Ours, class... Theirs>
constexpr bool same_call<cu::Result (*)(Ours...), CUresult(Theirs...)> =
    sizeof...(Ours) == sizeof...(Theirs) && (parameter_alike<Ours, Theirs> && ...);

#define SAME(name) static_assert(same_call<decltype(cu::Driver::name), decltype(::name)>, #name)
SAME(cuCtxPopCurrent);
SAME(cuCtxPushCurrent);
SAME(cuDeviceGet);
SAME(cuDeviceGetAttribute);
SAME(cuDeviceGetCount);
SAME(cuDeviceGetName);
SAME(cuDevicePrimaryCtxRelease);
SAME(cuDevicePrimaryCtxRetain);
SAME(cuEventCreate);
SAME(cuEventDestroy);
SAME(cuEventRecord);
SAME(cuEventSynchronize);
SAME(cuFuncGetAttribute);
SAME(cuFuncSetAttribute);
SAME(cuGetErrorName);
SAME(cuGetErrorString);
SAME(cuGraphDestroy);
SAME(cuGraphExecDestroy);
SAME(cuGraphExecKernelNodeSetParams);
SAME(cuGraphInstantiateWithFlags);
SAME(cuGraphLaunch);
SAME(cuInit);
SAME(cuLaunchKernelEx);
SAME(cuMemAlloc);
SAME(cuMemFree);
SAME(cuMemFreeHost);
SAME(cuMemGetInfo);
SAME(cuMemHostAlloc);
SAME(cuMemcpyDtoHAsync);
SAME(cuMemcpyHtoDAsync);
SAME(cuMemsetD8Async);
SAME(cuModuleGetFunction);
SAME(cuModuleLoadData);
SAME(cuModuleUnload);
SAME(cuPointerGetAttribute);
SAME(cuStreamBeginCapture);
SAME(cuStreamCreate);
SAME(cuStreamDestroy);
SAME(cuStreamEndCapture);
SAME(cuStreamGetCaptureInfo);
SAME(cuStreamIsCapturing);
SAME(cuStreamSynchronize);
SAME(cuStreamWaitEvent);
