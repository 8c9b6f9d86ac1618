/* Every function of tkfnet.h, called from C99: c_api ENGINE FAILING.. ; FAILING: files that must be refused.
 * Prints what it did; exits 1 at the first thing that is not as the header says. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tkfnet.h"

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      fprintf(stderr, "line %d: %s; last error: %s / %s\n", __LINE__, #condition,    \
              tkf_last_error(NULL), session != NULL ? tkf_last_error(session) : ""); \
      exit(1);                                                                       \
    }                                                                                \
  } while (0)

static tkf_session *session;
static int logged;

static void on_log(tkf_log_level level, const char *message, void *user_data) {
  if (level >= TKF_LOG_INFO && strchr(message, '\n') == NULL) ++*(int *)user_data;
}

static void *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  CHECK(file != NULL);
  CHECK(fseek(file, 0, SEEK_END) == 0);
  *size = (size_t)ftell(file);
  rewind(file);
  void *data = malloc(*size);
  CHECK(data != NULL && fread(data, 1, *size, file) == *size);
  fclose(file);
  return data;
}

static uint8_t *noise(size_t size) {
  uint8_t *pixels = malloc(size);
  uint32_t state = 1;
  for (size_t i = 0; i < size; i++) pixels[i] = (uint8_t)((state = state * 1664525u + 1013904223u) >> 24);
  return pixels;
}

static void check_version(void) {
  CHECK(strcmp(tkf_version(), TKF_VERSION) == 0);
  CHECK(tkf_abi_version() == TKF_ABI_VERSION);
  CHECK(strcmp(tkf_status_name(TKF_ERROR_UNTRUSTED), "TKF_ERROR_UNTRUSTED") == 0);
  CHECK(strcmp(tkf_status_name((tkf_status)99), "unknown status") == 0);
  CHECK(strcmp(tkf_last_error(NULL), "") == 0);
}

static void check_arguments(const char *path, tkf_engine *engine) {
  tkf_engine_options options = {.struct_size = sizeof options, .threads = 1025};
  tkf_session_options of_session = {.struct_size = sizeof of_session, .output = 2};
  tkf_engine *none = NULL;
  tkf_session *no_session = NULL;
  CHECK(tkf_engine_open(NULL, NULL, &none) == TKF_ERROR_ARGUMENT && strstr(tkf_last_error(NULL), "path"));
  CHECK(tkf_engine_open(path, NULL, NULL) == TKF_ERROR_ARGUMENT);
  CHECK(tkf_engine_open(path, &options, &none) == TKF_ERROR_ARGUMENT && strstr(tkf_last_error(NULL), "threads"));
  options = (tkf_engine_options){.struct_size = 0};
  CHECK(tkf_engine_open(path, &options, &none) == TKF_ERROR_ARGUMENT && strstr(tkf_last_error(NULL), "struct_size"));
  CHECK(tkf_engine_open_memory(NULL, 9, NULL, &none) == TKF_ERROR_ARGUMENT);
  CHECK(tkf_session_open(NULL, NULL, &no_session) == TKF_ERROR_ARGUMENT);
  CHECK(tkf_session_open(engine, NULL, NULL) == TKF_ERROR_ARGUMENT);
  CHECK(tkf_session_open(engine, &of_session, &no_session) == TKF_ERROR_ARGUMENT);
  CHECK(strstr(tkf_last_error(NULL), "output"));
  CHECK(none == NULL && no_session == NULL);
  CHECK(tkf_run(NULL, NULL, 1, NULL) == TKF_ERROR_ARGUMENT && strstr(tkf_last_error(NULL), "session"));
  CHECK(tkf_input_size(NULL) == 0 && tkf_class_count(NULL) == 0 && tkf_max_batch(NULL) == 0);
  CHECK(*tkf_label(NULL, 0) == 0 && *tkf_precision(NULL) == 0 && *tkf_backend(NULL) == 0);
  CHECK(*tkf_device_name(NULL) == 0 && *tkf_facts_json(NULL) == 0);
  tkf_engine_close(NULL);
  tkf_session_close(NULL);
}

/* The same images in every way that the host has. */
static void check_running(tkf_engine *engine) {
  const size_t side = (size_t)tkf_input_size(engine), classes = (size_t)tkf_class_count(engine);
  const size_t batch = (size_t)tkf_max_batch(engine), count = batch + 1, image = side * side * 3;
  uint8_t *rgb = noise(count * image);
  float *first = calloc(count * classes, sizeof(float)), *second = calloc(count * classes, sizeof(float));
  tkf_frame *frames = calloc(count, sizeof *frames);
  tkf_crop *crops = calloc(count, sizeof *crops);
  CHECK(first != NULL && second != NULL && frames != NULL && crops != NULL);
  for (size_t i = 0; i < count; i++) {
    frames[i] = (tkf_frame){.struct_size = sizeof *frames, .format = TKF_PIXEL_RGB, .width = (int32_t)side,
                            .height = (int32_t)side, .data = rgb + i * image};
    crops[i] = (tkf_crop){&frames[i], 0, 0, (int32_t)side, (int32_t)side};
  }

  CHECK(tkf_run(session, rgb, count, first) == TKF_OK && strcmp(tkf_last_error(session), "") == 0);
  for (size_t i = 0; i < count; i++) {
    float sum = 0;
    for (size_t c = 0; c < classes; c++) sum += first[i * classes + c];
    CHECK(fabsf(sum - 1) < 1e-5f);
  }
  CHECK(tkf_run_strided(session, crops, count, second) == TKF_OK);
  CHECK(memcmp(first, second, count * classes * sizeof(float)) == 0);

  uint8_t *prepared = malloc(image);
  CHECK(tkf_prepare(crops, 1, (int32_t)side, prepared) == TKF_OK && memcmp(prepared, rgb, image) == 0);
  CHECK(tkf_prepare(crops, 1, 0, prepared) == TKF_ERROR_ARGUMENT && strstr(tkf_last_error(NULL), "size"));

  CHECK(tkf_run(session, rgb, batch, first) == TKF_OK); /* in one part, as what is submitted */
  memset(second, 0, count * classes * sizeof(float));
  CHECK(tkf_wait(session) == TKF_ERROR_ARGUMENT);
  CHECK(tkf_submit(session, rgb, batch, second) == TKF_OK);
  CHECK(tkf_submit(session, rgb, 1, second) == TKF_ERROR_BUSY && tkf_run(session, rgb, 1, second) == TKF_ERROR_BUSY);
  CHECK(tkf_wait(session) == TKF_OK && memcmp(first, second, batch * classes * sizeof(float)) == 0);
  memset(second, 0, count * classes * sizeof(float));
  CHECK(tkf_submit_strided(session, crops, batch, second) == TKF_OK && tkf_wait(session) == TKF_OK);
  CHECK(memcmp(first, second, batch * classes * sizeof(float)) == 0);

  /* What is refused writes nothing. */
  const float before = second[0];
  CHECK(tkf_submit(session, rgb, count, second) == TKF_ERROR_ARGUMENT && strstr(tkf_last_error(session), "largest"));
  CHECK(tkf_run(session, NULL, 1, second) == TKF_ERROR_ARGUMENT && tkf_run(session, rgb, 0, second) != TKF_OK);
  CHECK(tkf_run(session, rgb, 1, NULL) == TKF_ERROR_ARGUMENT && tkf_run(session, rgb, (size_t)-1, second) != TKF_OK);
  crops[0].width++;
  CHECK(tkf_run_strided(session, crops, 1, second) == TKF_ERROR_ARGUMENT && strstr(tkf_last_error(session), "crop 0"));
  if (strcmp(tkf_backend(engine), "openvino") == 0)
    CHECK(tkf_run_device(session, rgb, 1, second, NULL) == TKF_ERROR_ARGUMENT && strstr(tkf_last_error(session), "CPU"));
  CHECK(second[0] == before);
  free(rgb), free(first), free(second), free(frames), free(crops), free(prepared);
}

