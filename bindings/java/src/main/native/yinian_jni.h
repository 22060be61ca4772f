/* What the two files of the glue share. `static inline`: the library exports JNI_OnLoad alone. */
#ifndef YINIAN_JNI_H
#define YINIAN_JNI_H

#include "flat_request.h"

#include <jni.h>
#include <string.h>

#define JNI_HIDDEN __attribute__((visibility("hidden")))

/* The methods of yinian_jni_text.c. 0 with an exception when it fails. */
JNI_HIDDEN int jni_register_text(JNIEnv *env, jclass native);

/* A byte[] as the library takes it, until jni_return. */
typedef struct jni_borrowed {
  jbyteArray array;
  jbyte *raw;
  yn_bytes bytes;
} jni_borrowed;

/* 0 with an exception when there is no memory. */
static inline int jni_borrow(JNIEnv *env, jbyteArray array, jni_borrowed *to) {
  to->array = array;
  to->raw = (*env)->GetByteArrayElements(env, array, NULL);
  if (to->raw == NULL) return 0;
  to->bytes.data = (const uint8_t *)to->raw;
  to->bytes.len = (size_t)(*env)->GetArrayLength(env, array);
  return 1;
}

static inline void jni_return(JNIEnv *env, jni_borrowed *b) {
  (*env)->ReleaseByteArrayElements(env, b->array, b->raw, JNI_ABORT);
}

/* A failed Set call leaves an exception that Java throws on return. */
static inline int jni_put_long(JNIEnv *env, jlongArray to, jlong value) {
  (*env)->SetLongArrayRegion(env, to, 0, 1, &value);
  return !(*env)->ExceptionCheck(env);
}

static inline void jni_put_error(JNIEnv *env, jbyteArray to, const yn_error *e) {
  (*env)->SetByteArrayRegion(env, to, 0, sizeof *e, (const jbyte *)e);
  (void)(*env)->ExceptionCheck(env);
}

static inline void jni_clear(yn_error *e) { memset(e, 0, sizeof *e); }

/* NULL with an exception when there is no memory. */
static inline jbyteArray jni_bytes(JNIEnv *env, yn_bytes from) {
  jbyteArray to;
  if (from.len > 0x7fffffff) {
    jclass oom = (*env)->FindClass(env, "java/lang/OutOfMemoryError");
    if (oom != NULL) (*env)->ThrowNew(env, oom, "an answer of libyinian is larger than an array");
    return NULL;
  }
  to = (*env)->NewByteArray(env, (jsize)from.len);
  if (to == NULL) return NULL;
  (*env)->SetByteArrayRegion(env, to, 0, (jsize)from.len, (const jbyte *)from.data);
  (void)(*env)->ExceptionCheck(env);
  return to;
}

/* What a call put into `out`, which is freed; NULL with the error filled in, or with an exception. */
static inline jbyteArray jni_take(JNIEnv *env, yn_status status, yn_buf *out, jbyteArray error, const yn_error *e) {
  yn_bytes bytes = {out->data, out->len};
  jbyteArray taken = NULL;
  if (status == YN_OK) taken = jni_bytes(env, bytes);
  else jni_put_error(env, error, e);
  yn_buf_free(out);
  return taken;
}

#endif
