/* A real model through the C API: what a host builds on. usage: demo MODEL_DIR */
#include "check.h"

static const char *dir;
static const char *chat =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"Tell me a story about a fox and a lantern.\"}]}";

static yn_engine open_with(const char *more) {
  char config[1024];
  snprintf(config, sizeof config, "{\"model\": \"%s\"%s}", dir, more);
  return create(config);
}

/* Serves `n` requests together; the outcomes are the caller's to free. */
static tally serve(yn_engine engine, yn_request *requests, size_t n) {
  tally t;
  size_t i;
  tally_init(&t, n, 1);
  for (i = 0; i < n; i++) {
    requests[i].user_data = i;
    submit(engine, &requests[i]);
  }
  read_until(engine, &t, n);
  return t;
}

static yn_request story(yn_engine engine, uint32_t max_tokens) {
  yn_request r = request_of(engine, "", max_tokens, 0);
  memset(&r.prompt_text, 0, sizeof r.prompt_text);
  r.chat_json = bytes(chat);
  r.flags = 0;
  r.temperature = 0;
  return r;
}

static void check_same(const outcome *a, const outcome *b) {
  CHECK(a->status == YN_OK && b->status == YN_OK && a->finish == b->finish && a->completion == b->completion);
  CHECK(a->text_len == b->text_len && memcmp(a->text, b->text, a->text_len) == 0);
}

static void says(yn_buf *json, const char *what) {
  char *copy = (char *)calloc(json->len + 1, 1);
  CHECK(copy != NULL && json->data != NULL);
  memcpy(copy, json->data, json->len);
  if (strstr(copy, what) == NULL) {
    fprintf(stderr, "no %s in %s\n", what, copy);
    _Exit(1);
  }
  free(copy);
  yn_buf_free(json);
  CHECK(json->data == NULL && json->len == 0);
}

static void facts(yn_engine engine) {
  yn_buf buf = {0};
  yn_tokenizer t = {0}, other = {0};
  uint32_t ids[256];
  size_t n = 256, many = 256;
  char config[1024];
  static const char text[] = "Once upon a time \xe4\xb8\x80\xe5\xbf\xb5 \xf0\x9f\xa6\x8a.";
  EXPECT(yn_engine_info(engine, &buf, NULL), YN_OK, NULL);
  says(&buf, "\"architecture\":\"LlamaForCausalLM\"");
  EXPECT(yn_engine_metrics(engine, &buf), YN_OK, NULL);
  says(&buf, "vllm:num_requests_running");
  snprintf(config, sizeof config, "{\"model\": \"%s\", \"kv_cache_bytes\": 1048576}", dir);
  EXPECT(yn_plan_memory(bytes(config), &buf, NULL), YN_OK, NULL);
  says(&buf, "\"weights_bytes\":7549952");
  EXPECT(yn_engine_tokenizer(engine, &t), YN_OK, NULL);
  EXPECT(yn_tokenizer_open(bytes(dir), &other, NULL), YN_OK, NULL);
  EXPECT(yn_tokenize(t, bytes(text), 0, ids, &n, NULL), YN_OK, NULL);
  EXPECT(yn_tokenize(other, bytes(text), 0, ids, &many, NULL), YN_OK, NULL);
  CHECK(n > 4 && n == many);
  EXPECT(yn_detokenize(t, ids, n, 0, &buf, NULL), YN_OK, NULL);
  CHECK(buf.len == strlen(text) && memcmp(buf.data, text, buf.len) == 0);
  yn_buf_free(&buf);
  EXPECT(yn_chat_render(other, bytes(chat), &buf, NULL), YN_OK, NULL);
  says(&buf, "<|user|>Tell me a story about a fox and a lantern.<|end|><|assistant|>");
  EXPECT(yn_tokenizer_free(t), YN_OK, NULL);
  EXPECT(yn_tokenizer_free(other), YN_OK, NULL);
}

