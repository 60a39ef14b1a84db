/* Classifies a binary PPM file (P6) of a bundle's image size: classify BUNDLE.fsk IMAGE.ppm [BUDGET]. See docs/c.md. */
#include <ctype.h>
#include <fracskip.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(const char *what, const char *why) {
  fprintf(stderr, "classify: %s: %s\n", what, why);
  return 1;
}

/* The next number of a PPM's header, after blanks and comments, and the character that ends it; -1 if there is none. */
static long next_number(FILE *file) {
  int c = fgetc(file), comment = 0;
  for (; isspace(c) || c == '#' || (comment && c != EOF); c = fgetc(file)) comment = c == '#' || (comment && c != '\n');
  long value = isdigit(c) ? 0 : -1;
  for (; isdigit(c) && value < 1000000; c = fgetc(file)) value = 10 * value + (c - '0');
  return value;
}

/* Reads the pixels of a whole PPM of this size; why not, or NULL. */
static const char *read_ppm(const char *path, long width, long height, uint8_t *pixels) {
  FILE *file = fopen(path, "rb");
  if (!file) return "cannot be opened";
  int is_ppm = fgetc(file) == 'P' && fgetc(file) == '6';
  long found_width = next_number(file), found_height = next_number(file), most = next_number(file);
  size_t bytes = (size_t)(3 * width * height);
  const char *why = NULL;
  if (!is_ppm || most != 255) why = "is no binary PPM (P6) of 8 bits a channel";
  else if (found_width != width || found_height != height) why = "is not of the bundle's image size";
  else if (fread(pixels, 1, bytes, file) != bytes) why = "ends within its pixels";
  fclose(file);
  return why;
}

int main(int argc, char **argv) {
  if (argc < 3 || argc > 4) return fail("usage", "classify BUNDLE.fsk IMAGE.ppm [BUDGET]");
  fracskip_error error;
  fracskip_session *session;
  if (fracskip_open_file(argv[1], NULL, &session, &error)) return fail("open", error.text);
  fracskip_info info = {.size = sizeof info};
  fracskip_describe(session, &info, &error);
  size_t bytes = (size_t)info.height * (size_t)info.width * (size_t)info.channels;
  uint8_t *pixels = malloc(bytes);
  const char *why = !pixels ? "out of memory" : info.channels != 3 ? "the bundle takes no RGB" : read_ppm(argv[2], info.width, info.height, pixels);
  int32_t index = 0;
  float cost = 0;
  fracskip_request request = {.size = sizeof request, .images = pixels, .images_bytes = bytes, .count = 1};
  if (argc == 4) request.by = FRACSKIP_BY_BUDGET, request.budget = atof(argv[3]);
  fracskip_answer answer = {.size = sizeof answer, .classes = &index, .classes_room = 1, .costs = &cost, .costs_room = 1};
  if (!why && fracskip_run(session, &request, &answer, &error)) why = error.text;
  if (!why) printf("%s, cost %.6f\n", fracskip_class_name(session, index), cost);
  free(pixels);
  fracskip_close(session);
  return why ? fail(argv[2], why) : 0;
}
