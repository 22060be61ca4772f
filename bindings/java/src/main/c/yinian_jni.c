/* The crossing from ai.yinian.Native to yinian.h. Texts cross as bytes, events in a direct buffer. */
#include "flat_request.h"

#include <jni.h>
#include <stddef.h>
#include <string.h>

/* ai.yinian.Core reads records by these offsets, ai.yinian.Request writes the struct. */
#define AT(type, field, offset) _Static_assert(offsetof(type, field) == offset, #field)
AT(yn_event, kind, 4);
AT(yn_event, request_id, 8);
AT(yn_event, user_data, 16);
AT(yn_event, status, 24);
AT(yn_event, finish, 28);
AT(yn_event, n_tokens, 32);
AT(yn_event, tokens_off, 36);
AT(yn_event, text_len, 40);
AT(yn_event, text_off, 44);
AT(yn_event, prompt_tokens, 56);
AT(yn_event, cached_tokens, 60);
AT(yn_event, completion_tokens, 64);
AT(yn_event, t_submit_ns, 72);
AT(yn_event, t_first_ns, 80);
AT(yn_event, t_event_ns, 88);
AT(yn_flat_request, set, 24);
AT(yn_flat_request, top_k, 48);
AT(yn_flat_request, temperature, 56);
AT(yn_flat_request, prompt_len, 80);
_Static_assert(sizeof(yn_flat_request) == 112, "yn_flat_request");
_Static_assert(sizeof(yn_error) == 512, "yn_error");

/* A failed Set call leaves an exception that Java throws on return. */
static int put_long(JNIEnv *env, jlongArray to, jlong value) {
  (*env)->SetLongArrayRegion(env, to, 0, 1, &value);
  return !(*env)->ExceptionCheck(env);
}

static void put_error(JNIEnv *env, jbyteArray to, const yn_error *e) {
  (*env)->SetByteArrayRegion(env, to, 0, sizeof *e, (const jbyte *)e);
  (void)(*env)->ExceptionCheck(env);
}

static void clear(yn_error *e) { memset(e, 0, sizeof *e); }

static jint version(JNIEnv *env, jclass c) {
  (void)env, (void)c;
  return (jint)yn_version();
}