static void ends_and_seeds(yn_engine engine) {
  enum { N = 8 };
  yn_request r[N];
  yn_bytes stop = bytes("meadow");
  uint32_t end_token;
  tally t;
  size_t i, n = 1;
  yn_tokenizer tokenizer = {0};
  EXPECT(yn_engine_tokenizer(engine, &tokenizer), YN_OK, NULL);
  EXPECT(yn_tokenize(tokenizer, bytes("."), YN_TOKENIZE_NO_SPECIAL, &end_token, &n, NULL), YN_OK, NULL);
  for (i = 0; i < N; i++) r[i] = story(engine, 400);
  r[1].stop_texts = &stop;
  r[1].n_stop_texts = 1;
  r[2].max_tokens = 10;
  r[3].flags = YN_REQ_IGNORE_EOS;
  r[3].max_tokens = 300;
  r[4].stop_tokens = &end_token;
  r[4].n_stop_tokens = 1;
  r[5] = r[4];
  r[5].min_tokens = 60;
  r[6].temperature = r[7].temperature = 1.3f;
  r[6].flags = r[7].flags = YN_REQ_SEEDED;
  r[6].seed = r[7].seed = 77;
  t = serve(engine, r, N);
  CHECK(t.all[0].finish == YN_FINISH_EOS && t.all[0].completion > 60 && t.all[0].completion < 300);
  CHECK(t.all[1].finish == YN_FINISH_STOP && strstr(t.all[1].text, "meadow") == NULL);
  CHECK(memcmp(t.all[0].text + t.all[1].text_len, "meadow", 6) == 0);
  CHECK(memcmp(t.all[0].text, t.all[1].text, t.all[1].text_len) == 0);
  CHECK(t.all[2].finish == YN_FINISH_LENGTH && t.all[2].completion == 10 && t.all[2].tokens == 10);
  CHECK(t.all[3].finish == YN_FINISH_LENGTH && t.all[3].completion == 300);
  CHECK(t.all[4].finish == YN_FINISH_STOP && strchr(t.all[4].text, '.') == NULL);
  CHECK(t.all[5].finish == YN_FINISH_STOP && t.all[5].completion > 60);
  check_same(&t.all[6], &t.all[7]);
  CHECK(t.all[6].text_len != t.all[0].text_len || memcmp(t.all[6].text, t.all[0].text, t.all[0].text_len) != 0);
  EXPECT(yn_tokenizer_free(tokenizer), YN_OK, NULL);
  tally_free(&t);
}

/* Greedy and seeded answers do not depend on company, depth, chunks, cache or instruction sets' threads. */
static void same_everywhere(void) {
  static const char *configs[] = {
      ", \"pipeline_depth\": 1",
      ", \"pipeline_depth\": 3",
      ", \"pipeline_depth\": 3, \"max_num_batched_tokens\": 5, \"max_num_seqs\": 3",
      ", \"enable_prefix_caching\": false",
      ", \"kv_cache_bytes\": 1200000",
      ", \"threads\": 1",
  };
  enum { N = 32 };
  yn_engine engine = open_with("");
  yn_request r[N];
  tally alone[2], all;
  size_t c, i;
  for (i = 0; i < 2; i++) {
    r[0] = story(engine, 80);
    if (i == 1) {
      r[0].temperature = 0.9f;
      r[0].flags = YN_REQ_SEEDED;
      r[0].seed = 5;
    }
    alone[i] = serve(engine, r, 1);
  }
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  for (c = 0; c < sizeof configs / sizeof *configs; c++) {
    engine = open_with(configs[c]);
    for (i = 0; i < N; i++) {
      r[i] = story(engine, 80);
      if (i % 2 == 1) {
        r[i].temperature = 0.9f;
        r[i].flags = YN_REQ_SEEDED;
        r[i].seed = 5;
      }
    }
    all = serve(engine, r, N);
    for (i = 0; i < N; i++) check_same(&all.all[i], &alone[i % 2].all[0]);
    check_idle(engine);
    EXPECT(yn_engine_free(engine), YN_OK, NULL);
    tally_free(&all);
  }
  tally_free(&alone[0]);
  tally_free(&alone[1]);
}

static void cache_and_salt(yn_engine engine) {
  yn_request r[1];
  tally t;
  size_t i;
  static const char *salts[] = {"tenant a", "tenant a", "tenant b", ""};
  uint32_t cached[4];
  for (i = 0; i < 4; i++) {
    r[0] = request_of(engine,
                      "Once there was a fox who had a lantern and a friend, and the friend had a map of the river, and "
                      "the river was long.", 4, 0);
    r[0].cache_salt = bytes(salts[i]);
    t = serve(engine, r, 1);
    cached[i] = t.all[0].cached;
    CHECK(t.all[0].prompt > 17);
    tally_free(&t);
  }
  CHECK(cached[0] == 0 && cached[1] >= 16 && cached[2] == 0 && cached[3] == 0);
}

