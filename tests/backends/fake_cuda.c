/* A stand-in for libcuda.so.1: the driver calls that tkfnet_engine/backends and libtkfnet use, on host memory.
 *
 * It is lazier than a GPU may be: work queued on a stream runs only when something waits for it, so an order that
 * nobody asked for does not happen by luck. It refuses what the driver refuses (no current context, dead handles,
 * too much shared memory), counts what is alive, and writes one JSON object per line to $FAKE_CUDA_LOG.
 * A "cubin" is the text "ENTRY SIGNATURE", one letter per parameter: p a pointer, i an int32.
 *
 * FAKE_CUDA_DEVICES=1  FAKE_CUDA_CC=90  FAKE_CUDA_DRIVER=13000  FAKE_CUDA_FREE=bytes  FAKE_CUDA_SHARED=232448
 * FAKE_CUDA_SLEEP=microseconds that cuStreamSynchronize takes  FAKE_CUDA_CONTEXT=of every address, if not its device's
 * FAKE_CUDA_FAIL=cuMemAlloc:2:2,..   the 2nd cuMemAlloc returns code 2; codes from 700 on stick
 * FAKE_CUDA_LACKS=cuGraphLaunch   a driver without that entry point
 * A program that finds them by dlsym may also fail the n-th of all calls (fake_cuda_arm) and ask what is alive.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int R;
typedef unsigned long long P;
enum { OK, INVALID_VALUE = 1, NO_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
       INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600,
       ILLEGAL_ADDRESS = 700, CAPTURING = 900 };
enum { MAX = 4096, ARGS = 32, NODES = 256, DEVICES = 8 };
enum { DEVICE_MEMORY, PINNED_MEMORY, STREAMS, EVENTS, MODULES, GRAPHS, EXECS, KINDS }; /* as what is alive is told */

typedef struct { int device, pinned; P at, size; } Memory;
typedef struct { int alive, device; char name[64], signature[ARGS]; int shared, threads; } Module; /* and function */
typedef struct { Module *f; unsigned grid[3], block[3], shared; P args[ARGS]; int pdl; } Node;
typedef struct { int alive, device, count; Node *nodes[NODES]; } Graph;
typedef struct { int alive, device, number, count; Node *nodes, **origin; } Exec;
typedef struct Stream Stream;
typedef struct { int alive, device; long issued, done; Stream *stream; } Event;
typedef struct Op {
  int kind, exec; Node node; P to, from, size; void *copied; Event *event; long seq; Stream *other; struct Op *next;
} Op;
struct Stream { int alive, device, capturing; Graph *graph; Op *head, *tail; };
enum { KERNEL, COPY, SET, RECORD, WAIT };

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static Memory memory[MAX]; static Stream *streams[MAX]; static int nm, ns; /* those that are alive */
static int alive[DEVICES][KINDS], streams_made, execs_made;
static Stream legacy = {1}, per_thread = {1};
static int initialised, sticky, retained[DEVICES];
static long calls, armed_call, armed_code; static char failed[64];
static __thread int stack[64], depth, aside;

/* What is gone stays where it was, so that a dead handle is known as one and no address comes twice. */
static void *kept(void *thing) {
  static struct Kept { void *thing; struct Kept *next; } *all;
  struct Kept *new = malloc(sizeof *new); *new = (struct Kept){thing, all}; all = new; return thing;
}
static void *new(size_t size) { return kept(calloc(1, size)); }

