/*
 * fracskip's native engine in C11: a bundle (.fsk, of one network or of a cascade), images in; classes, decisions and
 * costs out. docs/c.md tells how to build and link it, examples/classify.c uses it.
 *
 * Errors. What may fail returns a fracskip_status and takes a fracskip_error, or NULL: memory of the caller's, so that
 * any number of threads may fail at once. Its text is one line that says what was given, what is allowed and what to do;
 * after FRACSKIP_OK it is empty. No C++ exception leaves the library. Where a call failed, what it would have written is
 * unspecified; the session is as before.
 *
 * Threads. A session never changes after it was opened: any number of threads may call everything that takes a const
 * session at once. Sessions may be opened and closed at any time, each closed once, when no call uses it any more. A
 * session has threads of its own, or hands tasks to the caller's pool and starts none.
 *
 * Versions. FRACSKIP_API_VERSION is of this header, fracskip_api_version() of the library. Within one of them what there
 * is keeps its meaning and its layout, on each processor's C ABI: functions, status codes and members at the end of
 * structures may be added. A structure begins with its size, as the caller was compiled, so a program runs with every
 * later library of its version without being compiled again. Set all other members to zero that you do not use.
 *
 * What is chosen by a clock or by the images seen so far is in Python alone: budgets in time, promises of accuracy
 * (max_drop), thresholds that follow other images (hold), floats as images.
 */
#ifndef FRACSKIP_H
#define FRACSKIP_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define FRACSKIP_API __attribute__((visibility("default")))
#else
#define FRACSKIP_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define FRACSKIP_API_VERSION 1

FRACSKIP_API int32_t fracskip_api_version(void);
/* Of the library, such as "0.1.0". */
FRACSKIP_API const char *fracskip_version(void);

typedef enum fracskip_status {
  FRACSKIP_OK = 0,
  FRACSKIP_INVALID_ARGUMENT = 1, /* a NULL, an index, a size, a budget or an instruction set that is not allowed */
  FRACSKIP_BUFFER_TOO_SMALL = 2, /* of an answer */
  FRACSKIP_CANNOT_READ = 3,      /* a file */
  FRACSKIP_BAD_BUNDLE = 4,       /* damaged, of another version, or no bundle */
  FRACSKIP_NOT_FINITE = 5,       /* logits: the bundle's weights are too large for float32 */
  FRACSKIP_OUT_OF_MEMORY = 6,
  FRACSKIP_INTERNAL_ERROR = 7    /* a bug of this library */
} fracskip_status;

typedef struct fracskip_error {
  char text[2048];
} fracskip_error;

/* -- instruction sets -- */

/* Those that this processor can run, ascending; NULL after the last. */
FRACSKIP_API const char *fracskip_instruction_set(int32_t index);

/* -- sessions -- */

typedef struct fracskip_session fracskip_session;

/*
 * The caller's pool: a function that calls task(task_context, k) once for each k from 0 to count - 1 and returns when all
 * calls have returned. It may use whatever threads it likes, the one that called it included, in any order, at the same
 * time or one after the other: no task waits for another to begin. It must not let an exception out.
 *
 * fracskip_run calls it, up to twice, on the thread that fracskip_run was called on: from several threads at once if that
 * is, from a thread of the pool if that is one, but never from within a task, and holding no lock. The floating-point
 * environment is the default one meanwhile, and that of whoever runs a task is as before when it returns. Answers are the
 * same bits whatever the pool does. Tasks of one image may spin for as long as the image takes, so give them threads
 * with a core each. A pool that calls tasks too often or too seldom is FRACSKIP_INVALID_ARGUMENT.
 */
typedef void (*fracskip_task)(void *task_context, size_t index);
typedef void (*fracskip_parallel_for)(void *context, size_t count, fracskip_task task, void *task_context);

typedef struct fracskip_options {
  size_t size;                 /* sizeof(fracskip_options) */
  const char *instruction_set; /* NULL: the best of this processor */
  int32_t threads;             /* that a call uses, up to 256; 0 is 1. With a pool, the tasks that it is given at once: not 0 */
  fracskip_parallel_for parallel_for; /* NULL: threads of the session's own. A structure may end before it */
  void *parallel_for_context;         /* its first argument */
} fracskip_options;

/* Opens a bundle: everything in it is checked, its digest included. `options` may be NULL. *session is NULL on failure. */
FRACSKIP_API fracskip_status fracskip_open_file(const char *path, const fracskip_options *options, fracskip_session **session,
                                                fracskip_error *error);
/* Of a file's bytes, which may be freed afterwards. */
FRACSKIP_API fracskip_status fracskip_open_memory(const void *data, size_t bytes, const fracskip_options *options,
                                                  fracskip_session **session, fracskip_error *error);