static void final_only(yn_engine engine) {
  static uint64_t buffer[8192];
  yn_request r = story(engine, 60);
  tally streamed = serve(engine, &r, 1);
  size_t used = 0, at;
  int outputs = 0, done = 0;
  r.output |= YN_OUT_FINAL_ONLY;
  submit(engine, &r);
  while (!done) {
    EXPECT(yn_engine_poll(engine, buffer, sizeof buffer, PATIENCE_MS, &used), YN_OK, NULL);
    for (at = 0; at < used; at += ((yn_event *)((char *)buffer + at))->size) {
      const yn_event *e = (const yn_event *)((const char *)buffer + at);
      done |= e->kind == YN_EV_DONE;
      if (e->kind != YN_EV_OUTPUT) continue;
      outputs++;
      CHECK(e->n_tokens == 60 && e->text_len == streamed.all[0].text_len);
      CHECK(memcmp((const char *)e + e->text_off, streamed.all[0].text, e->text_len) == 0);
    }
  }
  CHECK(outputs == 1);
  tally_free(&streamed);
}

/* Three choices with logprobs, through a small buffer: records of one choice add up, and each says how it ended. */
static void choices_and_logprobs(yn_engine engine) {
  enum { K = 4, CHOICES = 3 };
  static uint64_t buffer[512];
  yn_request r = story(engine, 40);
  unsigned tokens[CHOICES] = {0}, ended = 0, i, j, completion = 0;
  size_t used = 0, at;
  int done = 0;
  r.n = CHOICES;
  r.output |= YN_OUT_LOGPROBS;
  r.n_logprobs = K;
  r.temperature = 0.8f;
  r.flags = YN_REQ_SEEDED | YN_REQ_IGNORE_EOS;
  submit(engine, &r);
  while (!done) {
    EXPECT(yn_engine_poll(engine, buffer, sizeof buffer, PATIENCE_MS, &used), YN_OK, NULL);
    for (at = 0; at < used; at += ((yn_event *)((char *)buffer + at))->size) {
      const yn_event *e = (const yn_event *)((const char *)buffer + at);
      const yn_logprob *p = (const yn_logprob *)((const char *)e + e->logprobs_off);
      const uint32_t *ids = (const uint32_t *)((const char *)e + e->tokens_off);
      if (e->kind == YN_EV_DONE) {
        done = 1;
        completion = e->completion_tokens;
        CHECK(e->finish == YN_FINISH_LENGTH && e->prompt_tokens > 5);
      }
      if (e->kind != YN_EV_OUTPUT) continue;
      CHECK(e->choice < CHOICES && e->n_logprobs == e->n_tokens * (1 + K));
      for (i = 0; i < e->n_tokens; i++) {
        const yn_logprob *own = &p[i * (1 + K)];
        CHECK(own->token == ids[i] && own->rank >= 1 && own->logprob <= 0 && own->text_end <= e->text_len);
        for (j = 1; j <= K; j++) {
          CHECK(own[j].rank == j && own[j].logprob <= 0 && (j == 1 || own[j].logprob <= own[j - 1].logprob));
          CHECK((own[j].token == own->token) == (own->rank == j));
        }
      }
      tokens[e->choice] += e->n_tokens;
      if (e->finish != YN_FINISH_NONE) {
        CHECK(e->finish == YN_FINISH_LENGTH && tokens[e->choice] == 40);
        ended++;
      }
    }
  }
  CHECK(ended == CHOICES && completion == 40 * CHOICES);
}

/* A prompt that is told of in several records, through the smallest buffer: every token but the first, once, in order,
 * before the output; and the model thinks more of English than of noise. */
