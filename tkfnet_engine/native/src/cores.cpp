#include "cores.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <thread>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace tkf {

int usable_cores() {
  cpu_set_t set;
  int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                           : static_cast<int>(std::thread::hardware_concurrency());
  std::ifstream limit("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;  // no file, or "max", leaves them at zero
  if (limit >> quota >> period && quota > 0 && period > 0)
    cores = std::min(cores, static_cast<int>(std::ceil(std::min(quota / period, 1024.0))));
  return std::max(cores, 1);
}

bool has_exact_byte_products() {
#if defined(__x86_64__) || defined(__i386__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0) {
    const bool avx512_vnni = (c >> 11 & 1) != 0, amx_int8 = (d >> 25 & 1) != 0;
    if (avx512_vnni || amx_int8) return true;
  }
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;  // AVX-VNNI
#else
  return true;
#endif
}

}  // namespace tkf
