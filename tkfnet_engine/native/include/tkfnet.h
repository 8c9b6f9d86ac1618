/* libtkfnet: names the expression on a face. C99, no other headers of ours or of anybody's.
 *
 *     tkf_engine_options options = {.struct_size = sizeof options};  // everything else zero: the defaults
 *     tkf_engine *engine = NULL;
 *     tkf_session *session = NULL;
 *     float probabilities[TKF_MAX_CLASSES];
 *
 *     if (tkf_engine_open("face.tkf", &options, &engine) != TKF_OK ||
 *         tkf_session_open(engine, NULL, &session) != TKF_OK ||
 *         tkf_run(session, rgb, 1, probabilities) != TKF_OK)   // rgb: uint8, size x size x 3
 *       fprintf(stderr, "%s\n", tkf_last_error(session));
 *     else
 *       printf("%s: %.2f\n", tkf_label(engine, 0), probabilities[0]);
 *     tkf_session_close(session);                              // both take NULL
 *     tkf_engine_close(engine);
 *
 * An engine is what an engine file (docs/engine-file.md) holds: weights, plans, compiled code. Any number of threads
 * may use one. A session is what one request at a time needs: buffers and a stream. Open one per thread; a session is
 * not for two threads at once, which it notices and refuses (TKF_ERROR_BUSY). A session keeps what it needs of its
 * engine alive, so the two may be closed in either order.
 *
 * Every function that can fail returns a status and is safe to call again. A result is written on TKF_OK only.
 * Structures begin with `struct_size`, which the caller sets to its own sizeof: a library that knows more fields takes
 * those that are missing as zero, and one that knows fewer refuses the rest unless it is zero. Zero is every field's
 * default.
 */
#ifndef TKFNET_H
#define TKFNET_H

#include <stddef.h>
#include <stdint.h>

#if defined(TKF_STATIC)
#define TKF_API
#else
#define TKF_API __attribute__((visibility("default")))
#endif
#define TKF_MUST_USE __attribute__((warn_unused_result))

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tkf_engine tkf_engine;
typedef struct tkf_session tkf_session;

/* --- version -------------------------------------------------------------------------------------------- */

#define TKF_VERSION "0.1.0"
/* Raised by every change after which a program has to be compiled again. */
#define TKF_ABI_VERSION 1
/* The most classes that an engine file may have. */
#define TKF_MAX_CLASSES 1024

/* TKF_VERSION and TKF_ABI_VERSION of the library that is running, which may be newer than this header. */
TKF_API const char *tkf_version(void);
TKF_API uint32_t tkf_abi_version(void);

/* --- status --------------------------------------------------------------------------------------------- */

typedef enum tkf_status {
  TKF_OK = 0,
  TKF_ERROR_ARGUMENT = 1,   /* an argument that the function does not take */
  TKF_ERROR_FILE = 2,       /* no engine file, or a damaged one */
  TKF_ERROR_VERSION = 3,    /* an engine file of a newer version: upgrade the library */
  TKF_ERROR_UNTRUSTED = 4,  /* it holds machine code, and `allow_native_code` is not set */
  TKF_ERROR_BACKEND = 5,    /* the library or driver that the engine runs on is missing, too old, or refuses it */
  TKF_ERROR_DEVICE = 6,     /* no such GPU, or the engine holds no code for it */
  TKF_ERROR_MEMORY = 7,     /* memory of the host or the GPU does not suffice */
  TKF_ERROR_ANSWER = 8,     /* numbers that are not finite, or not the ones the file's own check expects */
  TKF_ERROR_BUSY = 9,       /* the session is in use by another thread, or by tkf_submit */
  TKF_ERROR_LOST = 10,      /* the GPU context of this process is unusable: start a new process */
  TKF_ERROR_INTERNAL = 11   /* a fault of this library: please report it */
} tkf_status;

/* "TKF_ERROR_FILE"; "unknown status" for a number that is none. Never NULL. */
TKF_API const char *tkf_status_name(tkf_status status);

/* What the last call that failed found, expected and advises: one line of printable ASCII, valid until the next call
 * with the same argument. Of a session, its own last failure. With NULL, the calling thread's last failure of a
 * function that takes no session. "" if there was none. Never NULL. */
TKF_API const char *tkf_last_error(const tkf_session *session);

/* --- log ------------------------------------------------------------------------------------------------ */

typedef enum tkf_log_level { TKF_LOG_INFO = 0, TKF_LOG_WARNING = 1 } tkf_log_level;

