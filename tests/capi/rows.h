/* Tables of bad input: every row is tried, whatever became of those before, and the engine must serve on after each. */
#ifndef ROWS_H
#define ROWS_H
#include "check.h"

/* When a row is answered. */
enum { AT_ONCE, AT_DONE, TAKEN };

static yn_engine engine;
static yn_error e;
static unsigned rows, wrong;

/* Most seconds a row may take. */
#define ROW_LIMIT 5.0

/* What the DONE of a request says. */
typedef struct {
  int status;
  char text[2100];
} ending;

static inline void complain(const char *what, const char *why) {
  wrong++;
  fprintf(stderr, "row %u (%s): %s\n", rows, what, why);
}

/* Reads the engine's queue until the request `user` has ended. */
static inline ending wait_for(uint64_t user) {
  static uint64_t buffer[8192];
  ending end;
  memset(&end, 0, sizeof end);
  for (;;) {
    size_t used = 0, at;
    EXPECT(yn_engine_poll(engine, buffer, sizeof buffer, 20000, &used), YN_OK, NULL);
    for (at = 0; at < used; at += ((const yn_event *)((const char *)buffer + at))->size) {
      const yn_event *v = (const yn_event *)((const char *)buffer + at);
      if (v->kind != YN_EV_DONE || v->user_data != user) continue;
      CHECK(v->text_len < sizeof end.text && (v->status != YN_OK) == (v->text_len > 0));
      memcpy(end.text, (const char *)v + v->text_off, v->text_len);
      end.status = v->status;
      return end;
    }
  }
}

/* The engine still answers. */
static inline void serves(const char *what) {
  yn_request r = request_of(engine, "on", 1, 1);
  yn_status s = yn_engine_submit(engine, &r, NULL, &e);
  if (s != YN_OK) complain(what, e.message);
  else if (wait_for(1).status != YN_OK) complain(what, "the next request fails");
}

/* A status and a message that is text, ends in the struct and mentions `says`. */
static inline void answers(const char *what, yn_status got, yn_status want, const char *says) {
  size_t len = 0;
  while (len < sizeof e.message && e.message[len] != 0) len++;
  if (got != want) {
    complain(what, yn_status_name(got));
    if (got != YN_OK) fprintf(stderr, "  %.*s\n", (int)len, e.message);
  } else if (want != YN_OK) {
    if (e.status != want) complain(what, "yn_error has another status");
    else if (len == 0 || len == sizeof e.message) complain(what, "the message is empty or has no end");
    else if (whole_utf8((const unsigned char *)e.message, len) != len) complain(what, "the message is not UTF-8");
    else if (strstr(e.message, says) == NULL) complain(what, e.message);
  }
}

static inline void fresh_error(void) { memset(&e, 0x7f, sizeof e); }

/* Submits a request; at AT_ONCE submit answers `want`, later DONE does. */
static inline void try_request(const char *what, const yn_request *r, int when, yn_status want, const char *says) {
  double start = now_s();
  yn_request_id id = 99;
  yn_status got;
  rows++;
  fresh_error();
  got = yn_engine_submit(engine, r, &id, &e);
  answers(what, got, when == AT_ONCE ? want : YN_OK, says);
  if ((got == YN_OK) != (id != 99)) complain(what, "the id is written on failure, or not on success");
  if (got == YN_OK) {
    ending end = wait_for(r->user_data);
    if (when == AT_DONE && (end.status != want || strstr(end.text, says) == NULL)) {
      complain(what, end.text);
    } else if (when == TAKEN && end.status != YN_OK) {
      complain(what, end.text);
    }
  }
  serves(what);
  if (now_s() - start > ROW_LIMIT) complain(what, "took too long");
}
#endif
