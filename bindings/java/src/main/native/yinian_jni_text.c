/* The natives for tokenizers. */
#include "yinian_jni.h"

static jint tokenizer(JNIEnv *env, jclass c, jlong id, jlongArray out) {
  yn_engine engine = {(uint64_t)id};
  yn_tokenizer t = {0};
  yn_status status = yn_engine_tokenizer(engine, &t);
  (void)c;
  if (status == YN_OK && !jni_put_long(env, out, (jlong)t.id)) yn_tokenizer_free(t);
  return status;
}

static jint tokenizer_open(JNIEnv *env, jclass c, jbyteArray path, jlongArray out, jbyteArray error) {
  yn_tokenizer t = {0};
  yn_error e;
  jni_borrowed text;
  yn_status status;
  (void)c;
  if (!jni_borrow(env, path, &text)) return YN_E_NO_MEMORY;
  jni_clear(&e);
  status = yn_tokenizer_open(text.bytes, &t, &e);
  jni_return(env, &text);
  if (status != YN_OK) jni_put_error(env, error, &e);
  else if (!jni_put_long(env, out, (jlong)t.id)) yn_tokenizer_free(t);
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
  jni_borrowed input;
  yn_status status = YN_E_NO_MEMORY;
  jint *room;
  (void)c;
  if (!jni_borrow(env, text, &input)) return status;
  jni_clear(&e);
  room = (*env)->GetIntArrayElements(env, ids, NULL);
  if (room != NULL) {
    status = yn_tokenize(t, input.bytes, (uint32_t)flags, (uint32_t *)room, &n, &e);
    (*env)->ReleaseIntArrayElements(env, ids, room, 0);
  }
  jni_return(env, &input);
  if (room == NULL) return status;
  if (status != YN_OK) jni_put_error(env, error, &e);
  if (!(*env)->ExceptionCheck(env)) (void)jni_put_long(env, count, (jlong)n);
  return status;
}

static jbyteArray detokenize(JNIEnv *env, jclass c, jlong id, jintArray ids, jint flags, jbyteArray error) {
  yn_tokenizer t = {(uint64_t)id};
  yn_error e;
  yn_buf out = {0};
  yn_status status;
  jint *raw = (*env)->GetIntArrayElements(env, ids, NULL);
  (void)c;
  if (raw == NULL) return NULL;
  jni_clear(&e);
  status = yn_detokenize(t, (const uint32_t *)raw, (size_t)(*env)->GetArrayLength(env, ids), (uint32_t)flags, &out, &e);
  (*env)->ReleaseIntArrayElements(env, ids, raw, JNI_ABORT);
  return jni_take(env, status, &out, error, &e);
}

static jbyteArray chat_render(JNIEnv *env, jclass c, jlong id, jbyteArray chat, jbyteArray error) {
  yn_tokenizer t = {(uint64_t)id};
  yn_error e;
  yn_buf out = {0};
  jni_borrowed text;
  yn_status status;
  (void)c;
  if (!jni_borrow(env, chat, &text)) return NULL;
  jni_clear(&e);
  status = yn_chat_render(t, text.bytes, &out, &e);
  jni_return(env, &text);
  return jni_take(env, status, &out, error, &e);
}

int jni_register_text(JNIEnv *env, jclass native) {
  static const JNINativeMethod methods[] = {
      {"tokenizer", "(J[J)I", (void *)tokenizer},
      {"tokenizerOpen", "([B[J[B)I", (void *)tokenizer_open},
      {"tokenizerFree", "(J)I", (void *)tokenizer_free},
      {"tokenize", "(J[BI[I[J[B)I", (void *)tokenize},
      {"detokenize", "(J[II[B)[B", (void *)detokenize},
      {"chatRender", "(J[B[B)[B", (void *)chat_render},
  };
  return (*env)->RegisterNatives(env, native, methods, sizeof methods / sizeof *methods) == JNI_OK;
}