static long setting(const char *name, long otherwise) { char *v = getenv(name); return v ? atol(v) : otherwise; }
static void say(const char *format, ...) {
  static FILE *file; char *path = getenv("FAKE_CUDA_LOG");
  if (!path) return;
  if (!file) file = fopen(path, "a");
  va_list args; va_start(args, format); vfprintf(file, format, args); va_end(args); fputc('\n', file); fflush(file);
}
static R fail(const char *name) { /* counts this call; an injected error, or the one that stuck */
  if (aside) return OK;
  static struct { char name[64]; int n; } seen[256]; static int count; int i;
  for (i = 0; i < count && strcmp(seen[i].name, name); i++);
  if (i == count) { strcpy(seen[i].name, name); count++; }
  seen[i].n++;
  if (sticky) { say("{\"after\": \"%s\"}", name); return sticky; }
  if (++calls == armed_call) {
    strcpy(failed, name);
    if (armed_code >= 700 && armed_code < 800) sticky = armed_code;
    return armed_code;
  }
  char *list = getenv("FAKE_CUDA_FAIL"), copy[1024] = "", *save, wanted[64]; int n, code;
  if (list) strncpy(copy, list, 1023);
  for (char *one = strtok_r(copy, ",", &save); one; one = strtok_r(NULL, ",", &save))
    if (sscanf(one, "%63[^:]:%d:%d", wanted, &n, &code) == 3 && !strcmp(wanted, name) && n == seen[i].n) {
      if (code >= 700 && code < 800) sticky = code;
      return code;
    }
  return OK;
}
/* --- control, for programs --------------------------------------------------------------------------------------- */
void fake_cuda_arm(long call, int code) { calls = 0; armed_call = call; armed_code = code; } /* counted from 1 */
long fake_cuda_calls(void) { return calls; } /* since then */
const char *fake_cuda_failed(void) { return failed; } /* which call that was */
void fake_cuda_aside(int on) { aside = on; } /* this thread's calls neither count nor fail */
void fake_cuda_left(int left[KINDS]) { memcpy(left, alive[0], sizeof alive[0]); } /* what is alive on GPU 0 */
static void unlock(int *unused) { (void)unused; pthread_mutex_unlock(&lock); }
#define ENTER __attribute__((cleanup(unlock))) int held = pthread_mutex_lock(&lock); (void)held; \
  if (!initialised) return NOT_INITIALIZED; { R code_ = fail(__func__); if (code_) return code_; }
#define CURRENT ENTER if (!depth) return INVALID_CONTEXT;
#define TRY(call) { R code_ = (call); if (code_) return code_; }

static Memory *holding(P at, P size) {
  for (int i = 0; i < nm; i++)
    if (at >= memory[i].at && at + size <= memory[i].at + memory[i].size) return &memory[i];
  return NULL;
}
static Stream *stream_of(void *s) { return (P)s < 2 ? &legacy : (P)s == 2 ? &per_thread : s; }

/* --- running what is queued ------------------------------------------------------------------------------------ */
static void run_kernel(Node *n, int exec, void *stream) {
  char text[1024] = ""; int used = strlen(n->f->signature); P *a = n->args;
  for (int i = 0; i < used + 2; i++) sprintf(text + strlen(text), "%s%lld", i ? ", " : "", (long long)a[i]);
  unsigned *g = n->grid, *b = n->block; P on = (P)(stream == &legacy ? (void *)1 : stream);
  say("{\"run\": \"%s\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"shared\": %u, \"args\": [%s], "
      "\"pdl\": %d, \"exec\": %d, \"stream\": %llu, \"device\": %d}", n->f->name, g[0], g[1], g[2], b[0], b[1], b[2],
      n->shared, text, n->pdl, exec, on, n->f->device);
  for (int i = 0; i < used; i++) {
    Memory *m = n->f->signature[i] == 'p' ? holding(a[i], 1) : NULL;
    int fine = m && !m->pinned && m->device == n->f->device;
    if (n->f->signature[i] == 'p' && !fine) { sticky = ILLEGAL_ADDRESS; return; }
  }
  if (a[used] || a[used + 1]) { sticky = ILLEGAL_ADDRESS; return; } /* Triton's scratch pointers are null */
  if (!strcmp(n->f->name, "pack_pixels_kernel")) { /* pixels, out, images, batch, image_bytes */
    for (P i = 0; i < a[3]; i++) {
      P sum = 0;
      for (P k = 0; i < a[2] && k < a[4]; k++) sum += ((uint8_t *)a[0])[i * a[4] + k] * (k % 251 + 1);
      ((int32_t *)a[1])[i] = sum % 9973;
    }
  } else if (!strcmp(n->f->name, "conv_kernel")) { /* x, w, out, counters, batch */
    for (P i = 0; i < a[4]; i++)
      ((int32_t *)a[2])[i] = ((int32_t *)a[3])[0] ? -1 : ((int32_t *)a[0])[i] + ((int32_t *)a[1])[0];
  } else if (!strcmp(n->f->name, "classify_kernel")) { /* x, logits, images, classes */
    for (P i = 0; i < a[2]; i++)
      for (P c = 0; c < a[3]; c++) ((float *)a[1])[i * a[3] + c] = (float)((int32_t *)a[0])[i] * (c + 1);
  }
}
static void drain(Stream *s, Event *until, long seq) {
  while (s->head && !sticky && !(until && until->done >= seq)) {
    Op *op = s->head; s->head = op->next; if (!s->head) s->tail = NULL;
    if (op->kind == KERNEL) run_kernel(&op->node, op->exec, s);
    else if (op->kind == COPY) memcpy((void *)op->to, (void *)op->from, op->size);
    else if (op->kind == SET) memset((void *)op->to, (int)op->from, op->size);
    else if (op->kind == RECORD) { if (op->event->done < op->seq) op->event->done = op->seq; }
    else if (op->event->done < op->seq) drain(op->other, op->event, op->seq);
    free(op->copied); free(op);
  }
}
static void drain_all(void) {
  drain(&legacy, 0, 0); drain(&per_thread, 0, 0);
  for (int i = 0; i < ns; i++) drain(streams[i], 0, 0);
}
static void queue(Stream *s, Op op) {
  Op *new = malloc(sizeof op); *new = op; new->next = NULL;
  if (s->tail) s->tail->next = new; else s->head = new;
  s->tail = new;
}

