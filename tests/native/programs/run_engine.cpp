/* An engine run through tkfnet.h alone, as a program of a user's would. One JSON object per call on standard output.
 *
 * run_engine ENGINE --pixels FILE --out FILE [--counts 1,2,3] [--how run|submit|device|stream|mixed]
 *     for each count the first so many images (uint8 RGB); the logits (float32) go to FILE, one request behind the
 *     other. device: by tkf_run_device on the default stream; stream: on one of our own; mixed: in turn
 *   --device N           which GPU; N,M opens an engine on each, and threads take turns
 *   --threads T --runs R T sessions at once, each R times; all must answer as the first
 *   --close ORDER        such as e,1,0: closes the engine, session 1, session 0; those that are left answer once more
 *   --cycles N           opens, runs and closes so many times more
 *   --untrusted yes      without allow_native_code
 */
#include <cstdio>
#include <map>
#include <memory>
#include <thread>

#include "engine_calls.h"

namespace {

using calls::Floats;

std::map<std::string, std::string> flags;
std::string engine_path;
std::vector<std::uint8_t> pixels;

std::string flag(const char* name, const char* otherwise) {
  const auto found = flags.find(name);
  return found != flags.end() ? found->second : otherwise;
}

tkf_status say(const std::string& call, tkf_status status, const tkf_session* session) {
  const std::string error = calls::quoted(status == TKF_OK ? "" : tkf_last_error(session));
  std::printf("{\"call\": \"%s\", \"status\": \"%s\", \"error\": %s}\n", call.c_str(), tkf_status_name(status),
              error.c_str());
  return status;
}

struct Opened {
  tkf_engine* engine = nullptr;
  int device = 0;
  std::size_t classes = 0;
  std::unique_ptr<driver::Memory> on_device; /* the pixels, if they are asked for */
};

tkf_status open_engine(int device, Opened& opened) {
  const bool trusted = flags.count("--untrusted") == 0;
  const tkf_status status = calls::open_engine(engine_path, device, trusted, &opened.engine);
  opened.device = device;
  opened.classes = static_cast<std::size_t>(tkf_class_count(opened.engine));
  const std::string how = flag("--how", "run");
  if (status == TKF_OK && how != "run" && how != "submit")
    opened.on_device = std::make_unique<driver::Memory>(device, pixels.data(), pixels.size());
  return status;
}

/* All of --counts, --runs times. */
tkf_status run_all(const Opened& opened, tkf_session* session, bool tell, Floats& answer) {
  static const char* const mixture[] = {"run", "device", "submit", "stream"};
  tkf_status last = TKF_OK;
  unsigned turn = 0;
  for (int i = 0; i < std::stoi(flag("--runs", "1")); ++i) {
    for (const int count : calls::numbers(flag("--counts", "1"))) {
      std::string how = flag("--how", "run");
      if (how == "mixed") how = mixture[turn++ % 4];
      const auto images = static_cast<std::size_t>(count);
      const tkf_status status = calls::ask(session, how, opened.on_device.get(), pixels, images, opened.classes,
                                           opened.device, answer);
      if (tell) say(how, status, session);
      if (status != TKF_OK) last = status;
    }
  }
  return last;
}

/* Sessions in threads of their own. Gives how many answered otherwise than `expected`. */
int run_threads(const std::vector<Opened>& engines, std::size_t count, const Floats& expected) {
  std::vector<int> wrong(count, 1);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < count; ++t)
    threads.emplace_back([&, t] {
      const Opened& opened = engines[t % engines.size()];
      tkf_session* session = nullptr;
      Floats answer;
      if (calls::open_session(opened.engine, &session) != TKF_OK) return;
      if (run_all(opened, session, false, answer) == TKF_OK) wrong[t] = answer != expected;
      tkf_session_close(session);
    });
  int sum = 0;
  for (std::size_t t = 0; t < count; ++t) {
    threads[t].join();
    sum += wrong[t];
  }
  return sum;
}

/* Two sessions and the engine go in the order of --close. Gives how many of the answers between were wrong. */
int close_in_order(Opened& opened, const Floats& expected) {
  tkf_session* sessions[2] = {nullptr, nullptr};
  int wrong = 0;
  for (tkf_session*& session : sessions) wrong += calls::open_session(opened.engine, &session) != TKF_OK;
  std::istringstream order(flag("--close", ""));
  for (std::string what; std::getline(order, what, ',');) {
    if (what == "e") {
      tkf_engine_close(opened.engine);
      opened.engine = nullptr;
    } else {
      tkf_session*& session = sessions[std::stoi(what)];
      tkf_session_close(session);
      session = nullptr;
    }
    for (tkf_session* left : sessions) {
      Floats answer;
      if (left != nullptr) wrong += run_all(opened, left, false, answer) != TKF_OK || answer != expected;
    }
  }
  return wrong;
}

int cycle(const Floats& expected) {
  Opened opened;
  tkf_session* session = nullptr;
  Floats answer;
  if (open_engine(0, opened) != TKF_OK || calls::open_session(opened.engine, &session) != TKF_OK) return 1;
  const tkf_status status = run_all(opened, session, false, answer);
  tkf_session_close(session);
  tkf_engine_close(opened.engine);
  return status != TKF_OK || answer != expected;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2 || count % 2 != 0) return 64;
  engine_path = arguments[1];
  for (int i = 2; i < count; i += 2) flags[arguments[i]] = arguments[i + 1];
  pixels = calls::content_of(flag("--pixels", ""));

  std::vector<Opened> engines;
  for (const int device : calls::numbers(flag("--device", "0"))) {
    Opened& opened = engines.emplace_back();
    if (say("open", open_engine(device, opened), nullptr) != TKF_OK) return 0;
    std::printf("{\"backend\": \"%s\", \"device\": %s}\n", tkf_backend(opened.engine),
                calls::quoted(tkf_device_name(opened.engine)).c_str());
  }
  tkf_session* session = nullptr;
  Floats answer;
  if (say("session", calls::open_session(engines[0].engine, &session), nullptr) != TKF_OK) return 0;
  run_all(engines[0], session, true, answer);
  tkf_session_close(session);
  std::ofstream(flag("--out", ""), std::ios::binary)
      .write(reinterpret_cast<const char*>(answer.data()), static_cast<std::streamsize>(answer.size() * sizeof(float)));

  int wrong = 0;
  if (flags.count("--threads") != 0)
    wrong += run_threads(engines, static_cast<std::size_t>(std::stoi(flags["--threads"])), answer);
  if (flags.count("--close") != 0) wrong += close_in_order(engines[0], answer);
  for (const Opened& opened : engines) tkf_engine_close(opened.engine);
  for (int i = 0; i < std::stoi(flag("--cycles", "0")); ++i) wrong += cycle(answer);
  std::printf("{\"wrong\": %d}\n", wrong);
  return 0;
}
