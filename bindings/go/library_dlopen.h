#ifndef YINIAN_LIBRARY_DLOPEN_H
#define YINIAN_LIBRARY_DLOPEN_H

#include <stddef.h>
#include <stdint.h>

/* Loads a library of version `abi` (major << 8 | minor) for all functions of yinian.h: 1, or 0 and why not. Call it until it
   answers 1, never on two threads at once. */
int yn_dlopen(const char *path, uint32_t abi, char *why, size_t why_size);

#endif
