#include <mutex>
#include <shared_mutex>

#include "error.h"

namespace tkf {
namespace {

struct Listener {
  std::shared_mutex lock;
  tkf_log_callback callback = nullptr;
  void* user_data = nullptr;
};

/* Never destroyed: a backend's threads may still log while the process ends. */
Listener& listener() {
  static auto* one = new Listener;
  return *one;
}

}  // namespace

void log(tkf_log_level level, const std::string& message) {
  auto& told = listener();
  // Shared: callers on several threads do not wait for one another, tkf_set_log waits for all of them.
  const std::shared_lock hold(told.lock);
  if (told.callback != nullptr) told.callback(level, printable(message).c_str(), told.user_data);
}

void set_log(tkf_log_callback callback, void* user_data) {
  auto& told = listener();
  const std::unique_lock hold(told.lock);
  told.callback = callback;
  told.user_data = user_data;
}

std::string printable(const std::string& text) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n' || c == '\t' || c == '\r') {
      out += ' ';
    } else if (byte < 0x20 || byte > 0x7e) {
      out += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace tkf
