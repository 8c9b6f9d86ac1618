/* The functions of tkfnet.h: arguments are checked here, exceptions end here. */
#include <new>

#include "engine_file.h"
#include "error.h"
#include "facts.h"
#include "frame.h"
#include "session.h"
#include "versioned_struct.h"

using tkf::Error;

namespace {

/* What tkf_last_error(NULL) tells. */
thread_local std::string thread_error;

void remember(std::string& error, const std::string& message) noexcept {
  try {
    error = tkf::printable(message);
  } catch (...) {  // no memory for the message: none is better than another call's
    error.clear();
  }
}

/* Calls `work`, gives its status and keeps its message in `error`. */
template <class Work>
tkf_status guarded(std::string& error, const Work& work) noexcept {
  try {
    error.clear();
    work();
    return TKF_OK;
  } catch (const Error& failure) {
    remember(error, failure.what());
    return failure.status;
  } catch (const std::bad_alloc&) {
    remember(error, "not enough memory; expected more; free some, or run fewer images at once");
    return TKF_ERROR_MEMORY;
  } catch (const std::exception& failure) {
    remember(error, std::string("a fault of this library (") + failure.what() + "); please report it");
  } catch (...) {
    remember(error, "a fault of this library; please report it");
  }
  return TKF_ERROR_INTERNAL;
}

/* The same for a call of a session, which is for one thread at a time. */
template <class Work>
tkf_status guarded(tkf_session* session, const Work& work) noexcept {
  if (session == nullptr) {
    remember(thread_error, "session: got NULL; expected one that tkf_session_open gave; check its status");
    return TKF_ERROR_ARGUMENT;
  }
  if (session->in_use.exchange(true, std::memory_order_acquire)) {
    remember(thread_error, "this session is in use by another thread; expected one session per thread; open another");
    return TKF_ERROR_BUSY;
  }
  const tkf_status status = guarded(session->error, work);
  session->in_use.store(false, std::memory_order_release);
  return status;
}

void check_pointer(const void* pointer, const char* name) {
  if (pointer == nullptr)
    throw Error(TKF_ERROR_ARGUMENT, std::string(name) + ": got NULL; expected a pointer; pass one");
}

void check_count(std::size_t count) {
  constexpr std::size_t most = 1 << 20;
  if (count < 1 || count > most)
    throw Error(TKF_ERROR_ARGUMENT, "count: got " + std::to_string(count) + " images; expected 1 to " +
                                        std::to_string(most) + "; leave the call out, or split them");
}

void check_range(std::int32_t value, std::int32_t least, std::int32_t most, const char* name) {
  if (value < least || value > most)
    throw Error(TKF_ERROR_ARGUMENT, std::string(name) + ": got " + std::to_string(value) + "; expected " +
                                        std::to_string(least) + " to " + std::to_string(most) + "; see tkfnet.h");
}

void check_crops(const tkf_crop* crops, std::size_t count) {
  check_pointer(crops, "crops");
  check_count(count);
  for (std::size_t i = 0; i < count; ++i) tkf::check_crop(crops[i], i);
}

tkf_engine_options checked(const tkf_engine_options* given) {
  const auto options = given != nullptr ? tkf::known_fields(given, "tkf_engine_options") : tkf_engine_options{};
  check_range(options.device, 0, 4095, "tkf_engine_options.device");
  check_range(options.threads, 0, 1024, "tkf_engine_options.threads");
  check_range(options.cpu_math, TKF_CPU_MATH_EXACT, TKF_CPU_MATH_BFLOAT16, "tkf_engine_options.cpu_math");
  return options;
}

tkf_engine* opened(tkf::EngineFile file, const tkf_engine_options& options) {
  auto engine = std::make_unique<tkf_engine>();
  auto content = std::make_shared<OpenedEngine>();
  content->facts = tkf::facts_from(file);
  content->facts_text = file.facts_text();
  const auto& built_for = content->facts.backend;
  if (built_for == "openvino") {
    content->backend = tkf::open_openvino(content->facts, file, options);
  } else if (built_for == "fused") {
    content->backend = tkf::open_cuda(content->facts, file, options);
  } else {
    throw Error(TKF_ERROR_BACKEND,
                file.name() + ": an engine for " + built_for +
                    ", which this library does not run; expected openvino (CPU) or fused (NVIDIA GPU); build one: "
                    "python -m tkfnet_engine.build --backend openvino, or --backend fused --device cuda --fp16");
  }
  content->device_name = content->backend->device_name();
  engine->opened = std::move(content);
  return engine.release();
}

}  // namespace

const char* tkf_version(void) { return TKF_VERSION; }

uint32_t tkf_abi_version(void) { return TKF_ABI_VERSION; }

const char* tkf_status_name(tkf_status status) {
  switch (status) {
    case TKF_OK: return "TKF_OK";
    case TKF_ERROR_ARGUMENT: return "TKF_ERROR_ARGUMENT";
    case TKF_ERROR_FILE: return "TKF_ERROR_FILE";
    case TKF_ERROR_VERSION: return "TKF_ERROR_VERSION";
    case TKF_ERROR_UNTRUSTED: return "TKF_ERROR_UNTRUSTED";
    case TKF_ERROR_BACKEND: return "TKF_ERROR_BACKEND";
    case TKF_ERROR_DEVICE: return "TKF_ERROR_DEVICE";
    case TKF_ERROR_MEMORY: return "TKF_ERROR_MEMORY";
    case TKF_ERROR_ANSWER: return "TKF_ERROR_ANSWER";
    case TKF_ERROR_BUSY: return "TKF_ERROR_BUSY";
    case TKF_ERROR_LOST: return "TKF_ERROR_LOST";
    case TKF_ERROR_INTERNAL: return "TKF_ERROR_INTERNAL";
  }
  return "unknown status";
}

