/*
 * Calls the C interface, and prints what it answers for tests/native/test_c_interface.py.
 *
 *   capi describe BUNDLE
 *   capi run BUNDLE IMAGES ASKED...      default, bBUDGET or pPOINT; IMAGES is a file of pixels
 *   capi open BUNDLE...
 *   capi errors BUNDLE IMAGES
 *   capi threads BUNDLE IMAGES
 */
#include <fracskip.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREADS 4
#define ROUNDS 3

static void stop(const char *what) {
  fprintf(stderr, "fault: %s\n", what);
  exit(1);
}

static uint8_t *read_whole(const char *path, size_t *bytes) {
  FILE *file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) stop(path);
  long size = ftell(file);
  rewind(file);
  /* Of exactly that size: one byte beyond is a report. */
  uint8_t *data = malloc((size_t)size);
  if (!data || fread(data, 1, (size_t)size, file) != (size_t)size) stop(path);
  fclose(file);
  *bytes = (size_t)size;
  return data;
}

static fracskip_session *opened(const char *path, int32_t threads) {
  fracskip_options options = {.size = sizeof options, .threads = threads};
  fracskip_error error;
  fracskip_session *session;
  if (fracskip_open_file(path, &options, &session, &error)) stop(error.text);
  if (error.text[0]) stop("an error without an error");
  return session;
}

static fracskip_info described(const fracskip_session *session) {
  fracskip_info info = {.size = sizeof info};
  fracskip_error error;
  if (fracskip_describe(session, &info, &error)) stop(error.text);
  return info;
}

/* -- what a bundle is -- */

static void describe(const char *path) {
  fracskip_session *session = opened(path, 3);
  fracskip_info info = described(session);
  printf("{\"digest\": \"%s\", \"isa\": \"%s\", \"image\": [%d, %d, %d], \"resize\": %d, \"blocks\": %d, \"threads\": %d, \"budgets\": ", info.digest, info.instruction_set, info.height,
         info.width, info.channels, info.resize, info.blocks, info.threads);
  if (info.has_budget) printf("[%.17g, %.17g]", info.smallest_budget, info.largest_budget);
  else printf("null");
  printf(", \"classes\": [");
  for (int32_t k = 0; k < info.classes; ++k) printf("%s\"%s\"", k ? ", " : "", fracskip_class_name(session, k));
  printf("], \"isas\": [");
  for (int32_t k = 0; fracskip_instruction_set(k); ++k) printf("%s\"%s\"", k ? ", " : "", fracskip_instruction_set(k));
  printf("], \"points\": [");
  for (int32_t k = 0; k < info.points; ++k) {
    fracskip_point point = {.size = sizeof point};
    if (fracskip_describe_point(session, k, &point, NULL)) stop("a point");
    printf("%s[%.17g, %.17g]", k ? ", " : "", point.cost, point.accuracy);
  }
  printf("], \"networks\": [");
  for (int32_t k = 0; k < info.networks; ++k) {
    fracskip_network network = {.size = sizeof network};
    if (fracskip_describe_network(session, k, &network, NULL)) stop("a network");
    printf("%s[\"%s\", [%d, %d], [", k ? ", " : "", network.name, network.height, network.width);
    for (int32_t o = 0; o < network.options; ++o) printf("%s\"%s\"", o ? ", " : "", fracskip_option_name(session, k, o));
    printf("], [");
    for (int32_t b = 0; b < network.blocks; ++b) printf("%s\"%s\"", b ? ", " : "", fracskip_block_name(session, k, b));
    printf("]]");
    if (fracskip_option_name(session, k, network.options) || fracskip_block_name(session, k, network.blocks)) stop("a name too many");
  }
  printf("], \"version\": \"%s\"}\n", fracskip_version());
  if (fracskip_class_name(session, info.classes) || fracskip_class_name(session, -1) || fracskip_class_name(NULL, 0)) stop("a name too many");
  if (fracskip_option_name(session, info.networks, 0) || fracskip_block_name(session, -1, 0)) stop("a name too many");
  if (fracskip_api_version() != FRACSKIP_API_VERSION) stop("another version");
  fracskip_close(session);
}