static float mean_of_prompt(yn_engine engine, const uint32_t *prompt, unsigned n) {
  enum { K = 6 };
  static uint64_t buffer[YN_POLL_MIN_BYTES / 8];
  yn_request r = request_of(engine, "", 3, 0);
  unsigned seen = 1, i, j, outputs = 0;
  size_t used = 0, at;
  double sum = 0;
  int done = 0;
  memset(&r.prompt_text, 0, sizeof r.prompt_text);
  r.prompt_tokens = prompt;
  r.n_prompt_tokens = n;
  r.output = YN_OUT_TOKENS | YN_OUT_PROMPT_LOGPROBS;
  r.n_prompt_logprobs = K;
  submit(engine, &r);
  while (!done) {
    EXPECT(yn_engine_poll(engine, buffer, sizeof buffer, PATIENCE_MS, &used), YN_OK, NULL);
    for (at = 0; at < used; at += ((yn_event *)((char *)buffer + at))->size) {
      const yn_event *e = (const yn_event *)((const char *)buffer + at);
      const yn_logprob *p = (const yn_logprob *)((const char *)e + e->logprobs_off);
      const uint32_t *ids = (const uint32_t *)((const char *)e + e->tokens_off);
      outputs += e->kind == YN_EV_OUTPUT;
      if (e->kind == YN_EV_DONE) {
        done = 1;
        CHECK(e->finish == YN_FINISH_LENGTH && e->prompt_tokens == n && e->cached_tokens == 0);
      }
      if (e->kind != YN_EV_PROMPT) continue;
      CHECK(outputs == 0 && e->n_tokens > 0 && e->n_logprobs == e->n_tokens * (1 + K) && e->text_len == 0);
      for (i = 0; i < e->n_tokens; i++, seen++) {
        const yn_logprob *own = &p[i * (1 + K)];
        CHECK(seen < n && ids[i] == prompt[seen] && own->token == ids[i] && own->logprob <= 0 && own->text_end == 0);
        sum += own->logprob;
        for (j = 1; j <= K; j++) CHECK(own[j].rank == j && (own[j].token == own->token) == (own->rank == j));
      }
      CHECK(e->prompt_tokens == seen);
    }
  }
  CHECK(outputs > 0 && seen == n);
  return (float)(sum / (n - 1));
}

static void prompt_logprobs(yn_engine engine) {
  static const char text[] = "Once upon a time there was a little fox who lived in the forest. One day the fox found a lantern.";
  yn_tokenizer t = {0};
  uint32_t ids[256], shuffled[256], i;
  size_t n = 256;
  float sense, noise;
  EXPECT(yn_engine_tokenizer(engine, &t), YN_OK, NULL);
  EXPECT(yn_tokenize(t, bytes(text), 0, ids, &n, NULL), YN_OK, NULL);
  CHECK(n > 20 && n < 256);
  for (i = 0; i < n; i++) shuffled[i] = ids[(i * 7 + 3) % n];
  for (i = 0; i < 160 - n; i++) ids[n + i] = ids[1 + i % (n - 1)];
  sense = mean_of_prompt(engine, ids, (unsigned)n);
  CHECK(mean_of_prompt(engine, ids, 160) < 0);
  CHECK(mean_of_prompt(engine, ids, (unsigned)n) == sense);
  noise = mean_of_prompt(engine, shuffled, (unsigned)n);
  printf("mean logprob %.2f, shuffled %.2f\n", (double)sense, (double)noise);
  CHECK(sense > noise + 1);
  EXPECT(yn_tokenizer_free(t), YN_OK, NULL);
}

static void deadline_and_overrun(void) {
  yn_engine engine = open_with(", \"max_unread_bytes\": 4096, \"max_num_seqs\": 4");
  yn_request r[2];
  tally t;
  double end = now_s() + 20;
  r[0] = request_of(engine, "Once upon a time", 1000, 0);
  r[1] = request_of(engine, "Once upon a time", 1000, 1);
  r[0].timeout_ms = 20;
  tally_init(&t, 2, 1);
  submit(engine, &r[0]);
  submit(engine, &r[1]);
  while (stats_of(engine).finished < 2) {
    CHECK(now_s() < end);
    sleep_us(1000);
  }
  read_until(engine, &t, 2);
  CHECK(t.all[0].finish == YN_FINISH_DEADLINE && t.all[0].completion < 1000);
  CHECK(t.all[1].finish == YN_FINISH_OVERRUN && t.all[1].completion < 1000 && t.all[1].text_len > 500);
  EXPECT(yn_engine_drain(engine, 1000), YN_OK, NULL);
  EXPECT(yn_engine_submit(engine, &r[0], NULL, NULL), YN_E_SHUTDOWN, NULL);
  CHECK(stats_of(engine).state == YN_STATE_DRAINING);
  check_idle(engine);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  tally_free(&t);
}

int main(int argc, char **argv) {
  yn_engine engine;
  CHECK(argc == 2);
  dir = argv[1];
  engine = open_with(", \"async_load\": true");
  while (stats_of(engine).state == YN_STATE_LOADING) sleep_us(1000);
  CHECK(stats_of(engine).state == YN_STATE_READY);
  facts(engine);
  ends_and_seeds(engine);
  cache_and_salt(engine);
  final_only(engine);
  choices_and_logprobs(engine);
  prompt_logprobs(engine);
  check_idle(engine);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  same_everywhere();
  deadline_and_overrun();
  return 0;
}