const char* tkf_last_error(const tkf_session* session) {
  return session != nullptr ? session->error.c_str() : thread_error.c_str();
}

void tkf_set_log(tkf_log_callback callback, void* user_data) { tkf::set_log(callback, user_data); }

tkf_status tkf_engine_open(const char* path, const tkf_engine_options* options, tkf_engine** engine) {
  return guarded(thread_error, [&] {
    check_pointer(path, "path");
    check_pointer(engine, "engine");
    const auto known = checked(options);
    *engine = opened(tkf::EngineFile::read(path), known);
  });
}

tkf_status tkf_engine_open_memory(const void* data, size_t size, const tkf_engine_options* options,
                                  tkf_engine** engine) {
  return guarded(thread_error, [&] {
    check_pointer(data, "data");
    check_pointer(engine, "engine");
    const auto known = checked(options);
    *engine = opened(tkf::EngineFile::read(data, size), known);
  });
}

void tkf_engine_close(tkf_engine* engine) { delete engine; }

int32_t tkf_input_size(const tkf_engine* engine) {
  return engine != nullptr ? static_cast<int32_t>(engine->opened->facts.size) : 0;
}

int32_t tkf_class_count(const tkf_engine* engine) {
  return engine != nullptr ? static_cast<int32_t>(engine->opened->facts.classes()) : 0;
}

int32_t tkf_max_batch(const tkf_engine* engine) {
  return engine != nullptr ? static_cast<int32_t>(engine->opened->facts.max_batch) : 0;
}

const char* tkf_label(const tkf_engine* engine, int32_t index) {
  if (engine == nullptr || index < 0 || index >= tkf_class_count(engine)) return "";
  return engine->opened->facts.labels[static_cast<std::size_t>(index)].c_str();
}

const char* tkf_precision(const tkf_engine* engine) {
  return engine != nullptr ? engine->opened->facts.precision.c_str() : "";
}

const char* tkf_backend(const tkf_engine* engine) { return engine != nullptr ? engine->opened->backend->name() : ""; }

const char* tkf_device_name(const tkf_engine* engine) {
  return engine != nullptr ? engine->opened->device_name.c_str() : "";
}

const char* tkf_facts_json(const tkf_engine* engine) {
  return engine != nullptr ? engine->opened->facts_text.c_str() : "";
}

tkf_status tkf_session_open(tkf_engine* engine, const tkf_session_options* given, tkf_session** session) {
  return guarded(thread_error, [&] {
    check_pointer(engine, "engine");
    check_pointer(session, "session");
    const auto options = given != nullptr ? tkf::known_fields(given, "tkf_session_options") : tkf_session_options{};
    check_range(options.output, TKF_OUTPUT_PROBABILITIES, TKF_OUTPUT_LOGITS, "tkf_session_options.output");
    *session = new tkf_session(engine->opened, static_cast<tkf_output>(options.output));
  });
}

void tkf_session_close(tkf_session* session) { delete session; }

tkf_status tkf_run(tkf_session* session, const uint8_t* rgb, size_t count, float* output) {
  return guarded(session, [&] {
    check_pointer(rgb, "rgb");
    check_count(count);
    check_pointer(output, "output");
    session->run(rgb, count, output);
  });
}

tkf_status tkf_run_strided(tkf_session* session, const tkf_crop* crops, size_t count, float* output) {
  return guarded(session, [&] {
    check_crops(crops, count);
    check_pointer(output, "output");
    session->run_crops(crops, count, output);
  });
}

tkf_status tkf_prepare(const tkf_crop* crops, size_t count, int32_t size, uint8_t* rgb) {
  return guarded(thread_error, [&] {
    check_crops(crops, count);
    check_range(size, 1, 16384, "size");
    check_pointer(rgb, "rgb");
    const auto side = static_cast<std::size_t>(size);
    for (std::size_t i = 0; i < count; ++i) tkf::prepare(crops[i], size, rgb + i * side * side * 3);
  });
}

tkf_status tkf_submit(tkf_session* session, const uint8_t* rgb, size_t count, float* output) {
  return guarded(session, [&] {
    check_pointer(rgb, "rgb");
    check_count(count);
    check_pointer(output, "output");
    session->submit(rgb, count, output);
  });
}

tkf_status tkf_submit_strided(tkf_session* session, const tkf_crop* crops, size_t count, float* output) {
  return guarded(session, [&] {
    check_crops(crops, count);
    check_pointer(output, "output");
    session->submit_crops(crops, count, output);
  });
}

tkf_status tkf_wait(tkf_session* session) {
  return guarded(session, [&] { session->wait(); });
}

tkf_status tkf_run_device(tkf_session* session, const void* pixels, size_t count, float* logits, void* stream) {
  return guarded(session, [&] {
    check_pointer(pixels, "pixels");
    check_count(count);
    check_pointer(logits, "logits");
    session->run_device(pixels, count, logits, stream);
  });
}
