/* Configs with one thing wrong: yn_engine_create and yn_plan_memory name it, and nothing stays behind. An engine beside serves on.
   usage: configs MODEL_DIRECTORY */
#include "rows.h"
#include <malloc.h>

static const char *demo;

/* Tried with both functions that take a config; `plans` is what yn_plan_memory answers when that differs. */
static void try_config(const char *what, yn_bytes json, yn_status want, const char *says) {
  double start = now_s();
  yn_engine out = {77};
  yn_buf plan = {0};
  yn_status got;
  rows++;
  fresh_error();
  got = yn_engine_create(json, &out, &e);
  answers(what, got, want, says);
  if (out.id != 77) complain(what, "the handle is written");
  fresh_error();
  got = yn_plan_memory(json, &plan, &e);
  if (got == YN_OK || plan.data != NULL) complain(what, "a plan is made");
  yn_buf_free(&plan);
  serves(what);
  if (now_s() - start > ROW_LIMIT) complain(what, "took too long");
}

static void with(const char *key, const char *value, yn_status want, const char *says) {
  char json[4096], what[256];
  snprintf(json, sizeof json, "{\"model\": \"%s\", \"%s\": %s}", strcmp(key, "model") ? demo : "x", key, value);
  snprintf(what, sizeof what, "%s: %.200s", key, value);
  /* A second "model" would be refused for being the second. */
  if (strcmp(key, "model") == 0) snprintf(json, sizeof json, "{\"model\": %s}", value);
  try_config(what, bytes(json), want, says);
}

static void types(void) {
  static const char *const integers[] = {"tensor_parallel_size", "threads", "pipeline_depth", "max_model_len", "max_num_seqs",
                                         "max_num_batched_tokens", "block_size", "kv_cache_bytes", "max_waiting",
                                         "max_unread_bytes", "default_timeout_ms", "watchdog_ms", "seed", "device_memory_bytes"};
  static const char *const numbers[] = {"gpu_memory_utilization", "max_decode_slowdown"};
  static const char *const no_numbers[] = {"\"0.5\"", "\"\"", "true", "[]", "{}", "[0.5]"};
  static const char *const no_integers[] = {"-1", "1.5", "1e99", "\"4\"", "\"\"", "true", "[]", "{}", "[4]",
                                            "18446744073709551616", "-9223372036854775808"};
  static const char *const strings[] = {"model", "tokenizer", "chat_template", "served_model_name", "device", "device_library_dir", "load_format",
                                        "numeric_mode", "embedding_placement", "scheduling_policy", "log_level", "cpu_features", "tuning_cache",
                                        "self_test"};
  static const char *const no_strings[] = {"7", "true", "[]", "{}", "[\"x\"]", "-0.5"};
  static const char *const flags[] = {"enable_prefix_caching", "async_load"};
  static const char *const no_flags[] = {"0", "1", "\"true\"", "[]", "{}"};
  static const char *const choices[] = {"device", "load_format", "numeric_mode", "embedding_placement", "scheduling_policy", "log_level", "cpu_features"};
  static const char *const no_choices[] = {"\"nothing\"", "\"\"", "\"\\u0000\"", "\"auto \"", "\"AUTO\""};
  static const char *const unbuilt[] = {"dtype", "kv_cache_dtype", "kv_tiers"};
  static const char *const others[] = {"7", "\"other\"", "[]", "{}", "true"};
  size_t i, k;
#define EACH(keys, values, want)                                        \
  for (i = 0; i < sizeof keys / sizeof *keys; i++)                      \
    for (k = 0; k < sizeof values / sizeof *values; k++) with(keys[i], values[k], want, keys[i])
  EACH(integers, no_integers, YN_E_INVALID);
  EACH(numbers, no_numbers, YN_E_INVALID);
  EACH(strings, no_strings, YN_E_INVALID);
  EACH(flags, no_flags, YN_E_INVALID);
  EACH(choices, no_choices, YN_E_INVALID);
  EACH(unbuilt, others, YN_E_UNSUPPORTED);
}

