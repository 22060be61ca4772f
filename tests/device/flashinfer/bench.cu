// FlashInfer's attention kernels on the shapes of `gpu_ops attention`, timed as that is: the best of several rounds of recorded
// launches, four a recording, rates beside 4.3 TB/s and 790 TFLOP/s. A plan is made once, outside of what is timed. Outputs are
// compared with plain sums, of small cases with large numbers first, then of a sample of every case that is timed.
//
// flashinfer_bench [--only TEXT]: what has TEXT in its name, "32/8 decode 64 x 1000, fa3" say. A kernel that takes its process
// down costs one line: a child does the work and the next child goes on behind it. Exits with 1 when something failed.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cases.h"

namespace stick {
namespace {

constexpr double kBytesPerUs = 4.3e6, kFlopsPerUs = 790e6;
constexpr int kRounds = 5, kLaunches = 4, kSamples = 256, kWarps = 8, kAhead = 256;
constexpr unsigned kMostSeconds = 15;  // of one kernel in one case
constexpr double kTolerance = 0.02;    // of the largest number of a row: sums are of bfloat16 weights
constexpr int kNoDevice = 3;           // status of a child that can do nothing
constexpr int kNoMore = 4;             // and of one that has told of a fault that it does not get over

/// Random signs and mantissas: 0.008 to 0.03 as our bench has them, or 0.5 to 2.
__global__ void fill(uint16_t* at, size_t n, uint64_t seed, uint16_t base) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) {
    uint64_t z = seed + i * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    at[i] = base | (uint16_t(z >> 40) & 0x80ff);
  }
}

struct Sample {
  int sequence, query, head;
};

struct Reference {
  const Bf16 *q, *pool, *out;
  const int *starts, *keys, *table;
  int widest, heads, kv_heads;
};

/// A block per sample: errors[sample] becomes the largest difference of its row of `out` over the row's largest number.
__global__ void compare(Reference r, const Sample* samples, float* errors) {
  const Sample s = samples[blockIdx.x];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, shared_by = r.heads / r.kv_heads;
  const int first = r.starts[s.sequence], queries = r.starts[s.sequence + 1] - first;
  const int seen = r.keys[s.sequence] - queries + s.query + 1;
  const size_t row = (size_t(first + s.query) * r.heads + s.head) * kHeadDim;
  const size_t piece = size_t(kBlock) * kHeadDim;
  float most = -INFINITY, sum = 0, sums[4] = {};
  for (int key = warp; key < seen; key += kWarps) {
    const size_t block = r.table[size_t(s.sequence) * r.widest + key / kBlock];
    const Bf16* k = r.pool + (block * 2 * r.kv_heads + s.head / shared_by) * piece + key % kBlock * kHeadDim;
    const Bf16* v = k + r.kv_heads * piece;
    float logit = 0;
    for (int i = 0; i < 4; i++) logit += float(r.q[row + i * 32 + lane]) * float(k[i * 32 + lane]);
    for (int to = 16; to > 0; to /= 2) logit += __shfl_xor_sync(~0u, logit, to);
    logit *= kScale;
    const float now = fmaxf(most, logit), kept = expf(most - now), weight = expf(logit - now);
    sum = sum * kept + weight;
    for (int i = 0; i < 4; i++) sums[i] = sums[i] * kept + weight * float(v[i * 32 + lane]);
    most = now;
  }
  __shared__ float mosts[kWarps], totals[kWarps], parts[kWarps][kHeadDim], largest[kHeadDim], apart[kHeadDim];
  if (lane == 0) mosts[warp] = most, totals[warp] = sum;
  for (int i = 0; i < 4; i++) parts[warp][i * 32 + lane] = sums[i];
  __syncthreads();
  if (threadIdx.x < kHeadDim) {
    float top = -INFINITY, total = 0, value = 0;
    for (int w = 0; w < kWarps; w++) top = fmaxf(top, mosts[w]);
    for (int w = 0; w < kWarps; w++) {
      const float weight = expf(mosts[w] - top);
      total += weight * totals[w];
      value += weight * parts[w][threadIdx.x];
    }
    value /= total;
    largest[threadIdx.x] = fabsf(value);
    apart[threadIdx.x] = fabsf(float(r.out[row + threadIdx.x]) - value);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    float top = 0, worst = 0;
    for (int i = 0; i < kHeadDim; i++) {
      top = fmaxf(top, largest[i]);
      worst = apart[i] <= worst ? worst : apart[i];  // a NaN stays
      if (!(apart[i] < INFINITY)) break;
    }
    errors[blockIdx.x] = worst / top;
  }
}