/* NULL is closed already. */
FRACSKIP_API void fracskip_close(fracskip_session *session);

/* -- what it is; texts are UTF-8 and live as long as the session -- */

typedef struct fracskip_info {
  size_t size;                     /* sizeof(fracskip_info), set by the caller; the rest is written */
  const char *digest;              /* "sha256:..." of the bundle */
  const char *instruction_set;     /* in use */
  int32_t height, width, channels; /* of images: uint8 pixels (height, width, channels); they are normalised within */
  int32_t resize;                  /* of pictures: the shorter side before the centre of that size is cut out; 0: any */
  int32_t classes;
  int32_t networks;   /* 1, or those of a cascade, at most 4 */
  int32_t blocks;     /* the most gated blocks of a network: a row of decisions */
  int32_t points;     /* operating points */
  int32_t threads;    /* most that a call uses */
  int32_t has_budget; /* whether a budget may be named, from smallest_budget to largest_budget */
  double smallest_budget, largest_budget;
} fracskip_info;

typedef struct fracskip_network {
  size_t size; /* sizeof(fracskip_network) */
  const char *name;
  int32_t height, width; /* of its images, which are made of those that are given */
  int32_t blocks;        /* gated ones */
  int32_t options;       /* what a decision counts */
} fracskip_network;

/* Points ascend in cost; a cascade's also in accuracy. */
typedef struct fracskip_point {
  size_t size;     /* sizeof(fracskip_point) */
  double cost;     /* mean of an image, in the unit of budgets; -1 where the bundle does not say */
  double accuracy; /* on the validation images of a cascade, from 0 to 1; -1 where the bundle does not say */
} fracskip_point;

FRACSKIP_API fracskip_status fracskip_describe(const fracskip_session *session, fracskip_info *info, fracskip_error *error);
FRACSKIP_API fracskip_status fracskip_describe_network(const fracskip_session *session, int32_t network, fracskip_network *description,
                                                       fracskip_error *error);
FRACSKIP_API fracskip_status fracskip_describe_point(const fracskip_session *session, int32_t point, fracskip_point *description,
                                                     fracskip_error *error);

/* NULL where there is none. */
FRACSKIP_API const char *fracskip_class_name(const fracskip_session *session, int32_t index);
FRACSKIP_API const char *fracskip_option_name(const fracskip_session *session, int32_t network, int32_t option);
FRACSKIP_API const char *fracskip_block_name(const fracskip_session *session, int32_t network, int32_t block);

/* -- running -- */

enum {
  FRACSKIP_BY_DEFAULT = 0, /* what the network was trained for; of a cascade, budget 1 */
  FRACSKIP_BY_BUDGET = 1,
  FRACSKIP_BY_POINT = 2
};

/*
 * A budget is a share in (0, 1]: of a network the mean cost of its gated blocks, 1 being all in full; of a cascade the
 * mean BitOps of an image over those of its last member alone.
 */
typedef struct fracskip_request {
  size_t size;           /* sizeof(fracskip_request) */
  const uint8_t *images; /* (count, height, width, channels) */
  size_t images_bytes;   /* count * height * width * channels */
  size_t count;          /* may be 0 */
  double budget;         /* by budget */
  int32_t point;         /* by point */
  int32_t by;            /* FRACSKIP_BY_... */
} fracskip_request;

/*
 * Where answers go: arrays of the caller's, which must not overlap, each with the number of values that it has room for,
 * or NULL where the answer is not wanted.
 */
typedef struct fracskip_answer {
  size_t size; /* sizeof(fracskip_answer) */
  float *logits;
  size_t logits_room; /* count * classes */
  float *probabilities;
  size_t probabilities_room; /* count * classes */
  int32_t *classes;          /* of the largest logit */
  size_t classes_room;       /* count */
  /* Of a network the mean cost of its gated blocks, (bits / 32)^2; of a cascade BitOps over those of its last member's
   * plain network at 32 bits. All members that an image met count. */
  float *costs;
  size_t costs_room;        /* count */
  float *microseconds;      /* that each image took */
  size_t microseconds_room; /* count */
  uint8_t *networks;        /* that answered */
  size_t networks_room;     /* count */
  uint8_t *escalations;     /* how many members answered before and were not sure */
  size_t escalations_room;  /* count */
  uint8_t *decisions;       /* indices of options, of the network that answered, by gated block; then FRACSKIP_NO_DECISION */
  size_t decisions_room;    /* count * blocks */
} fracskip_answer;

#define FRACSKIP_NO_DECISION 255

FRACSKIP_API fracskip_status fracskip_run(const fracskip_session *session, const fracskip_request *request,
                                          const fracskip_answer *answer, fracskip_error *error);

#ifdef __cplusplus
}
#endif

#endif
