/* Names the expression on one face: one_image ENGINE.tkf FACE.ppm [X Y WIDTH HEIGHT]
 *
 * PPM (P6, 8 bits) because it needs no library: `convert face.jpg face.ppm` makes one. */
#include <stdio.h>
#include <stdlib.h>

#include "tkfnet.h"

static uint8_t *read_ppm(const char *path, int *width, int *height) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) return NULL;
  uint8_t *pixels = NULL;
  int most = 0;
  if (fscanf(file, "P6 %d %d %d", width, height, &most) == 3 && fgetc(file) != EOF && most == 255 && *width > 0 &&
      *height > 0 && *width <= 16384 && *height <= 16384) {
    const size_t size = (size_t)*width * (size_t)*height * 3;
    pixels = malloc(size);
    if (pixels != NULL && fread(pixels, 1, size, file) != size) {
      free(pixels);
      pixels = NULL;
    }
  }
  fclose(file);
  return pixels;
}

int main(int count, char **arguments) {
  if (count != 3 && count != 7) {
    fprintf(stderr, "usage: %s ENGINE.tkf FACE.ppm [X Y WIDTH HEIGHT]\n", arguments[0]);
    return 64;
  }
  int width = 0, height = 0;
  uint8_t *pixels = read_ppm(arguments[2], &width, &height);
  if (pixels == NULL) {
    fprintf(stderr, "%s: expected a PPM file (P6, 8 bits); make one with: convert face.jpg face.ppm\n", arguments[2]);
    return 4;
  }
  const tkf_frame frame = {
      .struct_size = sizeof frame, .format = TKF_PIXEL_RGB, .width = width, .height = height, .data = pixels};
  tkf_crop crop = {.frame = &frame, .width = width, .height = height};
  if (count == 7) {
    crop.x = atoi(arguments[3]);
    crop.y = atoi(arguments[4]);
    crop.width = atoi(arguments[5]);
    crop.height = atoi(arguments[6]);
  }

  /* The file is ours: its machine code, if it is for a GPU, may run. */
  tkf_engine_options options = {.struct_size = sizeof options, .allow_native_code = 1};
  tkf_engine *engine = NULL;
  tkf_session *session = NULL;
  float probabilities[TKF_MAX_CLASSES];
  int failed = 1;
  if (tkf_engine_open(arguments[1], &options, &engine) != TKF_OK || tkf_session_open(engine, NULL, &session) != TKF_OK) {
    fprintf(stderr, "%s\n", tkf_last_error(NULL));
  } else if (tkf_run_strided(session, &crop, 1, probabilities) != TKF_OK) {
    fprintf(stderr, "%s\n", tkf_last_error(session));
  } else {
    for (int32_t i = 0; i < tkf_class_count(engine); i++)
      printf("%-12s %5.1f %%\n", tkf_label(engine, i), 100.0 * (double)probabilities[i]);
    failed = 0;
  }
  tkf_session_close(session);
  tkf_engine_close(engine);
  free(pixels);
  return failed;
}