Memory upload(const void* from, size_t bytes) {
  Memory memory(bytes);
  check(cudaMemcpy(memory.as<void>(), from, bytes, cudaMemcpyHostToDevice), "an upload");
  return memory;
}

Memory upload(const std::vector<int>& from) { return upload(from.data(), from.size() * sizeof(int)); }

Memory numbers(size_t n, uint64_t seed, bool small) {
  Memory memory(n * sizeof(Bf16));
  fill<<<132 * 8, 256>>>(memory.as<uint16_t>(), n, seed, small ? 0x3f00 : 0x3c00);
  check(cudaGetLastError(), "fill");
  return memory;
}

void indices(const Case& c, Problem& p) {
  std::vector<int> blocks_of;
  p.starts = p.block_starts = {0};
  std::vector<int> last_lens;
  for (auto& [queries, keys] : c.sequences) {
    p.queries.push_back(queries);
    p.keys.push_back(keys);
    p.starts.push_back(p.starts.back() + queries);
    blocks_of.push_back((keys + kBlock - 1) / kBlock);
    p.block_starts.push_back(p.block_starts.back() + blocks_of.back());
    last_lens.push_back((keys - 1) % kBlock + 1);
    p.widest = std::max(p.widest, blocks_of.back());
  }
  const int blocks = p.block_starts.back();
  std::vector<int> order(blocks), table(size_t(p.sequences()) * p.widest, 0);
  for (int i = 0; i < blocks; i++) order[i] = i;
  Random random{2};
  for (int i = blocks - 1; i > 0; i--) std::swap(order[i], order[random.below(i + 1)]);
  for (int i = 0; i < p.sequences(); i++) {
    std::copy_n(order.begin() + p.block_starts[i], blocks_of[i], table.begin() + size_t(i) * p.widest);
  }
  p.starts_d = upload(p.starts);
  p.block_starts_d = upload(p.block_starts);
  p.keys_d = upload(p.keys);
  p.last_lens_d = upload(last_lens);
  // Some kernels look ahead.
  order.resize(order.size() + kAhead, 0);
  table.resize(table.size() + kAhead, 0);
  p.blocks_d = upload(order);
  p.table_d = upload(table);
}

Problem build(const Case& c, cudaStream_t stream) {
  Problem p;
  p.heads = c.heads;
  p.kv_heads = c.kv_heads;
  p.decode = c.decode();
  p.stream = stream;
  indices(c, p);
  const size_t rows = size_t(p.tokens()) * p.heads * kHeadDim;
  p.q = numbers(rows, 3, c.small);
  p.pool = numbers(size_t(p.block_starts.back()) * 2 * p.piece(), 4, c.small);
  p.out = Memory(rows * sizeof(Bf16));
  check(cudaMemset(p.out.as<void>(), 0xff, p.out.bytes()), "out");
  p.floats = Memory(256 << 20);
  p.ints = Memory(32 << 20);
  p.ints_host = Memory(32 << 20, true);
  p.semaphores = Memory(1 << 20);
  check(cudaDeviceSynchronize(), "the data");
  return p;
}

