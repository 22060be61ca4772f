/* The crossing from ai.yinian.Native to yinian.h. Texts cross as bytes, events in a direct buffer. */
#include "yinian_jni.h"

#include <stddef.h>

/* ai.yinian.Event reads records by these offsets, ai.yinian.Request writes the struct. */
#define AT(type, field, offset) _Static_assert(offsetof(type, field) == offset, #field)
AT(yn_event, kind, 4);
AT(yn_event, flags, 6);
AT(yn_event, request_id, 8);
AT(yn_event, user_data, 16);
AT(yn_event, status, 24);
AT(yn_event, finish, 28);
AT(yn_event, n_tokens, 32);
AT(yn_event, tokens_off, 36);
AT(yn_event, text_len, 40);
AT(yn_event, text_off, 44);
AT(yn_event, n_logprobs, 48);
AT(yn_event, logprobs_off, 52);
AT(yn_event, prompt_tokens, 56);
AT(yn_event, cached_tokens, 60);
AT(yn_event, completion_tokens, 64);
AT(yn_event, choice, 68);
AT(yn_event, t_submit_ns, 72);
AT(yn_event, t_first_ns, 80);
AT(yn_event, t_event_ns, 88);
AT(yn_flat_request, set, 24);
AT(yn_flat_request, top_k, 48);
AT(yn_flat_request, temperature, 56);
AT(yn_flat_request, prompt_len, 80);
AT(yn_flat_request, choices, 108);
AT(yn_flat_request, n_logprobs, 110);
AT(yn_flat_request, n_prompt_logprobs, 112);
AT(yn_logprob, rank, 4);
AT(yn_logprob, logprob, 8);
AT(yn_logprob, text_end, 12);
AT(yn_stats, state, 4);
AT(yn_stats, waiting, 8);
AT(yn_stats, steps, 88);
_Static_assert(sizeof(yn_flat_request) == 120, "yn_flat_request");
_Static_assert(sizeof(yn_logprob) == 16, "yn_logprob");
_Static_assert(sizeof(yn_stats) == 96, "yn_stats");
_Static_assert(sizeof(yn_error) == 512, "yn_error");

static jint version(JNIEnv *env, jclass c) {
  (void)env, (void)c;
  return (jint)yn_version();
}

static jbyteArray build_info(JNIEnv *env, jclass c) {
  (void)c;
  return jni_bytes(env, yn_build_info());
}

static jstring status_name(JNIEnv *env, jclass c, jint status) {
  (void)c;
  return (*env)->NewStringUTF(env, yn_status_name(status));
}

static jint create(JNIEnv *env, jclass c, jbyteArray config, jlongArray out, jbyteArray error) {
  yn_engine engine = {0};
  yn_error e;
  jni_borrowed text;
  yn_status status;
  (void)c;
  if (!jni_borrow(env, config, &text)) return YN_E_NO_MEMORY;
  jni_clear(&e);
  status = yn_engine_create(text.bytes, &engine, &e);
  jni_return(env, &text);
  if (status != YN_OK) jni_put_error(env, error, &e);
  else if (!jni_put_long(env, out, (jlong)engine.id)) yn_engine_free(engine);
  return status;
}

static jint engine_free(JNIEnv *env, jclass c, jlong id) {
  yn_engine engine = {(uint64_t)id};
  (void)env, (void)c;
  return yn_engine_free(engine);
}

static jint cancel(JNIEnv *env, jclass c, jlong id, jlong request) {
  yn_engine engine = {(uint64_t)id};
  (void)env, (void)c;
  return yn_engine_cancel(engine, (yn_request_id)request);
}

static jint drain(JNIEnv *env, jclass c, jlong id, jint timeout_ms) {
  yn_engine engine = {(uint64_t)id};
  (void)env, (void)c;
  return yn_engine_drain(engine, timeout_ms);
}

/* The bytes used, or a negative status. */
static jint engine_poll(JNIEnv *env, jclass c, jlong id, jobject buffer) {
  yn_engine engine = {(uint64_t)id};
  size_t used = 0;
  void *to = (*env)->GetDirectBufferAddress(env, buffer);
  jlong cap = (*env)->GetDirectBufferCapacity(env, buffer);
  yn_status status = yn_engine_poll(engine, to, cap < 0 ? 0 : (size_t)cap, -1, &used);
  (void)c;
  return status == YN_OK ? (jint)used : status;
}

/* The struct as it is. */
static jint stats(JNIEnv *env, jclass c, jlong id, jbyteArray out) {
  yn_engine engine = {(uint64_t)id};
  yn_stats s;
  yn_status status;
  (void)c;
  memset(&s, 0, sizeof s);
  s.struct_size = sizeof s;
  status = yn_engine_stats(engine, &s);
  if (status == YN_OK) {
    (*env)->SetByteArrayRegion(env, out, 0, sizeof s, (const jbyte *)&s);
    (void)(*env)->ExceptionCheck(env);
  }
  return status;
}

static jbyteArray info(JNIEnv *env, jclass c, jlong id, jbyteArray error) {
  yn_engine engine = {(uint64_t)id};
  yn_buf out = {0};
  yn_error e;
  yn_status status;
  (void)c;
  jni_clear(&e);
  status = yn_engine_info(engine, &out, &e);
  return jni_take(env, status, &out, error, &e);
}