static void ranges(void) {
  static const struct { const char *key, *value; yn_status want; const char *says; } table[] = {
      {"tensor_parallel_size", "0", YN_E_INVALID, "tensor_parallel_size"},
      {"tensor_parallel_size", "65", YN_E_INVALID, "tensor_parallel_size"},
      {"tensor_parallel_size", "3", YN_E_INVALID, "tensor_parallel_size"},
      {"threads", "0", YN_E_INVALID, "threads"}, {"threads", "257", YN_E_INVALID, "threads"},
      {"pipeline_depth", "0", YN_E_INVALID, "pipeline_depth"}, {"pipeline_depth", "4", YN_E_INVALID, "pipeline_depth"},
      {"max_model_len", "0", YN_E_INVALID, "max_model_len"}, {"max_model_len", "4294967296", YN_E_INVALID, "max_model_len"},
      {"max_model_len", "1000000", YN_E_INVALID, "max_model_len"},
      {"max_num_seqs", "0", YN_E_INVALID, "max_num_seqs"}, {"max_num_seqs", "4097", YN_E_INVALID, "max_num_seqs"},
      {"max_num_batched_tokens", "0", YN_E_INVALID, "max_num_batched_tokens"},
      {"max_num_batched_tokens", "65537", YN_E_INVALID, "max_num_batched_tokens"},
      {"block_size", "0", YN_E_INVALID, "block_size"}, {"block_size", "24", YN_E_INVALID, "block_size"},
      {"block_size", "512", YN_E_INVALID, "block_size"},
      {"max_waiting", "0", YN_E_INVALID, "max_waiting"}, {"max_waiting", "16777217", YN_E_INVALID, "max_waiting"},
      {"max_unread_bytes", "0", YN_E_INVALID, "max_unread_bytes"}, {"max_unread_bytes", "4095", YN_E_INVALID, "max_unread_bytes"},
      {"max_unread_bytes", "18446744073709551615", YN_E_INVALID, "max_unread_bytes"},
      {"kv_cache_bytes", "0", YN_E_NO_MEMORY, "kv_cache_bytes"}, {"kv_cache_bytes", "1", YN_E_NO_MEMORY, "kv_cache_bytes"},
      {"kv_cache_bytes", "18446744073709551615", YN_E_NO_MEMORY, "kv_cache_bytes"},
      {"device_memory_bytes", "0", YN_E_INVALID, "device_memory_bytes"},
      {"device_memory_bytes", "1", YN_E_NO_MEMORY, "free"},
      {"gpu_memory_utilization", "0", YN_E_INVALID, "gpu_memory_utilization"},
      {"gpu_memory_utilization", "-0.5", YN_E_INVALID, "gpu_memory_utilization"},
      {"gpu_memory_utilization", "1.01", YN_E_INVALID, "gpu_memory_utilization"},
      {"max_decode_slowdown", "0.99", YN_E_INVALID, "max_decode_slowdown"},
      {"max_decode_slowdown", "100.5", YN_E_INVALID, "max_decode_slowdown"},
      {"max_decode_slowdown", "-0.5", YN_E_INVALID, "max_decode_slowdown"},
      {"tuning_cache", "\"\"", YN_E_INVALID, "tuning_cache"},
      {"self_test", "\"\"", YN_E_INVALID, "self_test"},
      {"default_timeout_ms", "4294967296", YN_E_INVALID, "default_timeout_ms"},
      {"watchdog_ms", "4294967296", YN_E_INVALID, "watchdog_ms"},
      {"device", "\"toaster\"", YN_E_INVALID, "device"}, {"device", "\"cpu:1\"", YN_E_INVALID, "device"},
      {"numeric_mode", "\"aligned\"", YN_E_UNSUPPORTED, "numeric_mode"},
      {"embedding_placement", "\"host\"", YN_E_INVALID, "tie_word_embeddings"},
      {"model", "\"\"", YN_E_INVALID, "model"}, {"model", "null", YN_E_INVALID, "model"},
      {"model", "\"mock:\"", YN_E_INVALID, "mock:words"}, {"model", "\"mock:nothing\"", YN_E_INVALID, "mock:words"},
      {"model", "\"mock:words,x=1\"", YN_E_INVALID, "x=1"}, {"model", "\"mock:words,delay_us=-1\"", YN_E_INVALID, "delay_us"},
      {"model", "\"mock:words,load_ms=60001\"", YN_E_INVALID, "load_ms"},
      {"model", "\"/no/such/directory\"", YN_E_NOT_FOUND, "/no/such/directory"},
      {"model", "\"/dev/null\"", YN_E_NOT_FOUND, "/dev/null"}, {"model", "\"a\\u0000b\"", YN_E_NOT_FOUND, "directory"},
      {"model", "\"/\"", YN_E_NOT_FOUND, "config.json"},
  };
  size_t i;
  for (i = 0; i < sizeof table / sizeof *table; i++) with(table[i].key, table[i].value, table[i].want, table[i].says);
}