/* level; one line without a line feed, valid during the call; what tkf_set_log was given. */
typedef void (*tkf_log_callback)(tkf_log_level level, const char *message, void *user_data);

/* Who is told what the library does: which backend it opened, where it found it. NULL, as at the start, is nobody. The
 * callback must be thread-safe and must not call this library. Once this returns, the old callback is not running any
 * more. */
TKF_API void tkf_set_log(tkf_log_callback callback, void *user_data);

/* --- engine --------------------------------------------------------------------------------------------- */

typedef enum tkf_cpu_math {
  TKF_CPU_MATH_EXACT = 0,   /* the precision the engine was built and verified in */
  TKF_CPU_MATH_BFLOAT16 = 1 /* float parts in bfloat16 where the processor has it: faster, and not what was verified */
} tkf_cpu_math;

typedef struct tkf_engine_options {
  size_t struct_size;
  /* Which GPU, counted from 0, of an engine for CUDA; CUDA_VISIBLE_DEVICES chooses what is counted. */
  int32_t device;
  /* Of the CPU, 0 to 1024; 0 is every core that this process may use. Of no use to an engine for CUDA. */
  int32_t threads;
  /* Nonzero: the file may run its machine code on the GPU. Set it only for files that come from someone whose programs
   * you would run. Engines for the CPU hold none. */
  int32_t allow_native_code;
  /* A tkf_cpu_math. */
  int32_t cpu_math;
  /* The path of libopenvino_c.so, or NULL to search (docs/native.md). Of no use to an engine for CUDA. */
  const char *openvino_library;
} tkf_engine_options;

/* Opens an engine file, after checking every byte of it. options: NULL is the defaults. engine: where to put it. */
TKF_API tkf_status tkf_engine_open(const char *path, const tkf_engine_options *options,
                                   tkf_engine **engine) TKF_MUST_USE;

/* The same of `size` bytes in memory, which are copied: they may go when this returns. */
TKF_API tkf_status tkf_engine_open_memory(const void *data, size_t size, const tkf_engine_options *options,
                                          tkf_engine **engine) TKF_MUST_USE;

/* Sessions that are still open keep working. NULL does nothing. */
TKF_API void tkf_engine_close(tkf_engine *engine);

/* Facts of an opened engine. What they return lives as long as the engine. With NULL they return 0 or "". */
TKF_API int32_t tkf_input_size(const tkf_engine *engine);  /* the side of the square input, pixels */
TKF_API int32_t tkf_class_count(const tkf_engine *engine); /* 1 to TKF_MAX_CLASSES */
TKF_API int32_t tkf_max_batch(const tkf_engine *engine);   /* more images than these run in parts */
/* The name of a class, UTF-8; "" for an index that is none. */
TKF_API const char *tkf_label(const tkf_engine *engine, int32_t index);
TKF_API const char *tkf_precision(const tkf_engine *engine);  /* "float32", "float16", "int8", "float8" */
TKF_API const char *tkf_backend(const tkf_engine *engine);    /* "cuda", "openvino" */
TKF_API const char *tkf_device_name(const tkf_engine *engine); /* "NVIDIA H200", "CPU" */
TKF_API const char *tkf_facts_json(const tkf_engine *engine); /* all of docs/engine-file.md, as the file has it */

/* --- session -------------------------------------------------------------------------------------------- */

typedef enum tkf_output {
  TKF_OUTPUT_PROBABILITIES = 0, /* softmax: each image's sum to 1 */
  TKF_OUTPUT_LOGITS = 1         /* what the network itself gives */
} tkf_output;

typedef struct tkf_session_options {
  size_t struct_size;
  int32_t output; /* a tkf_output */
} tkf_session_options;

/* options: NULL is the defaults. */
TKF_API tkf_status tkf_session_open(tkf_engine *engine, const tkf_session_options *options,
                                    tkf_session **session) TKF_MUST_USE;

/* Waits for what tkf_submit began. Work of tkf_run_device must be done. NULL does nothing. */
TKF_API void tkf_session_close(tkf_session *session);

/* --- running -------------------------------------------------------------------------------------------- */

/* Names the expressions on `count` face crops of the engine's input size.
 *
 * rgb: uint8 [count, size, size, 3], R first, packed. count: from 1; more than tkf_max_batch run in parts.
 * output: float [count, classes], probabilities or logits as the session was opened for. */
TKF_API tkf_status tkf_run(tkf_session *session, const uint8_t *rgb, size_t count, float *output) TKF_MUST_USE;

