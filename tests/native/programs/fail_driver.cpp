/* What comes of it when a driver call fails, over the stand-in for the driver (tests/backends/fake_cuda.c).
 *
 * fail_driver ENGINE PIXELS FIRST LAST CODE..
 *     opens the engine, asks it in every way, and closes all; FIRST to LAST: which of the driver calls made meanwhile
 *     fails, counted from 1, 0 is none; each with each code, each time in a new process. A step that fails is tried
 *     once more. One JSON object per process on standard output.
 */
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "engine_calls.h"

namespace {

using calls::Floats;

/* A function of the stand-in's own. */
template <class Result, class... Arguments>
Result control(const char* name, Arguments... arguments) {
  void* found = driver::symbol(name);
  if (found == nullptr) std::exit(3);
  return reinterpret_cast<Result (*)(Arguments...)>(found)(arguments...);
}

class Steps {
 public:
  Steps(std::string engine, std::vector<std::uint8_t> pixels)
      : path_(std::move(engine)),
        pixels_(std::move(pixels)),
        on_device_(0, pixels_.data(), pixels_.size()) {}

  void run() {
    if (attempt("open", true, [&] { return calls::open_engine(path_, 0, true, &engine_); }) &&
        attempt("session", true, [&] { return calls::open_session(engine_, &session_); })) {
      const std::pair<const char*, std::size_t> requests[] = {{"run", 3},    {"run", 1},    {"submit", 2},
                                                              {"stream", 3}, {"device", 1}, {"run", 2}};
      const auto classes = static_cast<std::size_t>(tkf_class_count(engine_));
      for (const auto& [how, count] : requests)
        attempt(how, false, [&, how = how, count = count] {
          return calls::ask(session_, how, &on_device_, pixels_, count, classes, 0, answer_);
        });
    }
    tkf_session_close(session_);
    tkf_engine_close(engine_);
  }

  void print() const {
    std::printf("\"step\": \"%s\", \"status\": \"%s\", \"error\": %s, \"then\": [", failed_.c_str(),
                tkf_status_name(status_), calls::quoted(error_).c_str());
    for (std::size_t i = 0; i < then_.size(); ++i)
      std::printf("%s[\"%s\", %s]", i != 0 ? ", " : "", tkf_status_name(then_[i].first),
                  calls::quoted(then_[i].second).c_str());
    std::printf("], \"answer\": [");
    for (std::size_t i = 0; i < answer_.size(); ++i)
      std::printf("%s%.9g", i != 0 ? ", " : "", static_cast<double>(answer_[i]));
    std::printf("]");
  }

 private:
  /* Whether the step has succeeded, at the second attempt if not at the first. opens: it has no session yet. */
  template <class Step>
  bool attempt(const char* name, bool opens, const Step& step) {
    for (int i = 0; i < 2; ++i) {
      const tkf_status status = step();
      const std::string error = status == TKF_OK ? "" : tkf_last_error(opens ? nullptr : session_);
      if (status_ != TKF_OK) then_.emplace_back(status, error);
      if (status == TKF_OK) return true;
      if (status_ == TKF_OK) status_ = status, error_ = error, failed_ = name;
    }
    return false;
  }

  std::string path_;
  std::vector<std::uint8_t> pixels_;
  driver::Memory on_device_;
  tkf_engine* engine_ = nullptr;
  tkf_session* session_ = nullptr;
  Floats answer_;
  std::string failed_, error_;                             /* the first step that failed */
  tkf_status status_ = TKF_OK;
  std::vector<std::pair<tkf_status, std::string>> then_;   /* what came after it */
};

void run_with_failure(const char* engine, const std::vector<std::uint8_t>& pixels, long call, int code) {
  Steps steps(engine, pixels);
  int before[7], left[7];
  control<void>("fake_cuda_left", before);
  control<void>("fake_cuda_arm", call, code);
  steps.run();
  const long made = control<long>("fake_cuda_calls");
  control<void>("fake_cuda_left", left);
  std::printf("{\"call\": %ld, \"code\": %d, \"driver_call\": \"%s\", \"calls\": %ld, ", call, code,
              control<const char*>("fake_cuda_failed"), made);
  steps.print();
  std::printf(", \"left\": [");
  for (int i = 0; i < 7; ++i) std::printf("%s%d", i != 0 ? ", " : "", left[i] - before[i]);
  std::printf("]}\n");
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 6) return 64;
  const std::vector<std::uint8_t> pixels = calls::content_of(arguments[2]);
  for (int i = 5; i < count; ++i) {
    for (long call = std::stol(arguments[3]); call <= std::stol(arguments[4]); ++call) {
      const int code = std::stoi(arguments[i]);
      // CUDA does not survive a fork, and here nothing has begun to use it.
      const pid_t child = fork();
      if (child == 0) {
        run_with_failure(arguments[1], pixels, call, code);
        std::exit(0);
      }
      int status = 0;
      waitpid(child, &status, 0);
      if (status != 0) std::printf("{\"call\": %ld, \"code\": %d, \"crashed\": %d}\n", call, code, status);
      std::fflush(stdout);
    }
  }
  return 0;
}