static jint create(JNIEnv *env, jclass c, jbyteArray config, jlongArray out, jbyteArray error) {
  yn_engine engine = {0};
  yn_error e;
  yn_bytes text;
  yn_status status;
  jbyte *raw = (*env)->GetByteArrayElements(env, config, NULL);
  (void)c;
  if (raw == NULL) return YN_E_NO_MEMORY;
  text.data = (const uint8_t *)raw;
  text.len = (size_t)(*env)->GetArrayLength(env, config);
  clear(&e);
  status = yn_engine_create(text, &engine, &e);
  (*env)->ReleaseByteArrayElements(env, config, raw, JNI_ABORT);
  if (status != YN_OK) put_error(env, error, &e);
  else if (!put_long(env, out, (jlong)engine.id)) yn_engine_free(engine);
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

static jint stats(JNIEnv *env, jclass c, jlong id, jlongArray out) {
  yn_engine engine = {(uint64_t)id};
  yn_stats s;
  yn_status status;
  (void)c;
  memset(&s, 0, sizeof s);
  s.struct_size = sizeof s;
  status = yn_engine_stats(engine, &s);
  if (status == YN_OK) {
    jlong values[5] = {(jlong)s.waiting, (jlong)s.running, (jlong)s.finished, (jlong)s.blocks_total, (jlong)s.blocks_free};
    (*env)->SetLongArrayRegion(env, out, 0, 5, values);
    (void)(*env)->ExceptionCheck(env);
  }
  return status;
}

static jint submit(JNIEnv *env, jclass c, jbyteArray fields, jbyteArray texts, jintArray words, jlongArray out,
                   jbyteArray error) {
  yn_flat_request f;
  yn_request_id id = 0;
  yn_error e;
  yn_status status = YN_E_NO_MEMORY;
  jbyte *bytes;
  jint *ints;
  (void)c;
  clear(&e);
  (*env)->GetByteArrayRegion(env, fields, 0, sizeof f, (jbyte *)&f);
  if ((*env)->ExceptionCheck(env)) return YN_E_INTERNAL;
  bytes = (*env)->GetByteArrayElements(env, texts, NULL);
  if (bytes == NULL) return status;
  ints = (*env)->GetIntArrayElements(env, words, NULL);
  if (ints != NULL) {
    status = yn_flat_submit(f, (const uint8_t *)bytes, (const uint32_t *)ints, &id, &e);
    (*env)->ReleaseIntArrayElements(env, words, ints, JNI_ABORT);
  }
  (*env)->ReleaseByteArrayElements(env, texts, bytes, JNI_ABORT);
  if (status == YN_OK) (void)put_long(env, out, (jlong)id);
  else if (ints != NULL) put_error(env, error, &e);
  return status;
}

static jint tokenizer(JNIEnv *env, jclass c, jlong id, jlongArray out) {
  yn_engine engine = {(uint64_t)id};
  yn_tokenizer t = {0};
  yn_status status = yn_engine_tokenizer(engine, &t);
  (void)c;
  if (status == YN_OK && !put_long(env, out, (jlong)t.id)) yn_tokenizer_free(t);
  return status;
}

static jint tokenizer_open(JNIEnv *env, jclass c, jbyteArray path, jlongArray out, jbyteArray error) {
  yn_tokenizer t = {0};
  yn_error e;
  yn_bytes text;
  yn_status status;
  jbyte *raw = (*env)->GetByteArrayElements(env, path, NULL);
  (void)c;
  if (raw == NULL) return YN_E_NO_MEMORY;
  text.data = (const uint8_t *)raw;
  text.len = (size_t)(*env)->GetArrayLength(env, path);
  clear(&e);
  status = yn_tokenizer_open(text, &t, &e);
  (*env)->ReleaseByteArrayElements(env, path, raw, JNI_ABORT);
  if (status != YN_OK) put_error(env, error, &e);
  else if (!put_long(env, out, (jlong)t.id)) yn_tokenizer_free(t);
  return status;
}

static jint tokenizer_free(JNIEnv *env, jclass c, jlong id) {
  yn_tokenizer t = {(uint64_t)id};
  (void)env, (void)c;
  return yn_tokenizer_free(t);
}

/* The number of tokens goes to `count`, also with TOO_SMALL. */
static jint tokenize(JNIEnv *env, jclass c, jlong id, jbyteArray text, jint flags, jintArray ids, jlongArray count,
                     jbyteArray error) {
  yn_tokenizer t = {(uint64_t)id};
  size_t n = (size_t)(*env)->GetArrayLength(env, ids);
  yn_error e;
  yn_bytes input;
  yn_status status = YN_E_NO_MEMORY;
  jint *room;
  jbyte *raw = (*env)->GetByteArrayElements(env, text, NULL);
  (void)c;
  if (raw == NULL) return status;
  clear(&e);
  input.data = (const uint8_t *)raw;
  input.len = (size_t)(*env)->GetArrayLength(env, text);
  room = (*env)->GetIntArrayElements(env, ids, NULL);
  if (room != NULL) {
    status = yn_tokenize(t, input, (uint32_t)flags, (uint32_t *)room, &n, &e);
    (*env)->ReleaseIntArrayElements(env, ids, room, 0);
  }
  (*env)->ReleaseByteArrayElements(env, text, raw, JNI_ABORT);
  if (room == NULL) return status;
  if (status != YN_OK) put_error(env, error, &e);
  if (!(*env)->ExceptionCheck(env)) (void)put_long(env, count, (jlong)n);
  return status;
}

/* NULL with the error filled in, or with an exception. */
static jbyteArray detokenize(JNIEnv *env, jclass c, jlong id, jintArray ids, jbyteArray error) {
  yn_tokenizer t = {(uint64_t)id};
  yn_error e;
  yn_buf out = {0};
  yn_status status;
  jbyteArray text = NULL;
  jint *raw = (*env)->GetIntArrayElements(env, ids, NULL);
  (void)c;
  if (raw == NULL) return NULL;
  clear(&e);
  status = yn_detokenize(t, (const uint32_t *)raw, (size_t)(*env)->GetArrayLength(env, ids), 0, &out, &e);
  (*env)->ReleaseIntArrayElements(env, ids, raw, JNI_ABORT);
  if (status != YN_OK) {
    put_error(env, error, &e);
    return NULL;
  }
  if (out.len <= 0x7fffffff) text = (*env)->NewByteArray(env, (jsize)out.len);
  if (text != NULL) {
    (*env)->SetByteArrayRegion(env, text, 0, (jsize)out.len, (const jbyte *)out.data);
    (void)(*env)->ExceptionCheck(env);
  }
  yn_buf_free(&out);
  return text;
}

JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM *vm, void *reserved) {
  static const JNINativeMethod methods[] = {
      {"version", "()I", (void *)version},
      {"create", "([B[J[B)I", (void *)create},
      {"free", "(J)I", (void *)engine_free},
      {"cancel", "(JJ)I", (void *)cancel},
      {"poll", "(JLjava/nio/ByteBuffer;)I", (void *)engine_poll},
      {"stats", "(J[J)I", (void *)stats},
      {"submit", "([B[B[I[J[B)I", (void *)submit},
      {"tokenizer", "(J[J)I", (void *)tokenizer},
      {"tokenizerOpen", "([B[J[B)I", (void *)tokenizer_open},
      {"tokenizerFree", "(J)I", (void *)tokenizer_free},
      {"tokenize", "(J[BI[I[J[B)I", (void *)tokenize},
      {"detokenize", "(J[I[B)[B", (void *)detokenize},
  };
  JNIEnv *env = NULL;
  jclass c;
  (void)reserved;
  if ((*vm)->GetEnv(vm, (void **)&env, JNI_VERSION_10) != JNI_OK) return JNI_ERR;
  c = (*env)->FindClass(env, "ai/yinian/Native");
  if (c == NULL) return JNI_ERR;
  if ((*env)->RegisterNatives(env, c, methods, sizeof methods / sizeof *methods) != JNI_OK) return JNI_ERR;
  return JNI_VERSION_10;
}