/* -- runs -- */

/* With exactly the room that is needed. */
static fracskip_answer make_answer(const fracskip_info *info, size_t count) {
  size_t logits = count * (size_t)info->classes, decisions = count * (size_t)info->blocks;
  fracskip_answer answer = {
      .size = sizeof answer,
      .logits = malloc(logits * sizeof(float)), .logits_room = logits,
      .probabilities = malloc(logits * sizeof(float)), .probabilities_room = logits,
      .classes = malloc(count * sizeof(int32_t)), .classes_room = count,
      .costs = malloc(count * sizeof(float)), .costs_room = count,
      .microseconds = malloc(count * sizeof(float)), .microseconds_room = count,
      .networks = malloc(count), .networks_room = count,
      .escalations = malloc(count), .escalations_room = count,
      .decisions = malloc(decisions), .decisions_room = decisions,
  };
  return answer;
}

static void free_answer(fracskip_answer *answer) {
  free(answer->logits);
  free(answer->probabilities);
  free(answer->classes);
  free(answer->costs);
  free(answer->microseconds);
  free(answer->networks);
  free(answer->escalations);
  free(answer->decisions);
}

static void print_floats(const char *name, const float *values, size_t count) {
  printf("\"%s\": [", name);
  for (size_t i = 0; i < count; ++i) printf("%s%.9g", i ? ", " : "", (double)values[i]);
  printf("], ");
}

static void print_bytes(const char *name, const uint8_t *values, size_t count) {
  printf("\"%s\": [", name);
  for (size_t i = 0; i < count; ++i) printf("%s%d", i ? ", " : "", values[i]);
  printf("], ");
}

static fracskip_request asked(const char *what, const uint8_t *images, size_t bytes, size_t count) {
  fracskip_request request = {.size = sizeof request, .images = images, .images_bytes = bytes, .count = count};
  if (what[0] == 'b') request.by = FRACSKIP_BY_BUDGET, request.budget = atof(what + 1);
  if (what[0] == 'p') request.by = FRACSKIP_BY_POINT, request.point = atoi(what + 1);
  return request;
}

/* One line for each thing asked. */
static void run(const char *path, const char *images_path, char **what, int asks) {
  size_t bytes;
  uint8_t *images = read_whole(images_path, &bytes);
  fracskip_session *session = opened(path, 2);
  fracskip_info info = described(session);
  size_t count = bytes / (size_t)(info.height * info.width * info.channels), logits = count * (size_t)info.classes;
  for (int k = 0; k < asks; ++k) {
    fracskip_request request = asked(what[k], images, bytes, count);
    fracskip_answer made = make_answer(&info, count);
    fracskip_error error;
    int status = fracskip_run(session, &request, &made, &error);
    if (status == FRACSKIP_OK) {
      printf("{");
      print_floats("logits", made.logits, logits);
      print_floats("probabilities", made.probabilities, logits);
      print_floats("costs", made.costs, count);
      print_floats("microseconds", made.microseconds, count);
      print_bytes("networks", made.networks, count);
      print_bytes("escalations", made.escalations, count);
      print_bytes("decisions", made.decisions, count * (size_t)info.blocks);
      printf("\"classes\": [");
      for (size_t i = 0; i < count; ++i) printf("%s%d", i ? ", " : "", made.classes[i]);
      printf("]}\n");
    } else {
      printf("{\"status\": %d, \"text\": \"%s\"}\n", status, error.text);
    }
    free_answer(&made);
  }
  fracskip_close(session);
  free(images);
}

/* -- errors: what it was, the code, the text -- */

static void print_error(const char *what, fracskip_status status, const fracskip_error *error) { printf("%s\t%d\t%s\n", what, status, error->text); }

