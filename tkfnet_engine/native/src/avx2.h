/* Whether functions compiled for AVX2 may be called. Not `target_clones`: its resolvers run before a sanitizer is set
 * up, and not every libc has them. */
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>

#define TKF_AVX2 __attribute__((target("avx2")))
#endif

namespace tkf {

inline bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") != 0;
#else
  return false;
#endif
}

}  // namespace tkf