/* A program compiled against a newer header, whose options know one field more. */
static void check_newer_program(const char *path) {
  struct { tkf_engine_options known; int64_t newer; } options = {{.struct_size = sizeof options}, 0};
  tkf_engine *engine = NULL;
  CHECK(tkf_engine_open(path, &options.known, &engine) == TKF_OK);
  tkf_engine_close(engine);
  options.newer = 1;
  engine = NULL;
  CHECK(tkf_engine_open(path, &options.known, &engine) == TKF_ERROR_ARGUMENT && engine == NULL);
}

int main(int count, char **arguments) {
  tkf_engine_options options = {.struct_size = sizeof options};
  tkf_engine *engine = NULL;
  if (count < 2) return 2;
  check_version();
  tkf_set_log(on_log, &logged);
  CHECK(tkf_engine_open(arguments[1], &options, &engine) == TKF_OK);
  CHECK(logged > 0);
  tkf_set_log(NULL, NULL);
  printf("%s on %s, %s, %d labels from %s\n", tkf_precision(engine), tkf_backend(engine), tkf_device_name(engine),
         tkf_class_count(engine), tkf_label(engine, 0));
  CHECK(*tkf_label(engine, -1) == 0 && *tkf_label(engine, tkf_class_count(engine)) == 0);
  CHECK(strstr(tkf_facts_json(engine), "\"format\"") != NULL);
  CHECK(tkf_session_open(engine, NULL, &session) == TKF_OK);
  check_arguments(arguments[1], engine);
  check_running(engine);
  check_newer_program(arguments[1]);
  const int before = logged;
  tkf_engine_close(engine); /* before its session */
  tkf_session_close(session);
  session = NULL;

  size_t size = 0;
  void *content = read_file(arguments[1], &size);
  CHECK(tkf_engine_open_memory(content, size, NULL, &engine) == TKF_OK);
  free(content);
  CHECK(logged == before);
  tkf_session_options logits = {.struct_size = sizeof logits, .output = TKF_OUTPUT_LOGITS};
  CHECK(tkf_session_open(engine, &logits, &session) == TKF_OK);
  tkf_session_close(session);
  session = NULL;
  tkf_engine_close(engine);

  for (int i = 2; i < count; i++) {
    engine = NULL;
    const tkf_status status = tkf_engine_open(arguments[i], NULL, &engine);
    CHECK(status != TKF_OK && engine == NULL);
    printf("%s: %s\n", tkf_status_name(status), tkf_last_error(NULL));
  }
  return 0;
}
