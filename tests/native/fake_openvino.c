/* A stand-in for libopenvino_c.so: the calls that libtkfnet makes, without threads of its own, so that sanitizers and
 * valgrind can watch the library over it. Everything it hands out is heap memory: what is not given back is a leak.
 *
 * A "graph" is the text "STANDIN size classes"; its answer to an image is the sum of byte x (position % 251 + 1),
 * modulo 9973, times 1 to classes.
 *
 * FAKE_OV_FAIL=ov_infer_request_infer:2:-1,..   its 2nd call gives -1
 * FAKE_OV_BF16=1  has bfloat16    FAKE_OV_NAN=1  answers with NaN    FAKE_OV_LOG=file  one line per call
 */
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
enum { OK = 0, GENERAL_ERROR = -1, NOT_FOUND = -5, INVALID_PARAM = -14 };
enum { TYPE_U8 = 7, TYPE_F32 = 9 }; /* numbers of no real version */

typedef struct { int size, classes; } Graph;
typedef struct { int type; int64_t rank, dims[8]; void* data; int own; } Tensor;
typedef struct { Graph graph; char math[8]; } Compiled;
typedef struct { const Compiled* compiled; Tensor input; float* answer; int64_t count; int running; } Request;
typedef struct { int64_t rank; int64_t* dims; } Shape;
typedef struct { int unused; } Core;
typedef struct { int type; } Port;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread char last_error[200];

static int fails(const char* name) {
  static struct { char name[64]; int calls; } seen[64];
  static int count;
  pthread_mutex_lock(&lock);
  int i = 0;
  while (i < count && strcmp(seen[i].name, name) != 0) i++;
  if (i == count) strcpy(seen[count++].name, name);
  const int call = ++seen[i].calls;
  if (getenv("FAKE_OV_LOG") != NULL) {
    FILE* log = fopen(getenv("FAKE_OV_LOG"), "a");
    if (log != NULL) {
      fprintf(log, "%s\n", name);
      fclose(log);
    }
  }
  pthread_mutex_unlock(&lock);
  char list[500] = "", wanted[64], *rest = NULL;
  int number, code;
  if (getenv("FAKE_OV_FAIL") != NULL) strncpy(list, getenv("FAKE_OV_FAIL"), sizeof list - 1);
  for (char* one = strtok_r(list, ",", &rest); one != NULL; one = strtok_r(NULL, ",", &rest))
    if (sscanf(one, "%63[^:]:%d:%d", wanted, &number, &code) == 3 && strcmp(wanted, name) == 0 && number == call) {
      snprintf(last_error, sizeof last_error, "Exception from stand-in:\n%s fails \xff", name);
      return code;
    }
  return OK;
}
#define ENTER { const int code_ = fails(__func__); if (code_ != OK) return code_; }

EXPORT int ov_core_create(Core** core) { ENTER *core = calloc(1, sizeof **core); return OK; }
EXPORT void ov_core_free(Core* core) { free(core); }
EXPORT int ov_core_get_property(const Core* core, const char* device, const char* key, char** value) {
  ENTER (void)core;
  if (strcmp(device, "CPU") != 0 || strcmp(key, "FULL_DEVICE_NAME") != 0) return NOT_FOUND;
  *value = strdup("Stand-in CPU");
  return OK;
}
EXPORT int ov_core_read_model_from_memory_buffer(const Core* core, const char* text, size_t size, const Tensor* weights,
                                                 Graph** graph) {
  ENTER (void)core;
  char copy[64] = "";
  Graph read;
  if (weights != NULL || size >= sizeof copy) return INVALID_PARAM;
  memcpy(copy, text, size);
  if (sscanf(copy, "STANDIN %d %d", &read.size, &read.classes) != 2) return GENERAL_ERROR;
  *graph = malloc(sizeof read);
  **graph = read;
  return OK;
}
EXPORT int ov_core_compile_model(const Core* core, const Graph* graph, const char* device, size_t strings, Compiled** out,
                                 ...) {
  ENTER (void)core;
  if (strcmp(device, "CPU") != 0 || strings % 2 != 0) return INVALID_PARAM;
  Compiled* made = calloc(1, sizeof *made);
  made->graph = *graph;
  va_list properties;
  va_start(properties, out);
  for (size_t i = 0; i < strings; i += 2) {
    const char* key = va_arg(properties, const char*);
    const char* value = va_arg(properties, const char*);
    if (strcmp(key, "INFERENCE_PRECISION_HINT") == 0)
      strcpy(made->math, strcmp(value, "bf16") == 0 && getenv("FAKE_OV_BF16") != NULL ? "bf16" : "f32");
  }
  va_end(properties);
  *out = made;
  return OK;
}
EXPORT void ov_model_free(Graph* graph) { free(graph); }
EXPORT int ov_compiled_model_inputs_size(const Compiled* model, size_t* n) { ENTER (void)model; *n = 1; return OK; }
EXPORT int ov_compiled_model_outputs_size(const Compiled* model, size_t* n) { ENTER (void)model; *n = 1; return OK; }
EXPORT int ov_compiled_model_input(const Compiled* model, Port** port) {
  ENTER (void)model;
  *port = malloc(sizeof **port);
  (*port)->type = TYPE_U8;
  return OK;
}
EXPORT int ov_compiled_model_get_property(const Compiled* model, const char* key, char** value) {
  ENTER
  if (strcmp(key, "INFERENCE_PRECISION_HINT") != 0) return NOT_FOUND;
  *value = strdup(model->math);
  return OK;
}
EXPORT int ov_compiled_model_create_infer_request(const Compiled* model, Request** request) {
  ENTER *request = calloc(1, sizeof **request);
  (*request)->compiled = model;
  return OK;
}
EXPORT void ov_compiled_model_free(Compiled* model) { free(model); }
EXPORT int ov_port_get_element_type(const Port* port, int* type) { ENTER *type = port->type; return OK; }
EXPORT void ov_output_const_port_free(Port* port) { free(port); }

