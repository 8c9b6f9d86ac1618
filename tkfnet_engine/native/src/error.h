/* The one exception of this library. api.cpp turns it into a status and a message; none leaves the library. */
#pragma once

#include <stdexcept>
#include <string>

#include "tkfnet.h"

namespace tkf {

/* message: "what was found; what was expected; what to do", of any characters: `tkf_last_error` makes it printable.
 * code: of a refused engine file, the stable code of docs/engine-file.md; else "". */
class Error : public std::runtime_error {
 public:
  Error(tkf_status its_status, const std::string& message, const char* its_code = "")
      : std::runtime_error(message), status(its_status), code(its_code) {}

  tkf_status status;
  const char* code;
};

/* Tells the caller's log, if it has one. Safe from any thread. */
void log(tkf_log_level level, const std::string& message);

/* As tkf_set_log. */
void set_log(tkf_log_callback callback, void* user_data);

/* One line of printable ASCII: what a file or another library says may hold anything. */
std::string printable(const std::string& text);

}  // namespace tkf