static void open_error(const char *what, const void *data, size_t bytes, const fracskip_options *options) {
  fracskip_error error;
  fracskip_session *session = (fracskip_session *)&error;
  print_error(what, fracskip_open_memory(data, bytes, options, &session, &error), &error);
  if (session) stop("a session in spite of an error");
}

static void file_error(const char *what, const char *path) {
  fracskip_error error;
  fracskip_session *session = (fracskip_session *)&error;
  print_error(what, fracskip_open_file(path, NULL, &session, &error), &error);
  if (session) stop("a session in spite of an error");
}

static void open_all(char **paths, int count) {
  for (int k = 0; k < count; ++k) {
    fracskip_error error;
    fracskip_session *session;
    print_error(paths[k], fracskip_open_file(paths[k], NULL, &session, &error), &error);
    fracskip_close(session);
  }
}

static void open_errors(const char *path) {
  fracskip_error error;
  size_t bytes;
  uint8_t *data = read_whole(path, &bytes);
  file_error("missing file", "no/such/bundle.fsk");
  file_error("folder", "/");
  file_error("no path", NULL);
  open_error("no data", NULL, 5, NULL);
  open_error("empty", data, 0, NULL);
  open_error("cut", data, bytes - 1, NULL);
  data[bytes - 1] ^= 1;
  open_error("one bit", data, bytes, NULL);
  data[bytes - 1] ^= 1;
  fracskip_options options = {.size = sizeof options, .instruction_set = "sse9"};
  open_error("instruction set", data, bytes, &options);
  options = (fracskip_options){.size = sizeof options, .threads = 257};
  open_error("threads", data, bytes, &options);
  options.threads = -1;
  open_error("threads below", data, bytes, &options);
  options.size = 4;
  open_error("options size", data, bytes, &options);
  print_error("no session to write", fracskip_open_memory(data, bytes, NULL, NULL, &error), &error);
  if (fracskip_open_file(NULL, NULL, NULL, NULL) != FRACSKIP_INVALID_ARGUMENT) stop("no error without a place for it");
  fracskip_close(NULL);
  free(data);
}

static void run_error(const char *what, const fracskip_session *session, const fracskip_request *request, const fracskip_answer *answer) {
  fracskip_error error;
  print_error(what, fracskip_run(session, request, answer, &error), &error);
}

static void run_errors(const char *path, const char *images_path) {
  fracskip_error error;
  size_t bytes;
  uint8_t *images = read_whole(images_path, &bytes);
  fracskip_session *session = opened(path, 1);
  fracskip_info info = described(session);
  size_t count = bytes / (size_t)(info.height * info.width * info.channels);
  fracskip_answer made = make_answer(&info, count);
  fracskip_request request = asked("default", images, bytes, count);
  fracskip_answer *answer = &made;

  run_error("no session", NULL, &request, answer);
  run_error("no request", session, NULL, answer);
  run_error("no answer", session, &request, NULL);
  fracskip_request other = request;
  other.size = 8;
  run_error("request size", session, &other, answer);
  other = request, other.images = NULL;
  run_error("no images", session, &other, answer);
  other = request, --other.images_bytes;
  run_error("bytes", session, &other, answer);
  other = request, other.count = SIZE_MAX / 2;
  run_error("overflow", session, &other, answer);
  other = asked("p-1", images, bytes, count);
  run_error("point", session, &other, answer);
  other = request, other.by = 7;
  run_error("by", session, &other, answer);
  other = asked("b0", images, bytes, count);
  run_error("budget 0", session, &other, answer);
  other.budget = NAN;
  run_error("budget NaN", session, &other, answer);
  other.budget = 1e-9;
  run_error("budget out of reach", session, &other, answer);
  --answer->logits_room;
  run_error("logits", session, &request, answer);
  ++answer->logits_room, --answer->decisions_room;
  run_error("decisions", session, &request, answer);
  ++answer->decisions_room, answer->classes_room = 0;
  run_error("classes", session, &request, answer);
  answer->classes_room = count, answer->size = 0;
  run_error("answer size", session, &request, answer);
  answer->size = sizeof *answer;
  fracskip_point point = {.size = sizeof point};
  print_error("describe a point", fracskip_describe_point(session, info.points, &point, &error), &error);
  fracskip_network network = {.size = sizeof network};
  print_error("describe a network", fracskip_describe_network(session, -1, &network, &error), &error);
  print_error("info", fracskip_describe(session, NULL, &error), &error);

  /* Nothing of that is left: the same session answers, also if nobody asks for anything. */
  run_error("sound", session, &request, answer);
  fracskip_answer nothing = {.size = sizeof nothing};
  run_error("nothing asked", session, &request, &nothing);
  other = asked("default", NULL, 0, 0);
  run_error("no image", session, &other, answer);
  free_answer(answer);
  fracskip_close(session);
  free(images);
}