EXPORT int ov_tensor_create_from_host_ptr(int type, Shape shape, void* data, Tensor** tensor) {
  ENTER
  if (shape.rank > 8 || data == NULL) return INVALID_PARAM;
  Tensor* made = calloc(1, sizeof *made);
  made->type = type;
  made->rank = shape.rank;
  made->data = data;
  memcpy(made->dims, shape.dims, (size_t)shape.rank * sizeof *shape.dims);
  *tensor = made;
  return OK;
}
EXPORT int ov_tensor_get_byte_size(const Tensor* tensor, size_t* size) {
  ENTER *size = tensor->type == TYPE_F32 ? sizeof(float) : 1;
  for (int64_t i = 0; i < tensor->rank; i++) *size *= (size_t)tensor->dims[i];
  return OK;
}
EXPORT int ov_tensor_data(const Tensor* tensor, void** data) { ENTER *data = tensor->data; return OK; }
EXPORT void ov_tensor_free(Tensor* tensor) { free(tensor); }

EXPORT int ov_infer_request_set_input_tensor(Request* request, const Tensor* tensor) {
  ENTER
  const Graph* graph = &request->compiled->graph;
  if (tensor->type != TYPE_U8 || tensor->rank != 4 || tensor->dims[1] != graph->size || tensor->dims[3] != 3)
    return INVALID_PARAM;
  request->input = *tensor; /* the caller may free its handle, as with the real one */
  return OK;
}
static int compute(Request* request) {
  if (request->input.data == NULL) return INVALID_PARAM;
  const Graph* graph = &request->compiled->graph;
  const int64_t image = (int64_t)graph->size * graph->size * 3;
  request->count = request->input.dims[0];
  free(request->answer);
  request->answer = malloc((size_t)(request->count * graph->classes) * sizeof(float));
  for (int64_t i = 0; i < request->count; i++) {
    const uint8_t* pixels = (const uint8_t*)request->input.data + i * image;
    int64_t sum = 0;
    for (int64_t k = 0; k < image; k++) sum += pixels[k] * (k % 251 + 1);
    for (int c = 0; c < graph->classes; c++)
      request->answer[i * graph->classes + c] =
          getenv("FAKE_OV_NAN") != NULL ? 0.0f / 0.0f : (float)((sum % 9973) * (c + 1));
  }
  return OK;
}
EXPORT int ov_infer_request_infer(Request* request) { ENTER return compute(request); }
EXPORT int ov_infer_request_start_async(Request* request) { ENTER request->running = 1; return OK; }
EXPORT int ov_infer_request_wait(Request* request) {
  ENTER
  if (!request->running) return GENERAL_ERROR;
  request->running = 0;
  return compute(request);
}
EXPORT int ov_infer_request_get_output_tensor(const Request* request, Tensor** tensor) {
  ENTER
  Tensor* made = calloc(1, sizeof *made);
  *made = (Tensor){TYPE_F32, 2, {request->count, request->compiled->graph.classes}, request->answer, 0};
  *tensor = made;
  return OK;
}
EXPORT void ov_infer_request_free(Request* request) {
  free(request->answer);
  free(request);
}
EXPORT const char* ov_get_error_info(int status) { return status == OK ? "success" : "general error"; }
EXPORT const char* ov_get_last_err_msg(void) { return *last_error != 0 ? strdup(last_error) : NULL; }
EXPORT void ov_free(const char* text) { free((void*)text); }
