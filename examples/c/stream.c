/* Streams the answer of a chat model to standard output.

   cargo build --release && ln -sf libyinian.so target/release/libyinian.so.0.1
   cc -o stream examples/c/stream.c -I include -L target/release -lyinian -Wl,-rpath,$PWD/target/release
   ./stream examples/demo_model "Tell me a story about a fox." */
#include "yinian.h"
#include <stdio.h>
#include <string.h>

static yn_bytes bytes(const char *s) {
  yn_bytes b;
  b.data = (const uint8_t *)s;
  b.len = strlen(s);
  return b;
}

/* Writes `s` as the inside of a JSON string. */
static void append_json(char *out, size_t cap, const char *s) {
  size_t n = strlen(out);
  for (; *s != 0 && n + 7 < cap; s++) {
    if (*s == '"' || *s == '\\') out[n++] = '\\', out[n++] = *s;
    else if ((unsigned char)*s < 0x20) n += (size_t)sprintf(out + n, "\\u%04x", *s);
    else out[n++] = *s;
  }
  out[n] = 0;
}

int main(int argc, char **argv) {
  static uint64_t buffer[8192]; /* 8-byte aligned, at least 4096 bytes */
  char config[4200] = "{\"model\": \"", chat[16400] = "{\"messages\": [{\"role\": \"user\", \"content\": \"";
  yn_engine engine = {0};
  yn_request request;
  yn_error error;
  size_t used = 0, at;
  int done = 0, status = 0;

  if (argc != 3) return fprintf(stderr, "usage: %s MODEL_DIR MESSAGE\n", argv[0]), 2;
  append_json(config, sizeof config - 2, argv[1]);
  strcat(config, "\"}");
  append_json(chat, sizeof chat - 4, argv[2]);
  strcat(chat, "\"}]}");
  if (yn_engine_create(bytes(config), &engine, &error) != YN_OK) {
    return fprintf(stderr, "%s: %s\n", yn_status_name(error.status), error.message), 1;
  }
  yn_request_init(engine, &request, sizeof request); /* the model's own sampling defaults */
  request.chat_json = bytes(chat);
  if (yn_engine_submit(engine, &request, NULL, &error) != YN_OK) {
    fprintf(stderr, "%s: %s\n", yn_status_name(error.status), error.message);
    status = done = 1;
  }
  while (!done && yn_engine_poll(engine, buffer, sizeof buffer, -1, &used) == YN_OK) {
    for (at = 0; at < used;) {
      const yn_event *event = (const yn_event *)((const char *)buffer + at);
      const char *text = (const char *)event + event->text_off;
      at += event->size;
      if (event->kind == YN_EV_OUTPUT) {
        fwrite(text, 1, event->text_len, stdout);
        fflush(stdout);
      } else if (event->kind == YN_EV_DONE) {
        done = 1;
        status = event->status != YN_OK;
        if (status) fprintf(stderr, "%.*s", (int)event->text_len, text);
        else fprintf(stderr, "\n[%u tokens]", event->completion_tokens);
      }
    }
  }
  puts("");
  yn_engine_free(engine);
  return status;
}
