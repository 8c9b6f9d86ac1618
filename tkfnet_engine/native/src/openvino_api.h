/* OpenVINO's C API, found at run time: the library itself links to nothing of it.
 *
 * Only what is used here is declared, after OpenVINO's own headers (openvino/c, 2025.2 to 2026.4). Its element types are
 * numbered otherwise from version to version, so no number of one stands here: they are asked for. */
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace tkf {

struct ov_core;
struct ov_model;
struct ov_compiled_model;
struct ov_infer_request;
struct ov_tensor;
struct ov_port;

struct ov_shape {
  std::int64_t rank;
  std::int64_t* dims;
};

/* The entry points, by their names without "ov_". A status of 0 is success. */
struct OpenVino {
  int (*core_create)(ov_core**);
  void (*core_free)(ov_core*);
  int (*core_get_property)(const ov_core*, const char* device, const char* key, char** value);
  int (*core_read_model_from_memory_buffer)(const ov_core*, const char*, std::size_t, const ov_tensor*, ov_model**);
  int (*core_compile_model)(const ov_core*, const ov_model*, const char* device, std::size_t, ov_compiled_model**, ...);
  void (*model_free)(ov_model*);
  int (*compiled_model_inputs_size)(const ov_compiled_model*, std::size_t*);
  int (*compiled_model_outputs_size)(const ov_compiled_model*, std::size_t*);
  int (*compiled_model_input)(const ov_compiled_model*, ov_port**);
  int (*compiled_model_get_property)(const ov_compiled_model*, const char* key, char** value);
  int (*compiled_model_create_infer_request)(const ov_compiled_model*, ov_infer_request**);
  void (*compiled_model_free)(ov_compiled_model*);
  int (*port_get_element_type)(const ov_port*, int*);
  void (*output_const_port_free)(ov_port*);
  int (*tensor_create_from_host_ptr)(int type, ov_shape, void*, ov_tensor**);
  int (*tensor_get_byte_size)(const ov_tensor*, std::size_t*);
  int (*tensor_data)(const ov_tensor*, void**);
  void (*tensor_free)(ov_tensor*);
  int (*infer_request_set_input_tensor)(ov_infer_request*, const ov_tensor*);
  int (*infer_request_get_output_tensor)(const ov_infer_request*, ov_tensor**);
  int (*infer_request_infer)(ov_infer_request*);
  int (*infer_request_start_async)(ov_infer_request*);
  int (*infer_request_wait)(ov_infer_request*);
  void (*infer_request_free)(ov_infer_request*);
  const char* (*get_error_info)(int);
  const char* (*get_last_err_msg)();
  void (*free)(const char*);

  std::string path; /* where it was found */

  /* path: the library, or null to search as docs/native.md says. `Error` TKF_ERROR_BACKEND. The library stays loaded
   * until the process ends: its threads do not survive being unloaded. */
  static OpenVino load(const char* path);

  /* `Error` TKF_ERROR_BACKEND (or _MEMORY) that says what OpenVINO was doing, unless `status` is success. */
  void check(int status, const char* doing) const;
};

}  // namespace tkf