/* --- process, device, context ---------------------------------------------------------------------------------- */
R cuInit(unsigned flags) {
  TRY(fail("cuInit")); if (flags) return INVALID_VALUE;
  initialised = 1; return setting("FAKE_CUDA_DEVICES", 1) ? OK : NO_DEVICE;
}
R cuDriverGetVersion(int *v) { *v = setting("FAKE_CUDA_DRIVER", 13000); return OK; }
R cuGetErrorName(R code, const char **s) {
  *s = code == NO_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
     : code == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_OTHER"; return OK; }
R cuGetErrorString(R code, const char **s) { (void)code; *s = "as the stand-in was told"; return OK; }
R cuDeviceGetCount(int *n) { ENTER *n = setting("FAKE_CUDA_DEVICES", 1); return OK; }
R cuDeviceGet(int *d, int ordinal) {
  ENTER if (ordinal >= setting("FAKE_CUDA_DEVICES", 1)) return INVALID_DEVICE;
  *d = ordinal; return OK;
}
R cuDeviceGetName(char *s, int n, int d) { ENTER (void)d; snprintf(s, n, "Stand-in GPU"); return OK; }
R cuDeviceGetAttribute(int *v, int which, int d) {
  ENTER (void)d; int cc = setting("FAKE_CUDA_CC", 90);
  *v = which == 75 ? cc / 10 : which == 76 ? cc % 10 : which == 97 ? setting("FAKE_CUDA_SHARED", 232448) : 0;
  return OK;
}
R cuDevicePrimaryCtxRetain(void **c, int d) { ENTER retained[d]++; *c = (void *)(P)(d + 1); return OK; }
R cuDevicePrimaryCtxRelease(int d) {
  __attribute__((cleanup(unlock))) int held = pthread_mutex_lock(&lock); (void)held;
  int *n = alive[d]; if (--retained[d]) return OK;
  say("{\"released\": %d, \"left\": [%d, %d, %d, %d, %d, %d, %d], \"streams_made\": %d}", d, n[0], n[1], n[2], n[3],
      n[4], n[5], n[6], streams_made);
  return aside ? OK : sticky;
}
R cuCtxPushCurrent(void *c) {
  ENTER if (!c || !retained[(P)c - 1] || depth == 64) return INVALID_CONTEXT;
  stack[depth++] = (P)c; return OK;
}
R cuCtxPopCurrent(void **c) { if (!depth) return INVALID_CONTEXT; *c = (void *)(P)stack[--depth]; return OK; }
R cuCtxGetCurrent(void **c) { *c = (void *)(P)(depth ? stack[depth - 1] : 0); return OK; }
#define DEVICE (stack[depth - 1] - 1)

/* --- memory ---------------------------------------------------------------------------------------------------- */
static P taken(void) {
  P sum = 0;
  for (int i = 0; i < nm; i++) if (memory[i].device == DEVICE && !memory[i].pinned) sum += memory[i].size;
  return sum;
}
static P total(void) { return setting("FAKE_CUDA_FREE", 1l << 34); }
R cuMemGetInfo(size_t *f, size_t *t) { CURRENT *t = total(); *f = *t - taken(); return OK; }
static R allocate(P *at, size_t size, int pinned) {
  if (!size || nm == MAX) return INVALID_VALUE;
  if (!pinned && taken() + size > total()) return NO_MEMORY;
  *at = (P)kept(aligned_alloc(512, (size + 511) / 512 * 512)); memset((void *)*at, 0xAB, size);
  memory[nm++] = (Memory){DEVICE, pinned, *at, size}; alive[DEVICE][pinned]++;
  say("{\"allocated\": %llu, \"bytes\": %zu, \"pinned\": %d}", *at, size, pinned); return OK;
}
static R release(P at, int pinned) {
  for (int i = 0; i < nm; i++)
    if (memory[i].at == at && memory[i].pinned == pinned && memory[i].device == DEVICE) {
      drain_all(); memset((void *)at, 0xCD, memory[i].size);
      memory[i] = memory[--nm]; alive[DEVICE][pinned]--; return OK;
    }
  return INVALID_VALUE;
}
R cuMemAlloc(P *at, size_t size) { CURRENT return allocate(at, size, 0); }
R cuMemFree(P at) { CURRENT return release(at, 0); }
R cuMemHostAlloc(void **at, size_t size, unsigned flags) { CURRENT (void)flags; return allocate((P *)at, size, 1); }
R cuMemFreeHost(void *at) { CURRENT return release((P)at, 1); }
static R copy(P to, P from, size_t size, void *s, P device) {
  Stream *stream = stream_of(s); Memory *host = holding(device == to ? from : to, size);
  if (!holding(device, size) || !stream->alive) return INVALID_VALUE;
  if (stream->capturing) return CAPTURING;
  int deferred = host && host->pinned; void *copied = NULL;
  if (!deferred && device == to) { copied = memcpy(malloc(size), (void *)from, size); from = (P)copied; }
  queue(stream, (Op){.kind = COPY, .to = to, .from = from, .size = size, .copied = copied});
  say("{\"copy\": %zu, \"pinned\": %d}", size, deferred);
  if (!deferred && device == from) drain(stream, 0, 0);
  return OK;
}
R cuMemcpyHtoDAsync(P to, void *from, size_t size, void *s) { CURRENT return copy(to, (P)from, size, s, to); }
R cuMemcpyDtoHAsync(void *to, P from, size_t size, void *s) { CURRENT return copy((P)to, from, size, s, from); }
R cuMemsetD8Async(P to, unsigned char v, size_t size, void *s) {
  CURRENT if (!holding(to, size)) return INVALID_VALUE;
  queue(stream_of(s), (Op){.kind = SET, .to = to, .from = v, .size = size}); return OK;
}
R cuPointerGetAttribute(void *out, int which, P at) {
  CURRENT Memory *m = holding(at, 1); if (!m) return INVALID_VALUE;
  if (which == 1) *(void **)out = (void *)(P)setting("FAKE_CUDA_CONTEXT", m->device + 1);
  else if (which == 2) *(unsigned *)out = m->pinned ? 1 : 2;
  else if (which == 9) *(int *)out = m->device;
  else return INVALID_VALUE;
  return OK;
}

/* --- streams and events ---------------------------------------------------------------------------------------- */
R cuStreamCreate(void **s, unsigned flags) {
  CURRENT if (flags != 1 || ns == MAX) return INVALID_VALUE; /* the engine's must not wait for the default stream */
  Stream *made = streams[ns++] = new(sizeof(Stream)); streams_made++; alive[DEVICE][STREAMS]++;
  made->alive = 1; made->device = DEVICE; *s = made; return OK;
}
R cuStreamDestroy(Stream *s) {
  CURRENT if (!s->alive || s->device != DEVICE) return INVALID_HANDLE;
  drain(s, 0, 0); s->alive = 0; alive[DEVICE][STREAMS]--;
  for (int i = 0; i < ns; i++) if (streams[i] == s) { streams[i] = streams[--ns]; break; }
  return OK;
}
R cuStreamSynchronize(void *s) {
  long pause = setting("FAKE_CUDA_SLEEP", 0); if (pause) usleep(pause);
  CURRENT if (!stream_of(s)->alive) return INVALID_HANDLE;
  if (stream_of(s)->capturing) return CAPTURING;
  drain(stream_of(s), 0, 0); return aside ? OK : sticky;
}
R cuStreamQuery(void *s) { CURRENT return stream_of(s)->head ? NOT_READY : OK; }
R cuStreamIsCapturing(void *s, int *status) {
  CURRENT *status = stream_of(s)->capturing; return stream_of(s)->alive ? OK : INVALID_HANDLE;
}
R cuStreamWaitEvent(void *s, Event *e, unsigned flags) {
  CURRENT if (flags || !e->alive || !stream_of(s)->alive) return INVALID_HANDLE;
  if (e->issued) queue(stream_of(s), (Op){.kind = WAIT, .event = e, .seq = e->issued, .other = e->stream});
  say("{\"wait\": %llu}", (P)s); return OK;
}
R cuEventCreate(Event **e, unsigned flags) {
  CURRENT (void)flags; *e = new(sizeof(Event)); **e = (Event){1, DEVICE, 0, 0, NULL}; alive[DEVICE][EVENTS]++;
  return OK;
}
R cuEventDestroy(Event *e) { /* waits that are queued still look at it */
  CURRENT if (!e->alive) return INVALID_HANDLE;
  e->alive = 0; alive[e->device][EVENTS]--; return OK;
}
R cuEventDestroy_v2(Event *e) { return cuEventDestroy(e); } /* by this name for those who do not ask cuGetProcAddress */
R cuEventRecord(Event *e, void *s) {
  CURRENT if (!e->alive || !stream_of(s)->alive) return INVALID_HANDLE;
  e->stream = stream_of(s); queue(e->stream, (Op){.kind = RECORD, .event = e, .seq = ++e->issued}); return OK;
}
R cuEventQuery(Event *e) { CURRENT return !e->alive ? INVALID_HANDLE : e->done >= e->issued ? OK : NOT_READY; }
R cuEventSynchronize(Event *e) {
  CURRENT if (!e->alive) return INVALID_HANDLE;
  if (e->issued) drain(e->stream, e, e->issued);
  return sticky;
}

/* --- modules --------------------------------------------------------------------------------------------------- */
R cuModuleLoadData(void **out, const char *image) {
  CURRENT Module *m = new(sizeof *m);
  if (sscanf(image, "%63s %31s", m->name, m->signature) != 2) return INVALID_IMAGE;
  m->alive = 1; m->device = DEVICE; m->threads = setting("FAKE_CUDA_THREADS", 1024); alive[DEVICE][MODULES]++;
  say("{\"module\": \"%s\"}", m->name); *out = m; return OK;
}
R cuModuleUnload(Module *m) {
  CURRENT if (!m->alive || m->device != DEVICE) return INVALID_HANDLE;
  m->alive = 0; alive[DEVICE][MODULES]--; return OK;
}
R cuModuleGetFunction(void **f, Module *m, const char *name) {
  CURRENT if (strcmp(name, m->name)) return NOT_FOUND;
  *f = m; return OK;
}
R cuFuncGetAttribute(int *v, int which, Module *f) {
  CURRENT *v = which == 0 ? f->threads : which == 8 ? f->shared : 0; return OK;
}
R cuFuncSetAttribute(Module *f, int which, int v) {
  CURRENT if (which != 8 || v > setting("FAKE_CUDA_SHARED", 232448)) return INVALID_VALUE;
  f->shared = v; say("{\"shared_opt_in\": %d, \"kernel\": \"%s\"}", v, f->name); return OK;
}

/* --- launches and graphs --------------------------------------------------------------------------------------- */
typedef struct { int id; char pad[4]; union { char bytes[64]; int flag; } value; } Attribute;
typedef struct { unsigned grid[3], block[3], shared; Stream *stream; Attribute *attributes; unsigned count; } Config;
typedef struct { Module *f; unsigned grid[3], block[3], shared; void **args, **extra, *kernel, *context; } NodeParams;
static R node_from(Node *n, Module *f, const unsigned *grid, const unsigned *block, unsigned shared, void **args) {
  if (!f->alive || f->device != DEVICE) return INVALID_HANDLE;
  if (shared > 49152 && shared > (unsigned)f->shared) return INVALID_VALUE;
  n->f = f; n->shared = shared; memcpy(n->grid, grid, 12); memcpy(n->block, block, 12);
  int used = strlen(f->signature);
  for (int i = 0; i < used + 2; i++)
    n->args[i] = i < used && f->signature[i] == 'i' ? (P)(long long)*(int32_t *)args[i] : *(P *)args[i];
  return OK;
}
R cuLaunchKernelEx(const Config *c, Module *f, void **args, void **extra) {
  CURRENT Node n = {0}; Stream *s = stream_of(c->stream); if (extra || !s->alive) return INVALID_VALUE;
  TRY(node_from(&n, f, c->grid, c->block, c->shared, args));
  for (unsigned i = 0; i < c->count; i++) if (c->attributes[i].id == 6) n.pdl = c->attributes[i].value.flag;
  if (!s->capturing) { queue(s, (Op){.kind = KERNEL, .node = n}); return OK; }
  if (s->graph->count == NODES) return NO_MEMORY;
  *(s->graph->nodes[s->graph->count++] = malloc(sizeof n)) = n; return OK;
}
R cuStreamBeginCapture(Stream *s, int mode) {
  /* 1, thread-local: other threads may allocate meanwhile */
  CURRENT if ((P)s < 3 || mode != 1 || s->capturing) return INVALID_VALUE;
  s->graph = new(sizeof(Graph)); s->graph->alive = 1; s->graph->device = DEVICE; alive[DEVICE][GRAPHS]++;
  s->capturing = 1; return OK;
}
R cuStreamEndCapture(Stream *s, Graph **g) {
  CURRENT if (!s->capturing) return INVALID_VALUE;
  s->capturing = 0; *g = s->graph; return OK;
}
static R info(Stream *s, int *status, P *id, Graph **g, Node ***nodes, void **edges, size_t *n) {
  static char none[8]; static __thread Node *last; *status = s->capturing; if (!s->capturing) return OK;
  if (id) *id = 1;
  if (g) *g = s->graph;
  if (s->graph->count) last = s->graph->nodes[s->graph->count - 1];
  if (nodes) *nodes = &last;
  if (edges) *edges = none;
  *n = s->graph->count > 0; return OK;
}
R cuStreamGetCaptureInfo(Stream *s, int *status, P *id, Graph **g, Node ***nodes, void **edges, size_t *n) {
  CURRENT return info(s, status, id, g, nodes, edges, n);
}
R cuStreamGetCaptureInfo_v2(Stream *s, int *status, P *id, Graph **g, Node ***nodes, size_t *n) {
  CURRENT return info(s, status, id, g, nodes, NULL, n);
}
R cuGraphInstantiate(Exec **x, Graph *g, P flags) {
  CURRENT (void)flags; Exec *made = *x = new(sizeof(Exec)); alive[DEVICE][EXECS]++;
  *made = (Exec){1, DEVICE, execs_made++, g->count, calloc(NODES, sizeof(Node)), calloc(NODES, sizeof(Node *))};
  for (int i = 0; i < g->count; i++) { made->nodes[i] = *g->nodes[i]; made->origin[i] = g->nodes[i]; }
  say("{\"instantiated\": %d, \"nodes\": %d}", made->number, g->count); return OK;
}
R cuGraphInstantiateWithFlags(Exec **x, Graph *g, P flags) { return cuGraphInstantiate(x, g, flags); }
R cuGraphDestroy(Graph *g) {
  CURRENT if (!g->alive) return INVALID_HANDLE;
  g->alive = 0; alive[g->device][GRAPHS]--; return OK;
}
R cuGraphExecDestroy(Exec *x) {
  CURRENT if (!x->alive) return INVALID_HANDLE;
  alive[x->device][EXECS]--; free(x->nodes); free(x->origin); memset(x, 0, sizeof *x); return OK;
}
R cuGraphExecKernelNodeSetParams(Exec *x, Node *node, const NodeParams *p) {
  CURRENT if (!x->alive) return INVALID_HANDLE;
  for (int i = 0; i < x->count; i++)
    if (x->origin[i] == node) {
      say("{\"set\": \"%s\"}", p->f->name);
      return node_from(&x->nodes[i], p->f, p->grid, p->block, p->shared, p->args);
    }
  return INVALID_VALUE;
}
R cuGraphLaunch(Exec *x, void *s) {
  CURRENT Stream *stream = stream_of(s); if (!x->alive || !stream->alive) return INVALID_HANDLE;
  for (int i = 0; i < x->count; i++) queue(stream, (Op){.kind = KERNEL, .node = x->nodes[i], .exec = x->number});
  return OK;
}

R cuGetProcAddress_v2(const char *symbol, void **f, int version, P flags, int *status) {
  int old = !strcmp(symbol, "cuStreamGetCaptureInfo") && version < 12030;
  char *lacks = getenv("FAKE_CUDA_LACKS");
  *f = version > setting("FAKE_CUDA_DRIVER", 13000) || (lacks && !strcmp(lacks, symbol)) ? NULL
     : dlsym(RTLD_DEFAULT, old ? "cuStreamGetCaptureInfo_v2" : symbol);
  (void)flags; if (status) *status = !*f;
  return *f ? OK : NOT_FOUND;
}