typedef enum tkf_pixel_format {
  TKF_PIXEL_RGB = 0,  /* 3 bytes a pixel */
  TKF_PIXEL_BGR = 1,  /* 3 bytes, as OpenCV's */
  TKF_PIXEL_RGBA = 2, /* 4 bytes; the fourth is not looked at */
  TKF_PIXEL_BGRA = 3, /* 4 bytes; the fourth is not looked at */
  TKF_PIXEL_NV12 = 4  /* a plane of luma, and one of half the width and height with Cb and Cr in turn */
} tkf_pixel_format;

typedef enum tkf_yuv_matrix {
  TKF_YUV_BT709 = 0, /* HD video */
  TKF_YUV_BT601 = 1  /* SD video, JPEG, most webcams */
} tkf_yuv_matrix;

typedef enum tkf_yuv_range {
  TKF_YUV_LIMITED = 0, /* luma 16 to 235, chroma 16 to 240: video */
  TKF_YUV_FULL = 1     /* 0 to 255: JPEG */
} tkf_yuv_range;

typedef enum tkf_chroma_siting {
  TKF_CHROMA_LEFT = 0,  /* on the left column of each 2 x 2 luma samples, halfway between its rows: H.264, HEVC */
  TKF_CHROMA_CENTRE = 1 /* in the middle of the four: JPEG, MPEG-1 */
} tkf_chroma_siting;

/* A picture in host memory, which is only read. Chroma between its samples is interpolated linearly. */
typedef struct tkf_frame {
  size_t struct_size;
  int32_t format; /* a tkf_pixel_format */
  int32_t width;  /* pixels, 1 to 16384; even for NV12, as the height */
  int32_t height;
  const uint8_t *data; /* the first row; of NV12, of luma */
  size_t stride;       /* bytes from one row to the next; 0 is rows without a gap */
  const uint8_t *chroma; /* NV12 only: the first row of Cb and Cr; NULL is right behind the last row of luma */
  size_t chroma_stride;  /* NV12 only; 0 is the luma's */
  int32_t yuv_matrix;    /* NV12 only: a tkf_yuv_matrix */
  int32_t yuv_range;     /* NV12 only: a tkf_yuv_range */
  int32_t chroma_siting; /* NV12 only: a tkf_chroma_siting */
} tkf_frame;

/* A face in a frame: pixels from the top left, inside the frame and not empty. A box that is not square is stretched,
 * so cut square ones. */
typedef struct tkf_crop {
  const tkf_frame *frame;
  int32_t x, y, width, height;
} tkf_crop;

/* As tkf_run, of crops of any frames: cut, converted to RGB and resized as the Python package's preprocess.py does, to
 * the bit for RGB, BGR, RGBA and BGRA. */
TKF_API tkf_status tkf_run_strided(tkf_session *session, const tkf_crop *crops, size_t count,
                                   float *output) TKF_MUST_USE;

/* Only the first half of that: what the network would be shown. rgb: uint8 [count, size, size, 3]. size: 1 to 16384. */
TKF_API tkf_status tkf_prepare(const tkf_crop *crops, size_t count, int32_t size, uint8_t *rgb) TKF_MUST_USE;

/* Begins tkf_run and returns; tkf_wait ends it. One request per session at a time, of at most tkf_max_batch images.
 * rgb may go when this returns; `output` must live until tkf_wait, which writes it. */
TKF_API tkf_status tkf_submit(tkf_session *session, const uint8_t *rgb, size_t count, float *output) TKF_MUST_USE;

/* The same of tkf_run_strided. */
TKF_API tkf_status tkf_submit_strided(tkf_session *session, const tkf_crop *crops, size_t count,
                                      float *output) TKF_MUST_USE;

/* Waits for what was submitted. TKF_ERROR_ARGUMENT if nothing was. */
TKF_API tkf_status tkf_wait(tkf_session *session) TKF_MUST_USE;

/* Images in GPU memory -> logits in GPU memory, without a copy and in the order of the caller's stream. CUDA only.
 *
 * pixels: uint8 [count, size, size, 3], RGB, packed. count: 1 to tkf_max_batch. logits: float [count, classes], whatever
 * the session was opened for. Both on this engine's GPU and on 16-byte boundaries. stream: a CUstream (a cudaStream_t
 * is the same), NULL for the default stream; it must not be in capture. Returns as soon as the work is queued: leave
 * `pixels` alone until the stream has come this far. Unlike tkf_run it does not look whether the answer is finite. */
TKF_API tkf_status tkf_run_device(tkf_session *session, const void *pixels, size_t count, float *logits,
                                  void *stream) TKF_MUST_USE;

#ifdef __cplusplus
}
#endif

#endif
