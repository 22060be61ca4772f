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

struct launches {
  char name[NAME];
  // `idle`: how long nothing had run when they began, gaps of 1 ms and longer left out.
  unsigned long long ns, count, idle;
};

static struct launches all[MOST_KERNELS];
static int kernels;
// Records come in the order in which kernels ended. Gaps by length: below 3 us, 20 us, 1 ms, and longer.
static unsigned long long first, last, running, left_out, gaps[GAPS];
static const unsigned long long bounds[GAPS - 1] = {3000, 20000, 1000000};

static void take(const CUpti_ActivityKernel4 *k) {
  char name[NAME];
  snprintf(name, sizeof name, "%.120s %d,%d,%d", k->name, k->gridX, k->gridY, k->gridZ);
  int i = 0;
  while (i < kernels && strcmp(all[i].name, name) != 0) i++;
  if (i == MOST_KERNELS) {
    left_out++;
    return;
  }
  if (i == kernels) strcpy(all[kernels++].name, name);
  all[i].ns += k->end - k->start;
  all[i].count++;
  running += k->end - k->start;
  if (last != 0 && k->start > last) {
    int length = 0;
    while (length < GAPS - 1 && k->start - last >= bounds[length]) length++;
    gaps[length] += k->start - last;
    if (length < GAPS - 1) all[i].idle += k->start - last;
  }
  if (first == 0 || k->start < first) first = k->start;
  if (k->end > last) last = k->end;
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

static int by_time(const void *a, const void *b) {
  const struct launches *x = a, *y = b;
  return x->ns < y->ns ? 1 : x->ns > y->ns ? -1 : 0;
}

static void tell(void) {
  cuptiActivityFlushAll(1);
  const char *path = getenv("YN_LAUNCHES");
  FILE *file = path == NULL ? stderr : fopen(path, "w");
  if (file == NULL) return;
  fprintf(file,
          "%.1f ms from the first launch to the end of the last, kernels %.1f ms; nothing ran: in gaps below 3 us %.1f ms, below 20 us %.1f, "
          "below 1 ms %.1f, longer %.1f\n",
          (double)(last - first) / 1e6, (double)running / 1e6, (double)gaps[0] / 1e6, (double)gaps[1] / 1e6, (double)gaps[2] / 1e6,
          (double)gaps[3] / 1e6);
  if (left_out != 0) fprintf(file, "%llu launches of further kernels are left out\n", left_out);
  qsort(all, (size_t)kernels, sizeof all[0], by_time);
  fprintf(file, "%11s %9s %12s %12s  %s\n", "ms", "launches", "us each", "us idle", "kernel and grid");
  for (int i = 0; i < kernels && i < MOST_TOLD; i++) {
    const struct launches *l = &all[i];
    const double count = (double)l->count;
    fprintf(file, "%11.2f %9llu %12.2f %12.2f  %s\n", (double)l->ns / 1e6, l->count, (double)l->ns / 1e3 / count, (double)l->idle / 1e3 / count,
            l->name);
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