static jbyteArray metrics(JNIEnv *env, jclass c, jlong id, jbyteArray error) {
  yn_engine engine = {(uint64_t)id};
  yn_buf out = {0};
  yn_error e;
  (void)c;
  jni_clear(&e);
  e.status = yn_engine_metrics(engine, &out);
  return jni_take(env, e.status, &out, error, &e);
}

static jbyteArray plan_memory(JNIEnv *env, jclass c, jbyteArray config, jbyteArray error) {
  jni_borrowed text;
  yn_buf out = {0};
  yn_error e;
  yn_status status;
  (void)c;
  if (!jni_borrow(env, config, &text)) return NULL;
  jni_clear(&e);
  status = yn_plan_memory(text.bytes, &out, &e);
  jni_return(env, &text);
  return jni_take(env, status, &out, error, &e);
}

static jint submit(JNIEnv *env, jclass c, jbyteArray fields, jbyteArray texts, jintArray words, jlongArray out,
                   jbyteArray error) {
  yn_flat_request f;
  yn_request_id id = 0;
  yn_error e;
  yn_status status = YN_E_NO_MEMORY;
  jni_borrowed bytes;
  jint *ints;
  (void)c;
  jni_clear(&e);
  (*env)->GetByteArrayRegion(env, fields, 0, sizeof f, (jbyte *)&f);
  if ((*env)->ExceptionCheck(env)) return YN_E_INTERNAL;
  if (!jni_borrow(env, texts, &bytes)) return status;
  ints = (*env)->GetIntArrayElements(env, words, NULL);
  if (ints != NULL) {
    status = yn_flat_submit(f, bytes.bytes.data, (const uint32_t *)ints, &id, &e);
    (*env)->ReleaseIntArrayElements(env, words, ints, JNI_ABORT);
  }
  jni_return(env, &bytes);
  if (status == YN_OK) (void)jni_put_long(env, out, (jlong)id);
  else if (ints != NULL) jni_put_error(env, error, &e);
  return status;
}

static jint queue_create(JNIEnv *env, jclass c, jlongArray out, jbyteArray error) {
  yn_queue queue = {0};
  yn_error e;
  yn_status status;
  (void)c;
  jni_clear(&e);
  status = yn_queue_create(&queue, &e);
  if (status != YN_OK) jni_put_error(env, error, &e);
  else if (!jni_put_long(env, out, (jlong)queue.id)) yn_queue_free(queue);
  return status;
}

/* As engine_poll. */
static jint queue_poll(JNIEnv *env, jclass c, jlong id, jobject buffer) {
  yn_queue queue = {(uint64_t)id};
  size_t used = 0;
  void *to = (*env)->GetDirectBufferAddress(env, buffer);
  jlong cap = (*env)->GetDirectBufferCapacity(env, buffer);
  yn_status status = yn_queue_poll(queue, to, cap < 0 ? 0 : (size_t)cap, -1, &used);
  (void)c;
  return status == YN_OK ? (jint)used : status;
}

static jint queue_free(JNIEnv *env, jclass c, jlong id) {
  yn_queue queue = {(uint64_t)id};
  (void)env, (void)c;
  return yn_queue_free(queue);
}

static jint log_to_queue(JNIEnv *env, jclass c, jlong id, jint level) {
  yn_queue queue = {(uint64_t)id};
  (void)env, (void)c;
  return yn_log_to_queue(queue, (uint32_t)level);
}

JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM *vm, void *reserved) {
  static const JNINativeMethod methods[] = {
      {"version", "()I", (void *)version},
      {"buildInfo", "()[B", (void *)build_info},
      {"statusName", "(I)Ljava/lang/String;", (void *)status_name},
      {"create", "([B[J[B)I", (void *)create},
      {"free", "(J)I", (void *)engine_free},
      {"cancel", "(JJ)I", (void *)cancel},
      {"drain", "(JI)I", (void *)drain},
      {"poll", "(JLjava/nio/ByteBuffer;)I", (void *)engine_poll},
      {"stats", "(J[B)I", (void *)stats},
      {"info", "(J[B)[B", (void *)info},
      {"metrics", "(J[B)[B", (void *)metrics},
      {"planMemory", "([B[B)[B", (void *)plan_memory},
      {"submit", "([B[B[I[J[B)I", (void *)submit},
      {"queueCreate", "([J[B)I", (void *)queue_create},
      {"queuePoll", "(JLjava/nio/ByteBuffer;)I", (void *)queue_poll},
      {"queueFree", "(J)I", (void *)queue_free},
      {"logToQueue", "(JI)I", (void *)log_to_queue},
  };
  JNIEnv *env = NULL;
  jclass c;
  (void)reserved;
  if ((*vm)->GetEnv(vm, (void **)&env, JNI_VERSION_10) != JNI_OK) return JNI_ERR;
  c = (*env)->FindClass(env, "ai/yinian/Native");
  if (c == NULL) return JNI_ERR;
  if ((*env)->RegisterNatives(env, c, methods, sizeof methods / sizeof *methods) != JNI_OK) return JNI_ERR;
  if (!jni_register_text(env, c)) return JNI_ERR;
  return JNI_VERSION_10;
}
