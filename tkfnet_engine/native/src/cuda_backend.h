/* Which of an engine file's machine code a GPU runs. */
#pragma once

#include <string>
#include <vector>

namespace tkf {

/* The architecture among `held` ("sm_90") whose machine code a GPU of this compute capability runs. Within 8.x newer
 * GPUs run older code; from 9.0 on the code is specific to one architecture (Triton's "a" targets). gpu: its name.
 * `Error` TKF_ERROR_DEVICE if there is none. */
std::string chosen_arch(int major, int minor, const std::vector<std::string>& held, const std::string& gpu);

}  // namespace tkf