/// The largest error of some rows of the output.
double error(const Problem& p) {
  Random random{5};
  std::vector<Sample> samples;
  for (int i = 0; i < kSamples; i++) {
    const int sequence = i == 0 ? p.sequences() - 1 : static_cast<int>(random.below(p.sequences()));
    const int queries = p.queries[sequence];
    const int query = i == 0 ? queries - 1 : static_cast<int>(random.below(queries));
    samples.push_back({sequence, query, static_cast<int>(random.below(p.heads))});
  }
  const Memory samples_d = upload(samples.data(), samples.size() * sizeof(Sample));
  const Memory errors_d(kSamples * sizeof(float));
  check(cudaMemset(errors_d.as<void>(), 0xff, errors_d.bytes()), "errors");
  const Reference r{p.q.as<Bf16>(),      p.pool.as<Bf16>(), p.out.as<Bf16>(), p.starts_d.as<int>(), p.keys_d.as<int>(),
                    p.table_d.as<int>(), p.widest,          p.heads,          p.kv_heads};
  compare<<<kSamples, kWarps * 32>>>(r, samples_d.as<Sample>(), errors_d.as<float>());
  check(cudaGetLastError(), "compare");
  float errors[kSamples];
  check(cudaMemcpy(errors, errors_d.as<void>(), sizeof errors, cudaMemcpyDeviceToHost), "errors");
  double worst = 0;
  for (float e : errors) {
    if (!(e <= worst)) worst = std::isnan(e) ? INFINITY : e;
  }
  return worst;
}

