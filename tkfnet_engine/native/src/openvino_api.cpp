#include "openvino_api.h"

#include <dlfcn.h>
#include <glob.h>

#include <cstdlib>
#include <vector>

#include "error.h"

namespace tkf {
namespace {

/* Wheels carry the library under its versioned name alone, libopenvino_c.so.YYMP: 2641 is 2026.4.1. */
constexpr int newest_year = 27, oldest_year = 25, newest_minor = 6, newest_patch = 3;

std::vector<std::string> names_for_the_loader() {
  std::vector<std::string> names{"libopenvino_c.so"};
  for (int year = newest_year; year >= oldest_year; --year)
    for (int minor = newest_minor; minor >= 0; --minor)
      for (int patch = newest_patch; patch >= 0; --patch)
        names.push_back("libopenvino_c.so." + std::to_string(year) + std::to_string(minor) + std::to_string(patch));
  return names;
}

std::vector<std::string> names_in_virtual_environment() {
  const char* folder = secure_getenv("VIRTUAL_ENV");
  if (folder == nullptr || *folder == '\0') return {};
  const std::string pattern = std::string(folder) + "/lib/python3*/site-packages/openvino/libs/libopenvino_c.so*";
  glob_t found{};
  std::vector<std::string> names;
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0)
    for (std::size_t i = found.gl_pathc; i > 0; --i) names.emplace_back(found.gl_pathv[i - 1]);  // newest first
  globfree(&found);
  return names;
}

void* opened(const std::string& name) { return dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL); }

std::string loader_error() {
  const char* text = dlerror();
  return text != nullptr ? text : "the loader gives no reason";
}

/* The library and the name under which it was found. */
std::pair<void*, std::string> found(const char* path) {
  const char* source = "the option openvino_library";
  if (path == nullptr) {
    path = secure_getenv("TKFNET_OPENVINO_LIBRARY");
    source = "TKFNET_OPENVINO_LIBRARY";
  }
  if (path != nullptr && *path != '\0') {
    if (void* library = opened(path)) return {library, path};
    throw Error(TKF_ERROR_BACKEND, "OpenVINO cannot be loaded as " + std::string(source) + " says (" + loader_error() +
                                       "); expected the path of libopenvino_c.so; correct it, or leave it out");
  }
  for (const auto& name : names_for_the_loader())
    if (void* library = opened(name)) return {library, name};
  std::string reason;
  for (const auto& name : names_in_virtual_environment()) {
    if (void* library = opened(name)) return {library, name};
    reason = " (" + loader_error() + ")";
  }
  throw Error(TKF_ERROR_BACKEND,
              "OpenVINO, which this engine runs on, is not found" + reason +
                  "; expected libopenvino_c.so 2025.2 or later; install it (pip install openvino), and name the library "
                  "in TKFNET_OPENVINO_LIBRARY or the option openvino_library");
}

template <class Function>
void resolve(const std::pair<void*, std::string>& library, const char* name, Function*& function) {
  void* address = dlsym(library.first, name);
  if (address == nullptr)
    throw Error(TKF_ERROR_BACKEND, library.second + " has no function " + name +
                                       "; expected OpenVINO 2025.2 or later; install a newer one");
  function = reinterpret_cast<Function*>(address);
}

}  // namespace

OpenVino OpenVino::load(const char* path) {
  const auto library = found(path);
  OpenVino api{};
  api.path = library.second;
  resolve(library, "ov_core_create", api.core_create);
  resolve(library, "ov_core_free", api.core_free);
  resolve(library, "ov_core_get_property", api.core_get_property);
  resolve(library, "ov_core_read_model_from_memory_buffer", api.core_read_model_from_memory_buffer);
  resolve(library, "ov_core_compile_model", api.core_compile_model);
  resolve(library, "ov_model_free", api.model_free);
  resolve(library, "ov_compiled_model_inputs_size", api.compiled_model_inputs_size);
  resolve(library, "ov_compiled_model_outputs_size", api.compiled_model_outputs_size);
  resolve(library, "ov_compiled_model_input", api.compiled_model_input);
  resolve(library, "ov_compiled_model_get_property", api.compiled_model_get_property);
  resolve(library, "ov_compiled_model_create_infer_request", api.compiled_model_create_infer_request);
  resolve(library, "ov_compiled_model_free", api.compiled_model_free);
  resolve(library, "ov_port_get_element_type", api.port_get_element_type);
  resolve(library, "ov_output_const_port_free", api.output_const_port_free);
  resolve(library, "ov_tensor_create_from_host_ptr", api.tensor_create_from_host_ptr);
  resolve(library, "ov_tensor_get_byte_size", api.tensor_get_byte_size);
  resolve(library, "ov_tensor_data", api.tensor_data);
  resolve(library, "ov_tensor_free", api.tensor_free);
  resolve(library, "ov_infer_request_set_input_tensor", api.infer_request_set_input_tensor);
  resolve(library, "ov_infer_request_get_output_tensor", api.infer_request_get_output_tensor);
  resolve(library, "ov_infer_request_infer", api.infer_request_infer);
  resolve(library, "ov_infer_request_start_async", api.infer_request_start_async);
  resolve(library, "ov_infer_request_wait", api.infer_request_wait);
  resolve(library, "ov_infer_request_free", api.infer_request_free);
  resolve(library, "ov_get_error_info", api.get_error_info);
  resolve(library, "ov_get_last_err_msg", api.get_last_err_msg);
  resolve(library, "ov_free", api.free);
  return api;
}

void OpenVino::check(int status, const char* doing) const {
  if (status == 0) return;
  constexpr int not_allocated = -10;
  std::string reason = get_error_info(status);
  if (const char* detail = get_last_err_msg()) {
    reason += ": " + std::string(detail).substr(0, 600);
    free(detail);
  }
  throw Error(status == not_allocated ? TKF_ERROR_MEMORY : TKF_ERROR_BACKEND,
              "OpenVINO failed while " + std::string(doing) + " (" + reason +
                  "); expected it to take what it was verified with; build the engine again with the OpenVINO that is "
                  "installed here");
}

}  // namespace tkf