/* -- threads that share a session -- */

typedef struct {
  const fracskip_session *session;
  const fracskip_info *info;
  const uint8_t *images;
  size_t bytes, count;
  const fracskip_answer *wanted;
  int different;
} Caller;

static void *call(void *given) {
  Caller *caller = given;
  for (int round = 0; round < ROUNDS; ++round) {
    fracskip_answer made = make_answer(caller->info, caller->count);
    fracskip_request request = asked("default", caller->images, caller->bytes, caller->count);
    fracskip_error error;
    if (fracskip_run(caller->session, &request, &made, &error)) stop(error.text);
    size_t logits = caller->count * (size_t)caller->info->classes * sizeof(float);
    caller->different += memcmp(made.logits, caller->wanted->logits, logits) != 0;
    caller->different += memcmp(made.costs, caller->wanted->costs, caller->count * sizeof(float)) != 0;
    free_answer(&made);
    request.count = 1; /* too many bytes: errors are each caller's own */
    if (fracskip_run(caller->session, &request, caller->wanted, &error) != FRACSKIP_INVALID_ARGUMENT || !error.text[0]) ++caller->different;
  }
  return NULL;
}

static void threads(const char *path, const char *images_path) {
  size_t bytes;
  uint8_t *images = read_whole(images_path, &bytes);
  fracskip_session *session = opened(path, 2);
  fracskip_info info = described(session);
  size_t count = bytes / (size_t)(info.height * info.width * info.channels);
  fracskip_answer wanted = make_answer(&info, count);
  fracskip_request request = asked("default", images, bytes, count);
  fracskip_error error;
  if (fracskip_run(session, &request, &wanted, &error)) stop(error.text);
  Caller callers[THREADS];
  pthread_t started[THREADS];
  for (int k = 0; k < THREADS; ++k) {
    callers[k] = (Caller){session, &info, images, bytes, count, &wanted, 0};
    if (pthread_create(&started[k], NULL, call, &callers[k])) stop("no thread");
  }
  for (int k = 0; k < THREADS; ++k) {
    pthread_join(started[k], NULL);
    if (callers[k].different) stop("another answer than a single thread's");
  }
  printf("%d threads: the same answers\n", THREADS);
  free_answer(&wanted);
  fracskip_close(session);
  free(images);
}

int main(int argc, char **argv) {
  if (argc == 3 && !strcmp(argv[1], "describe")) describe(argv[2]);
  else if (argc > 4 && !strcmp(argv[1], "run")) run(argv[2], argv[3], argv + 4, argc - 4);
  else if (argc > 2 && !strcmp(argv[1], "open")) open_all(argv + 2, argc - 2);
  else if (argc == 4 && !strcmp(argv[1], "errors")) open_errors(argv[2]), run_errors(argv[2], argv[3]);
  else if (argc == 4 && !strcmp(argv[1], "threads")) threads(argv[2], argv[3]);
  else stop("capi describe|run|open|errors|threads BUNDLE [IMAGES [ASKED...]]");
  return 0;
}