/// Microseconds of a launch: the best round.
double time(const Problem& p, const Launch& launch) {
  cudaGraph_t graph;
  cudaGraphExec_t recorded;
  check(cudaStreamBeginCapture(p.stream, cudaStreamCaptureModeThreadLocal), "a recording");
  for (int i = 0; i < kLaunches; i++) launch();
  check(cudaStreamEndCapture(p.stream, &graph), "a recording");
  check(cudaGraphInstantiate(&recorded, graph, 0), "a recording");
  const auto run = [&](int times) {
    const auto from = std::chrono::steady_clock::now();
    for (int i = 0; i < times; i++) check(cudaGraphLaunch(recorded, p.stream), "a replay");
    check(cudaStreamSynchronize(p.stream), "a replay");
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - from).count();
  };
  const int times = static_cast<int>(std::clamp(10'000.0 / run(1), 1.0, 100.0));
  double best = INFINITY;
  for (int i = 0; i < kRounds; i++) best = std::min(best, run(times));
  check(cudaGraphExecDestroy(recorded), "a recording");
  check(cudaGraphDestroy(graph), "a recording");
  return best / (times * kLaunches);
}

/// One line. Whether the kernel did as it should.
bool measure(const Unit& unit, cudaStream_t stream) {
  const Case& c = unit.of;
  Problem p = build(c, stream);
  const Launch launch = unit.kernel->plan(p);
  launch();
  check(cudaStreamSynchronize(stream), "a launch");
  const double us = c.small ? 0 : time(p, launch);
  if (c.small) {  // the second one finds what the first one left
    launch();
    check(cudaStreamSynchronize(stream), "a second launch");
  }
  const double worst = error(p);
  const bool right = worst <= kTolerance;
  if (c.small || !right) {
    std::printf("%-44s %s: error %.4f of at most %.2f  %s\n", c.name.c_str(), right ? "ok" : "WRONG", worst, kTolerance,
                unit.kernel->name);
  } else {
    const double limit = std::max(c.bytes() / kBytesPerUs, c.flops() / kFlopsPerUs);
    std::printf("%-44s %9.2f %6.2f %7.1f %4.0f%%  %s\n", c.name.c_str(), us, c.bytes() / us / 1e6, c.flops() / us / 1e6,
                100.0 * limit / us, unit.kernel->name);
  }
  return right;
}

void say_failed(const Unit& unit, const char* why) {
  std::printf("%-44s FAILED: %s  %s\n", unit.of.name.c_str(), why, unit.kernel->name);
  std::fflush(stdout);
}

/// Does units from `first` on, and says in `progress` which one it is at. A fault that CUDA does not get over ends the child.
int child(const std::vector<Unit>& all, size_t first, int progress) {
  cudaStream_t stream;
  try {
    cudaDeviceProp device;
    check(cudaGetDeviceProperties(&device, 0), "the device");
    if (device.major != 9) throw std::runtime_error(std::string(device.name) + " is no GPU of sm_90a");
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    if (first == 0) std::printf("%s, FlashInfer %s\n", device.name, FLASHINFER_VERSION);
  } catch (const std::exception& e) {
    std::printf("flashinfer_bench: %s\n", e.what());
    std::fflush(stdout);
    return kNoDevice;
  }
  if (first == 0) std::printf("%-44s %9s %6s %7s %5s  %s\n", "", "us", "TB/s", "TFLOP/s", "limit", "kernel");
  int failed = 0;
  for (size_t i = first; i < all.size(); i++) {
    if (write(progress, &i, sizeof i) != sizeof i) return kNoDevice;
    alarm(kMostSeconds);
    try {
      if (!measure(all[i], stream)) failed = 1;
    } catch (const std::exception& e) {
      say_failed(all[i], e.what());
      failed = 1;
      cudaStreamCaptureStatus recording = cudaStreamCaptureStatusNone;
      const bool clean = cudaStreamIsCapturing(stream, &recording) == cudaSuccess && recording == cudaStreamCaptureStatusNone;
      cudaGetLastError();
      if (!clean || cudaDeviceSynchronize() != cudaSuccess) return kNoMore;
    }
    std::fflush(stdout);
  }
  return failed;
}

/// Starts children until all units are done or have failed.
int parent(const std::vector<Unit>& all, const std::string& only) {
  int failed = 0;
  for (size_t next = 0; next < all.size();) {
    int ends[2];
    if (pipe(ends) != 0) return std::perror("pipe"), 1;
    const std::string first = std::to_string(next), progress = std::to_string(ends[1]);
    const pid_t pid = fork();
    if (pid < 0) return std::perror("fork"), 1;
    if (pid == 0) {
      close(ends[0]);
      execl("/proc/self/exe", "flashinfer_bench", "--only", only.c_str(), "--child", first.c_str(), progress.c_str(), nullptr);
      std::perror("/proc/self/exe");
      _exit(kNoDevice);
    }
    close(ends[1]);
    size_t at = next;
    bool any = false;
    for (size_t i; read(ends[0], &i, sizeof i) == sizeof i; any = true) at = i;
    close(ends[0]);
    int status = 0;
    if (waitpid(pid, &status, 0) != pid) return std::perror("waitpid"), 1;
    if (WIFEXITED(status)) {
      const bool done = any && at + 1 == all.size();
      if (WEXITSTATUS(status) == kNoDevice || done) return failed | (WEXITSTATUS(status) != 0);
      if (WEXITSTATUS(status) != kNoMore) say_failed(all[at], "the process ended");
    } else if (!any) {
      std::printf("flashinfer_bench: signal %d before the first case\n", WTERMSIG(status));
      return 1;
    } else {
      const int signal = WTERMSIG(status);
      say_failed(all[at], signal == SIGALRM ? "out of time" : strsignal(signal));
    }
    failed = 1;
    next = at + 1;
  }
  return failed;
}

}  // namespace
}  // namespace stick

int main(int count, char** arguments) {
  std::string only;
  size_t first = 0;
  int progress = -1;
  for (int i = 1; i < count; i++) {
    if (std::strcmp(arguments[i], "--only") == 0 && i + 1 < count) {
      only = arguments[++i];
    } else if (std::strcmp(arguments[i], "--child") == 0 && i + 2 < count) {
      first = std::strtoull(arguments[++i], nullptr, 10);
      progress = std::atoi(arguments[++i]);
    } else {
      std::fprintf(stderr, "usage: flashinfer_bench [--only TEXT]\n");
      return 2;
    }
  }
  const std::vector<stick::Unit> all = stick::units(only);
  if (all.empty()) {
    std::fprintf(stderr, "flashinfer_bench: nothing has \"%s\" in its name\n", only.c_str());
    return 2;
  }
  return progress < 0 ? stick::parent(all, only) : stick::child(all, first, progress);
}
