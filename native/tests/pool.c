/*
 * Runs a bundle on pools of threads of the caller's, and prints for tests/native/test_c_pool.py how each went.
 *
 *   pool BUNDLE IMAGES
 *
 * Steps of BUNDLE's network take so long that tasks share them; IMAGES is a file of at least five images.
 */
#include <fracskip.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "documented.h" /* docs/c.md's parallel_for */

#define TASKS 3
#define IMAGES 5
#define MOST_LOGITS 64
#define MOST_DECISIONS 64

static const fracskip_session *used; /* by `nested` */
static uint8_t *images;
static size_t image_bytes;
static int different, calls;

static void stop(const char *what) {
  fprintf(stderr, "fault: %s\n", what);
  exit(1);
}

typedef struct {
  float logits[MOST_LOGITS];
  float costs[IMAGES];
  uint8_t decisions[MOST_DECISIONS];
} Answers;

static fracskip_status run(const fracskip_session *session, size_t count, Answers *made, fracskip_error *error) {
  memset(made, 0, sizeof *made);
  fracskip_answer answer = {.size = sizeof answer,
                            .logits = made->logits, .logits_room = MOST_LOGITS,
                            .costs = made->costs, .costs_room = IMAGES,
                            .decisions = made->decisions, .decisions_room = MOST_DECISIONS};
  fracskip_request request = {.size = sizeof request, .images = images, .images_bytes = count * image_bytes, .count = count};
  return fracskip_run(session, &request, &answer, error);
}

static Answers wanted[IMAGES + 1]; /* by number of images, of a session of one thread */

static void check(const fracskip_session *session, size_t count) {
  Answers made;
  fracskip_error error;
  if (run(session, count, &made, &error)) stop(error.text);
  if (memcmp(&made, &wanted[count], sizeof made)) different = 1;
}

/* -- pools -- */

static void serial(void *context, size_t count, fracskip_task task, void *task_context) {
  if (context != &calls) stop("not the context");
  for (size_t k = 0; k < count; ++k) task(task_context, k);
}

static void backwards(void *context, size_t count, fracskip_task task, void *task_context) {
  if (context != &calls) stop("not the context");
  while (count > 0) task(task_context, --count);
}

typedef struct {
  fracskip_task task;
  void *task_context;
  size_t index;
} Work;

static void *do_work(void *given) {
  Work *work = given;
  work->task(work->task_context, work->index);
  return NULL;
}

/* The thread that called it does nothing. */
static void threads(void *context, size_t count, fracskip_task task, void *task_context) {
  (void)context;
  pthread_t started[TASKS];
  Work work[TASKS];
  for (size_t k = 0; k < count; ++k) {
    work[k] = (Work){task, task_context, k};
    if (pthread_create(&started[k], NULL, do_work, &work[k])) stop("no thread");
  }
  for (size_t k = 0; k < count; ++k) pthread_join(started[k], NULL);
}

/* A thread that waits for its tasks takes on others meanwhile: here another run of the same session. */
static void nested(void *context, size_t count, fracskip_task task, void *task_context) {
  static int depth;
  if (++depth <= 2) {
    check(used, 1);
    check(used, IMAGES);
  }
  --depth;
  serial(context, count, task, task_context);
}

static void none(void *context, size_t count, fracskip_task task, void *task_context) {
  (void)context, (void)count, (void)task, (void)task_context;
}

static void one(void *context, size_t count, fracskip_task task, void *task_context) {
  (void)context, (void)count;
  task(task_context, 0);
}

static void twice(void *context, size_t count, fracskip_task task, void *task_context) {
  serial(context, count, task, task_context);
  backwards(context, count, task, task_context);
}

static const struct {
  const char *name;
  fracskip_parallel_for parallel_for;
} pools[] = {{"none of its own", NULL},  {"serial", serial}, {"backwards", backwards}, {"threads", threads}, {"nested", nested},
             {"documented", parallel_for}, {"none", none},     {"one", one},             {"twice", twice}};

static fracskip_parallel_for at_hand;

static void counted(void *context, size_t count, fracskip_task task, void *task_context) {
  if (count != TASKS && count != 2) stop("another number of tasks"); /* 2: images that are spread, where another run has the team */
  __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
  at_hand(context, count, task, task_context);
}

static fracskip_session *opened(const char *path, const fracskip_options *options) {
  fracskip_error error;
  fracskip_session *session;
  if (fracskip_open_file(path, options, &session, &error)) stop(error.text);
  return session;
}

/* Callers of one session at once, on threads that are the pool's as well as any. */
static void *call(void *given) {
  for (size_t count = 1; count <= IMAGES; ++count) check(given, count);
  return NULL;
}

static void try_pool(const char *path, size_t index) {
  at_hand = pools[index].parallel_for;
  fracskip_options options = {.size = sizeof options, .threads = TASKS, .parallel_for = at_hand ? counted : NULL, .parallel_for_context = &calls};
  fracskip_session *session = opened(path, &options);
  used = session;
  different = 0;
  for (size_t count = 1; count <= IMAGES; ++count) {
    Answers made;
    fracskip_error error;
    calls = 0;
    fracskip_status status = run(session, count, &made, &error);
    if (!status && memcmp(&made, &wanted[count], sizeof made)) different = 1;
    printf("%s\t%zu\t%d\t%d\t%s\n", pools[index].name, count, calls, status, different ? "different" : error.text);
  }
  if (at_hand == threads || !at_hand) {
    pthread_t callers[2];
    for (int k = 0; k < 2; ++k) {
      if (pthread_create(&callers[k], NULL, call, session)) stop("no thread");
    }
    for (int k = 0; k < 2; ++k) pthread_join(callers[k], NULL);
    if (different) stop("another answer where two call at once");
  }
  fracskip_close(session);
}

/* Programs whose fracskip_options end before the pool. */
static void try_old_options(const char *path) {
  size_t size = offsetof(fracskip_options, parallel_for);
  fracskip_options *options = malloc(size); /* one byte beyond is a report */
  memset(options, 0, size);
  options->size = size;
  options->threads = 2;
  fracskip_session *session = opened(path, options);
  check(session, IMAGES);
  fracskip_close(session);
  free(options);
  fracskip_options unthreaded = {.size = sizeof unthreaded, .parallel_for = serial};
  fracskip_error error;
  fracskip_status status = fracskip_open_file(path, &unthreaded, &session, &error);
  printf("no threads\t0\t0\t%d\t%s\n", status, error.text);
}

int main(int argc, char **argv) {
  if (argc != 3) stop("pool BUNDLE IMAGES");
  fracskip_session *alone = opened(argv[1], NULL);
  fracskip_info info = {.size = sizeof info};
  if (fracskip_describe(alone, &info, NULL)) stop("no description");
  if (info.classes * IMAGES > MOST_LOGITS || info.blocks * IMAGES > MOST_DECISIONS) stop("too large");
  image_bytes = (size_t)(info.height * info.width * info.channels);
  images = malloc(IMAGES * image_bytes);
  FILE *file = fopen(argv[2], "rb");
  if (!file || fread(images, image_bytes, IMAGES, file) != IMAGES) stop(argv[2]);
  fclose(file);
  for (size_t count = 1; count <= IMAGES; ++count) {
    if (run(alone, count, &wanted[count], NULL)) stop("a run");
  }
  fracskip_close(alone);
  for (size_t k = 0; k < sizeof pools / sizeof *pools; ++k) try_pool(argv[1], k);
  try_old_options(argv[1]);
  if (different) stop("another answer than a single thread's");
  free(images);
  return 0;
}
