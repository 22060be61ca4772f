// Where a program's time on the GPU goes: launches by kernel and grid, with their number and time, and how long nothing ran between
// two. A library that CUDA loads into the program, over CUPTI's activity records; run.sh profile builds it and uses it.
//
// CUDA_INJECTION64_PATH names it, YN_LAUNCHES the file that is written when the program ends. What the program does before its work,
// such as warming up, counts with it.
#include <cupti.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_KERNELS = 4096, MOST_TOLD = 60, NAME = 160, BUFFER = 8 << 20, GAPS = 4 };

struct kernel {
  char name[NAME];
  // `idle`: how long nothing had run when they began, gaps of 1 ms and longer left out.
  unsigned long long ns, count, idle;
};

struct launch {
  unsigned long long start, end;
  int kernel;
};

static struct kernel all[MOST_KERNELS];
static int kernels;
// Records come in no order.
static struct launch *launches;
static size_t number, room, left_out;
// Gaps by length: below 3 us, 20 us, 1 ms, and longer.
static const unsigned long long bounds[GAPS - 1] = {3000, 20000, 1000000};

static void take(const CUpti_ActivityKernel4 *k) {
  char name[NAME];
  snprintf(name, sizeof name, "%.120s %d,%d,%d", k->name, k->gridX, k->gridY, k->gridZ);
  int i = 0;
  while (i < kernels && strcmp(all[i].name, name) != 0) i++;
  if (number == room) {
    const size_t more = room == 0 ? 1 << 16 : 2 * room;
    struct launch *larger = realloc(launches, more * sizeof *launches);
    if (larger != NULL) launches = larger, room = more;
  }
  if (i == MOST_KERNELS || number == room) {
    left_out++;
    return;
  }
  if (i == kernels) strcpy(all[kernels++].name, name);
  launches[number++] = (struct launch){k->start, k->end, i};
}

static void CUPTIAPI give_buffer(uint8_t **buffer, size_t *size, size_t *records) {
  *buffer = aligned_alloc(8, BUFFER);
  *size = *buffer == NULL ? 0 : BUFFER;
  *records = 0;
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid) {
  (void)context, (void)stream, (void)size;
  CUpti_Activity *record = NULL;
  while (valid > 0 && cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) take((const CUpti_ActivityKernel4 *)record);
  }
  free(buffer);
}

static int by_start(const void *a, const void *b) {
  const struct launch *x = a, *y = b;
  return x->start < y->start ? -1 : x->start > y->start ? 1 : 0;
}

static int by_time(const void *a, const void *b) {
  const struct kernel *x = a, *y = b;
  return x->ns < y->ns ? 1 : x->ns > y->ns ? -1 : 0;
}

static void tell(void) {
  cuptiActivityFlushAll(1);
  const char *path = getenv("YN_LAUNCHES");
  FILE *file = path == NULL ? stderr : fopen(path, "w");
  if (file == NULL) return;
  unsigned long long last = 0, running = 0, gaps[GAPS] = {0};
  if (number != 0) qsort(launches, number, sizeof launches[0], by_start);
  for (size_t i = 0; i < number; i++) {
    const struct launch *l = &launches[i];
    struct kernel *k = &all[l->kernel];
    k->ns += l->end - l->start;
    k->count++;
    running += l->end - l->start;
    if (last != 0 && l->start > last) {
      const unsigned long long gap = l->start - last;
      int length = 0;
      while (length < GAPS - 1 && gap >= bounds[length]) length++;
      gaps[length] += gap;
      if (length < GAPS - 1) k->idle += gap;
    }
    if (l->end > last) last = l->end;
  }
  fprintf(file,
          "%.1f ms from the first launch to the end of the last, kernels %.1f ms; nothing ran: in gaps below 3 us %.1f ms, below 20 us %.1f, "
          "below 1 ms %.1f, longer %.1f\n",
          number == 0 ? 0 : (double)(last - launches[0].start) / 1e6, (double)running / 1e6, (double)gaps[0] / 1e6, (double)gaps[1] / 1e6,
          (double)gaps[2] / 1e6, (double)gaps[3] / 1e6);
  if (left_out != 0) fprintf(file, "%zu launches of further kernels are left out\n", left_out);
  qsort(all, (size_t)kernels, sizeof all[0], by_time);
  fprintf(file, "%11s %9s %12s %12s  %s\n", "ms", "launches", "us each", "us idle", "kernel and grid");
  for (int i = 0; i < kernels && i < MOST_TOLD; i++) {
    const struct kernel *k = &all[i];
    const double count = (double)k->count;
    fprintf(file, "%11.2f %9llu %12.2f %12.2f  %s\n", (double)k->ns / 1e6, k->count, (double)k->ns / 1e3 / count, (double)k->idle / 1e3 / count,
            k->name);
  }
  if (file != stderr) fclose(file);
}

// What CUDA calls when it has loaded the library. Not 0: it may stay.
int InitializeInjection(void) {
  cuptiActivityRegisterCallbacks(give_buffer, take_buffer);
  cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
  atexit(tell);
  return 1;
}
