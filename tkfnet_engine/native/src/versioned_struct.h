/* Structures of the C API that begin with `struct_size`: as the caller filled them -> as this version knows them. */
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>

#include "error.h"

namespace tkf {

/* `given`, of which `struct_size` bytes are read, as a T; fields that it does not have are zero. name: T's; where: what
 * the message begins with. given: not NULL. Throws `Error` TKF_ERROR_ARGUMENT where struct_size is none, or a field
 * that this version does not know is not zero. */
template <class T>
T known_fields(const T* given, const char* name, const std::string& where = "") {
  // A struct_size that was never set is most likely 0 or huge.
  constexpr std::size_t most = 4096;
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  std::size_t size = 0;
  std::memcpy(&size, bytes, sizeof size);
  if (size < sizeof size || size > most) {
    throw Error(TKF_ERROR_ARGUMENT, where + name + ": struct_size is " + std::to_string(size) + ", expected " +
                                        std::to_string(sizeof(T)) + "; set it to sizeof(" + name + ")");
  }
  for (std::size_t i = sizeof(T); i < size; ++i) {
    if (bytes[i] == 0) continue;
    throw Error(TKF_ERROR_ARGUMENT, where + name + ": byte " + std::to_string(i) + " of " + std::to_string(size) +
                                        " is set, expected zero from byte " + std::to_string(sizeof(T)) +
                                        ", all that version " TKF_VERSION
                                        " knows; leave newer fields zero, or upgrade libtkfnet");
  }
  T known{};
  std::memcpy(&known, bytes, std::min(size, sizeof(T)));
  known.struct_size = sizeof(T);
  return known;
}

}  // namespace tkf