static void documents(void) {
  static const struct { const char *json, *says; } table[] = {
      {"", "JSON"}, {" ", "JSON"}, {"{", "JSON"}, {"[]", "object"}, {"7", "object"}, {"null", "object"}, {"\"model\"", "object"},
      {"{}", "model"}, {"{\"model\": \"mock:words\"} x", "JSON"}, {"{\"model\": \"mock:words\",}", "JSON"},
      {"{'model': 'mock:words'}", "JSON"}, {"\xef\xbb\xbf{\"model\": \"mock:words\"}", "JSON"},
      {"{\"model\": \"mock:words\", \"model\": \"mock:words\"}", "twice"},
      {"{\"model\": \"mock:words\", \"max_num_seqs\": 1, \"max_num_seqs\": 2}", "twice"},
      {"{\"model\": \"mock:words\", \"seed\": NaN}", "JSON"}, {"{\"model\": \"mock:words\", \"seed\": 1e999}", "JSON"},
      {"{\"model\": \"\\ud800\"}", "JSON"}, {"{\"model\": \"a\nb\"}", "JSON"},
      {"{\"model\": \"mock:words\", \"max_num_seq\": 4}", "\"max_num_seqs\""},
      {"{\"model\": \"mock:words\", \"Max_num_seqs\": 4}", "\"max_num_seqs\""},
      {"{\"model\": \"mock:words\", \"frobnicate\": 4}", "frobnicate"}, {"{\"model\": \"mock:words\", \"\": 4}", "unknown"},
      {"{\"model\": \"mock:words\", \"\\u0000\": 4}", "unknown"},
      {"{\"model\": \"mock:words\", \"tokenizer\": \"x\"}", "tokenizer"},
      {"{\"model\": \"mock:words\", \"chat_template\": \"{% if %}\"}", "template"},
      {"{\"model\": \"\xff\"}", "JSON"}, {"{\"model\": \"mock:words\xc3\"}", "JSON"}, {"{\"\xed\xa0\x80\": 1}", "JSON"},
  };
  static char large[(1 << 20) + 2], deep[3000];
  yn_bytes b = {NULL, 3}, nul = {(const uint8_t *)"{\"model\": \"a\0b\"}", 16};
  size_t i;
  for (i = 0; i < sizeof table / sizeof *table; i++) try_config(table[i].json, bytes(table[i].json), YN_E_INVALID, table[i].says);
  try_config("NULL with a length", b, YN_E_INVALID, "config_json");
  b.len = SIZE_MAX;
  try_config("NULL with all lengths", b, YN_E_INVALID, "config_json");
  b.data = (const uint8_t *)"{}";
  try_config("a length from nowhere", b, YN_E_INVALID, "config_json");
  try_config("a NUL in a string", nul, YN_E_INVALID, "JSON");
  memset(large, ' ', sizeof large - 1);
  try_config("more than is read", bytes(large), YN_E_INVALID, "1048576");
  memset(deep, '[', sizeof deep - 1);
  try_config("deep", bytes(deep), YN_E_INVALID, "JSON");
}

int main(int argc, char **argv) {
  struct mallinfo2 before, after;
  int files, threads;
  unsigned once;
  CHECK(argc == 2);
  demo = argv[1];
  engine = create("{\"model\": \"mock:words\"}");
  types();
  ranges();
  documents();
  once = rows;
  check_idle(engine);
  files = entries("/proc/self/fd");
  threads = entries("/proc/self/task");
  before = mallinfo2();
  types();
  ranges();
  documents();
  check_idle(engine);
  after = mallinfo2();
  printf("%u rows of configs, %u wrong; the second time took %ld bytes\n", once, wrong,
         (long)after.uordblks - (long)before.uordblks);
  CHECK(entries("/proc/self/fd") == files && entries("/proc/self/task") == threads);
  CHECK(after.uordblks < before.uordblks + 256 * 1024);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  CHECK(wrong == 0);
  return 0;
}
