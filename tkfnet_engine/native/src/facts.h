/* The facts an engine cannot run without, as engine.py's `checked_facts` demands them. */
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "engine_file.h"

namespace tkf {

struct Facts {
  std::vector<std::string> labels;  /* UTF-8 */
  std::string precision;            /* "float32", "float16", "int8", "float8" */
  std::string backend;              /* as built: "openvino", "fused" .. */
  std::string device;               /* "cpu", "cuda" */
  std::size_t size = 0;             /* the side of the square input, pixels */
  std::size_t max_batch = 0;
  int weight_bits = 0;              /* 7 or 8 of an INT8 engine, else 0 */

  std::size_t classes() const { return labels.size(); }
  std::size_t image_bytes() const { return size * size * 3; }
};

/* Throws `Error` TKF_ERROR_FILE, code "facts" like Python's, where they mean nothing to this version. */
Facts facts_from(const EngineFile& file);

}  // namespace tkf
