//go:build yinian_dlopen

/* The functions of yinian.h, each handing on to the library that yn_dlopen loaded. */

#include <dlfcn.h>
#include <stdio.h>

/* Not seen from outside: the library's own must not be resolved to these. */
#pragma GCC visibility push(hidden)
#include "library_dlopen.h"
#include "yinian.h"

/* Result, what to answer while nothing is loaded (every handle is bad then), name, parameters, arguments. */
#define FUNCTIONS(F)                                                                                                       \
  F(uint32_t, 0, yn_version, (void), ())                                                                                   \
  F(yn_bytes, none, yn_build_info, (void), ())                                                                             \
  F(const char *, status_name(status), yn_status_name, (int32_t status), (status))                                         \
  F(yn_status, BAD, yn_engine_create, (yn_bytes a, yn_engine *b, yn_error *c), (a, b, c))                                  \
  F(yn_status, BAD, yn_engine_poll, (yn_engine a, void *b, size_t c, int32_t d, size_t *e), (a, b, c, d, e))               \
  F(yn_status, BAD, yn_engine_cancel, (yn_engine a, yn_request_id b), (a, b))                                              \
  F(yn_status, BAD, yn_engine_drain, (yn_engine a, int32_t b), (a, b))                                                     \
  F(yn_status, BAD, yn_engine_free, (yn_engine a), (a))                                                                    \
  F(yn_status, BAD, yn_engine_stats, (yn_engine a, yn_stats *b), (a, b))                                                   \
  F(yn_status, BAD, yn_engine_info, (yn_engine a, yn_buf *b, yn_error *c), (a, b, c))                                      \
  F(yn_status, BAD, yn_engine_metrics, (yn_engine a, yn_buf *b), (a, b))                                                   \
  F(yn_status, BAD, yn_plan_memory, (yn_bytes a, yn_buf *b, yn_error *c), (a, b, c))                                       \
  F(yn_status, BAD, yn_request_init, (yn_engine a, yn_request *b, uint32_t c), (a, b, c))                                  \
  F(yn_status, BAD, yn_engine_submit, (yn_engine a, const yn_request *b, yn_request_id *c, yn_error *d), (a, b, c, d))     \
  F(yn_status, BAD, yn_queue_create, (yn_queue *a, yn_error *b), (a, b))                                                   \
  F(yn_status, BAD, yn_queue_poll, (yn_queue a, void *b, size_t c, int32_t d, size_t *e), (a, b, c, d, e))                 \
  F(yn_status, BAD, yn_queue_free, (yn_queue a), (a))                                                                      \
  F(yn_status, BAD, yn_tokenizer_open, (yn_bytes a, yn_tokenizer *b, yn_error *c), (a, b, c))                              \
  F(yn_status, BAD, yn_engine_tokenizer, (yn_engine a, yn_tokenizer *b), (a, b))                                           \
  F(yn_status, BAD, yn_tokenizer_free, (yn_tokenizer a), (a))                                                              \
  F(yn_status, BAD, yn_tokenize, (yn_tokenizer a, yn_bytes b, uint32_t c, uint32_t *d, size_t *e, yn_error *f),            \
    (a, b, c, d, e, f))                                                                                                    \
  F(yn_status, BAD, yn_detokenize, (yn_tokenizer a, const uint32_t *b, size_t c, uint32_t d, yn_buf *e, yn_error *f),      \
    (a, b, c, d, e, f))                                                                                                    \
  F(yn_status, BAD, yn_chat_render, (yn_tokenizer a, yn_bytes b, yn_buf *c, yn_error *d), (a, b, c, d))                    \
  F(yn_status, BAD, yn_log_to_queue, (yn_queue a, uint32_t b), (a, b))

#define BAD YN_E_BAD_HANDLE

#define MEMBER(result, unloaded, name, parameters, arguments) result(*name) parameters;
typedef struct functions {
  FUNCTIONS(MEMBER)
  void (*yn_buf_free)(yn_buf *);
} functions;

static functions loaded_functions;
static const functions *loaded; /* NULL until loaded_functions is whole */
static const yn_bytes none = {NULL, 0};

/* For the errors that say that nothing could be loaded. */
static const char *status_name(int32_t status) {
  switch (status) {
    case YN_E_BAD_HANDLE: return "YN_E_BAD_HANDLE";
    case YN_E_NOT_FOUND: return "YN_E_NOT_FOUND";
    default: return "YN_E_UNKNOWN";
  }
}

#define DEFINE(result, unloaded, name, parameters, arguments)                 \
  result name parameters {                                                    \
    const functions *to = __atomic_load_n(&loaded, __ATOMIC_ACQUIRE);         \
    return to == NULL ? (unloaded) : to->name arguments;                      \
  }
FUNCTIONS(DEFINE)

void yn_buf_free(yn_buf *buf) {
  const functions *to = __atomic_load_n(&loaded, __ATOMIC_ACQUIRE);
  if (to != NULL) to->yn_buf_free(buf);
}

static int take(void *library, const char *name, void *to, char *why, size_t why_size) {
  /* ISO C has no conversion of an object pointer to a function pointer; POSIX gives both one representation. */
  void *at = dlsym(library, name);
  if (at == NULL) return snprintf(why, why_size, "it has no function %s", name), 0;
  __builtin_memcpy(to, &at, sizeof at);
  return 1;
}

int yn_dlopen(const char *path, uint32_t abi, char *why, size_t why_size) {
  functions f;
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    const char *error = dlerror();
    return snprintf(why, why_size, "%s", error == NULL ? "dlopen failed" : error), 0;
  }
#define TAKE(result, unloaded, name, parameters, arguments) take(library, #name, &f.name, why, why_size) &&
  if (!(FUNCTIONS(TAKE) take(library, "yn_buf_free", &f.yn_buf_free, why, why_size))) return dlclose(library), 0;
  if (f.yn_version() >> 16 != abi) {
    snprintf(why, why_size, "it is version %u.%u, not %u.%u", f.yn_version() >> 24, f.yn_version() >> 16 & 0xff, abi >> 8, abi & 0xff);
    return dlclose(library), 0;
  }
  loaded_functions = f;
  __atomic_store_n(&loaded, &loaded_functions, __ATOMIC_RELEASE);
  return 1;
}
