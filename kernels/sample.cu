// sample: one token per sequence, as its sampler row says: biases, penalties, mask of end tokens, temperature, top_k, top_p,
// min_p, then the draw. logits: f32 [S, V]; state: i32 [R, words] (hal::ops::SamplerWord); counts: u16 [R, V]; biases: i32
// pairs [R, 300]; out: i32 [S]. Bound by reading the logits: once for a greedy row, three to five times for another.
//
// `sample_scan` (grid: parts of the vocabulary x sequences) puts biases and the mask into the logits, remembering what was
// there, and finds the largest logit. `sample_draw` (grid: sequences) draws and puts the old logits back. Penalties are
// applied wherever a logit is read. Where the product in front gave each row's first candidate, rows that draw their largest logit as it
// is take that, and their logits are not looked at: there may be none.
//
// Nothing is sorted whole. All processors keep a prefix of the candidates in order of falling logit, then rising id, so a
// draw is a few searches for where the running count or mass of that order reaches a threshold: a histogram of 2048 bins
// over the distance to the largest logit finds the bin, whose candidates (or all up to it) are sorted in shared memory. Bins
// with more candidates than fit are split by the bits of the logit; equal logits are counted by id. Masses are integers
// (weights times 2^42), so sums do not depend on any order. From logits with a NaN a row draws -1, and
// nothing changes: the fault word could not tell which of two steps under way it was. A negative row draws nothing.
// Instances: one each.
#include "sample_row.cuh"

constexpr uint32_t THREADS = 512;

extern "C" __global__ void __launch_bounds__(THREADS) yn_sample_scan(const __grid_constant__ SampleParams p) {
  after_prior();
  __shared__ uint64_t best_scratch[32];
  __shared__ float lowest_scratch[32];
  const uint32_t s = blockIdx.y, t = threadIdx.x;
  const int index = sampler_row(p, s);
  if (index < 0) return;
  const Row row(p, s, uint32_t(index));
  if (row.takes_first) return;
  Scratch& scratch = at<Scratch>(p.scratch)[s];
  const uint32_t share = (p.vocabulary + 4 * p.parts - 1) / (4 * p.parts) * 4;
  const uint32_t from = min(share * blockIdx.x, p.vocabulary), to = min(from + share, p.vocabulary);

  for (uint32_t i = t; i < row.num_biases; i += THREADS) {
    if (!row.owns(i, from, to)) continue;
    float x = row.logits[row.biases[2 * i]];
    scratch.before_bias[i] = x;
    for (uint32_t j = i; j < row.num_biases; j++) {
      if (row.biases[2 * j] == row.biases[2 * i]) x = __fadd_rn(x, __int_as_float(row.biases[2 * j + 1]));
    }
    row.logits[row.biases[2 * i]] = x;
  }
  __syncthreads();
  if (t < row.num_masked && row.masks(t, from, to)) scratch.before_mask[t] = row.logits[row.words[END_TOKENS + t]];
  __syncthreads();
  if (t < row.num_masked && row.masks(t, from, to)) row.logits[row.words[END_TOKENS + t]] = -INFINITY;
  __syncthreads();

  uint64_t best = ~uint64_t(0);
  float lowest = INFINITY;
  bool has_nan = false;
  visit(row.logits, from, to, p.vectors != 0, [&](float raw, uint32_t id) {
    const float x = row.penalized(raw, id);
    has_nan |= isnan(x);
    best = Min()(best, candidate(x, id));
    if (x > -INFINITY && x < lowest) lowest = x;
  });
  best = reduce_block(best, ~uint64_t(0), best_scratch, Min());
  lowest = reduce_block(lowest, float(INFINITY), lowest_scratch, Min());
  const int any_nan = __syncthreads_or(has_nan);
  if (t == 0) scratch.parts[blockIdx.x] = Part{best, lowest, uint32_t(any_nan)};
}

constexpr uint32_t BINS = 2048, CAPACITY = 2048, SHARE = BINS / THREADS;
constexpr float ONE = 4398046511104.0f;  // 2^42, the mass of the most probable candidate
constexpr float NEAR = 12.0f, FAR = 32.0f;  // distances where windows end; what is farther has no mass

__device__ __forceinline__ uint64_t mass_of(float distance) {
  return distance < FAR ? __float2ull_rz(exp_same(-distance) * ONE) : 0;
}

struct Found {
  uint32_t index;   // of the bin, or of the candidate in the list; NONE when nowhere
  uint32_t number;  // candidates in the bin
  uint64_t count, mass;  // before the bin; up to and with the candidate
};
constexpr uint32_t NONE = ~0u;

struct Shared {
  uint32_t number[BINS];
  uint32_t low[BINS], high[BINS];  // of masses
  uint64_t list[CAPACITY];         // candidates
  uint64_t scan[2][32];
  Found found;
  uint32_t listed;
  uint32_t tie;
};

// Exclusive sums over the block of two numbers per thread.
__device__ __forceinline__ void scan(Shared& sh, uint64_t& a, uint64_t& b) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint64_t x = a, y = b;
#pragma unroll
  for (uint32_t d = 1; d < 32; d *= 2) {
    const uint64_t u = __shfl_up_sync(ALL, x, d), v = __shfl_up_sync(ALL, y, d);
    if (lane >= d) x += u, y += v;
  }
  if (lane == 31) sh.scan[0][warp] = x, sh.scan[1][warp] = y;
  __syncthreads();
  const uint32_t other = lane;
  uint64_t u = other < warp ? sh.scan[0][other] : 0, v = other < warp ? sh.scan[1][other] : 0;
  u = reduce_warp(u, Add());
  v = reduce_warp(v, Add());
  a = u + x - a;
  b = v + y - b;
}

// Which candidates a pass looks at.
struct Filter {
  uint32_t window;
  uint32_t first_bin, last_bin;
  uint32_t first_key, last_key;
};

// The searches of one row. All threads of the block call its functions together, with equal arguments.
struct Search {
  const SampleParams& p;
  const Row& row;
  Shared& sh;
  float largest, inverse, near_scale;
  uint64_t window_count[2], window_mass[2];  // of the windows before each
  uint32_t histogram_of;                     // the window the histogram is of, or NONE
  Filter listed;                             // what the list holds, bins of one window
  uint64_t listed_count, listed_mass;        // before it
  bool has_list;

  __device__ Search(const SampleParams& p, const Row& row, Shared& sh, float largest, float lowest, float temperature)
      : p(p), row(row), sh(sh), largest(largest), inverse(1.0f / temperature), histogram_of(NONE), has_list(false) {
    const float range = fminf(fmaxf((largest - lowest) * inverse, 1e-6f), NEAR);
    near_scale = float(BINS) / range;
    window_count[0] = window_mass[0] = 0;
  }

  __device__ float distance(float x) const { return (largest - x) * inverse; }
  __device__ static uint32_t window_of(float distance) { return distance < NEAR ? 0 : distance < FAR ? 1 : NONE; }
  __device__ uint32_t bin_of(float distance) const {
    const float bin = distance < NEAR ? distance * near_scale : (distance - NEAR) * (float(BINS) / (FAR - NEAR));
    return min(uint32_t(bin), BINS - 1);
  }
  __device__ bool passes(const Filter& f, float distance, uint32_t key) const {
    if (window_of(distance) != f.window || key < f.first_key || key > f.last_key) return false;
    const uint32_t bin = bin_of(distance);
    return bin >= f.first_bin && bin <= f.last_bin;
  }
  template <typename Each>
  __device__ void each(const Each& each) const {
    visit(row.logits, 0, row.vocabulary, p.vectors != 0, [&](float x, uint32_t id) { each(row.penalized(x, id), id); });
  }

  __device__ void clear() {
    for (uint32_t i = threadIdx.x; i < BINS; i += THREADS) sh.number[i] = sh.low[i] = sh.high[i] = 0;
    __syncthreads();
  }
  __device__ void put(uint32_t bin, uint64_t mass) {
    atomicAdd(&sh.number[bin], 1u);
    const uint32_t low = uint32_t(mass);
    const uint32_t carry = atomicAdd(&sh.low[bin], low) > ~low ? 1 : 0;
    const uint32_t high = uint32_t(mass >> 32) + carry;
    if (high != 0) atomicAdd(&sh.high[bin], high);
  }

  // Histogram of a window, with the mass of everything and of what weighs at least `min_p`.
  __device__ void fill(uint32_t window, float min_p, uint64_t& all, uint64_t& heavy) {
    all = heavy = 0;
    clear();
    each([&](float x, uint32_t) {
      const float y = distance(x);
      const uint32_t w = window_of(y);
      if (w == NONE) return;
      const float weight = exp_same(-y);
      const uint64_t mass = __float2ull_rz(weight * ONE);
      all += mass;
      if (weight >= min_p) heavy += mass;
      if (w == window) put(bin_of(y), mass);
    });
    __syncthreads();
    histogram_of = window;
  }
  // Histogram of the filter's candidates by 11 bits of their keys.
  __device__ void fill_keys(const Filter& f, uint32_t shift) {
    clear();
    each([&](float x, uint32_t) {
      const float y = distance(x);
      const uint32_t key = falling(x);
      if (passes(f, y, key)) put((key >> shift) % BINS, mass_of(y));
    });
    __syncthreads();
    histogram_of = NONE;
  }

  // Finds the bin where the running count or mass reaches `threshold`; sums start from `count` and `mass`.
  __device__ Found locate(bool by_count, uint64_t threshold, uint64_t count, uint64_t mass) {
    static_assert(BINS == SHARE * THREADS, "a share of bins for each thread");
    if (threadIdx.x == 0) sh.found.index = NONE;
    const uint32_t first = SHARE * threadIdx.x;
    uint64_t masses[SHARE], c = 0, m = 0;
    for (uint32_t j = 0; j < SHARE; j++) {
      masses[j] = uint64_t(sh.high[first + j]) << 32 | sh.low[first + j];
      c += sh.number[first + j];
      m += masses[j];
    }
    scan(sh, c, m);
    c += count;
    m += mass;
    for (uint32_t j = 0; j < SHARE; j++) {
      const uint32_t n = sh.number[first + j];
      const uint64_t before = by_count ? c : m, after = by_count ? c + n : m + masses[j];
      if (before < threshold && threshold <= after) sh.found = Found{first + j, n, c, m};
      c += n;
      m += masses[j];
    }
    __syncthreads();
    const Found found = sh.found;
    __syncthreads();
    return found;
  }

  // Sorts the filter's candidates, `n` of them, into the list.
  __device__ void collect(const Filter& f, uint32_t n, uint64_t count, uint64_t mass) {
    uint32_t size = 2;
    while (size < n) size *= 2;
    for (uint32_t i = threadIdx.x; i < size; i += THREADS) sh.list[i] = ~uint64_t(0);
    if (threadIdx.x == 0) sh.listed = 0;
    __syncthreads();
    each([&](float x, uint32_t id) {
      if (!passes(f, distance(x), falling(x))) return;
      const uint32_t i = atomicAdd(&sh.listed, 1u);
      if (i < CAPACITY) sh.list[i] = candidate(x, id);
    });
    __syncthreads();
    for (uint32_t k = 2; k <= size; k *= 2) {
      for (uint32_t j = k / 2; j > 0; j /= 2) {
        for (uint32_t i = threadIdx.x; i < size / 2; i += THREADS) {
          const uint32_t a = (i & ~(j - 1)) * 2 + (i & (j - 1)), b = a + j;
          const uint64_t x = sh.list[a], y = sh.list[b];
          if ((x > y) == ((a & k) == 0)) sh.list[a] = y, sh.list[b] = x;
        }
        __syncthreads();
      }
    }
    listed = f;
    listed_count = count;
    listed_mass = mass;
    has_list = true;
  }

  // Finds the candidate of the list where the running count or mass reaches `threshold`.
  __device__ Found resolve(bool by_count, uint64_t threshold) {
    static_assert(CAPACITY == SHARE * THREADS, "a share of candidates for each thread");
    if (threadIdx.x == 0) sh.found.index = NONE;
    const uint32_t first = SHARE * threadIdx.x, n = min(sh.listed, CAPACITY);
    uint64_t masses[SHARE], c = 0, m = 0;
    for (uint32_t j = 0; j < SHARE; j++) {
      const bool inside = first + j < n;
      masses[j] = inside ? mass_of(distance(unfalling(uint32_t(sh.list[first + j] >> 32)))) : 0;
      c += inside;
      m += masses[j];
    }
    scan(sh, c, m);
    c += listed_count;
    m += listed_mass;
    for (uint32_t j = 0; j < SHARE; j++) {
      if (first + j >= n) break;
      const uint64_t before = by_count ? c : m;
      c += 1;
      m += masses[j];
      if (before < threshold && threshold <= (by_count ? c : m)) {
        sh.found = Found{uint32_t(sh.list[first + j]), 1, c, m};
      }
    }
    __syncthreads();
    const Found found = sh.found;
    __syncthreads();
    return found;
  }

  // Of candidates with equal logits, the one at `rank` (from 1) by rising id.
  __device__ uint32_t tie(const Filter& f, uint64_t rank) {
    uint64_t seen = 0;
    for (uint32_t base = 0; base < row.vocabulary; base += THREADS) {
      const uint32_t id = base + threadIdx.x;
      bool match = false;
      if (id < row.vocabulary) {
        const float x = row.penalized(row.logits[id], id);
        match = passes(f, distance(x), falling(x));
      }
      const uint32_t here = uint32_t(__syncthreads_count(match));
      if (seen + here < rank) {
        seen += here;
        continue;
      }
      uint64_t before = match, unused = 0;
      scan(sh, before, unused);
      if (match && seen + before + 1 == rank) sh.tie = id;
      __syncthreads();
      return sh.tie;
    }
    return 0;
  }

  // A bin with more candidates than the list holds: splits it by bits of the key until they fit or are all equal.
  __device__ Found split(bool by_count, uint64_t threshold, Filter f, Found bin) {
    for (int level = 0; level < 3; level++) {
      const uint32_t shift = level == 0 ? 21 : level == 1 ? 10 : 0;
      fill_keys(f, shift);
      bin = locate(by_count, threshold, bin.count, bin.mass);
      if (bin.index == NONE) return bin;
      // The bits above the shift are known now.
      const uint32_t high = level == 0 ? 0 : f.first_key & ~((level == 1 ? 1u << 21 : 1u << 10) - 1);
      const uint32_t within = level == 2 ? bin.index % 1024 : bin.index;
      f.first_key = high | within << shift;
      f.last_key = f.first_key | ((1u << shift) - 1);
      if (bin.number <= CAPACITY) {
        collect(f, bin.number, bin.count, bin.mass);
        has_list = false;  // part of a bin: not to be found by bin again
        return resolve(by_count, threshold);
      }
    }
    const uint64_t each = mass_of(distance(unfalling(f.first_key)));
    const uint64_t rank = by_count ? threshold - bin.count : (threshold - bin.mass + each - 1) / max(each, uint64_t(1));
    const uint32_t id = tie(f, rank);
    return Found{id, 1, bin.count + rank, bin.mass + rank * each};
  }

  // The candidate where the running count or mass over all candidates reaches `threshold`; index NONE when none with a mass
  // does.
  __device__ Found find(bool by_count, uint64_t threshold) {
    Found bin{NONE, 0, 0, 0};
    uint32_t window = 0;
    for (; window < 2; window++) {
      if (histogram_of != window) {
        uint64_t all, heavy;
        fill(window, 0, all, heavy);
      }
      bin = locate(by_count, threshold, window_count[window], window_mass[window]);
      if (bin.index != NONE) break;
      if (window == 0) end_of_window();
    }
    if (bin.index == NONE) return bin;
    if (has_list && listed.window == window && bin.index >= listed.first_bin && bin.index <= listed.last_bin) {
      return resolve(by_count, threshold);
    }
    Filter f{window, bin.index, bin.index, 0, ~0u};
    if (window == 0 && bin.count + bin.number <= CAPACITY) {
      f.first_bin = 0;
      collect(f, uint32_t(bin.count) + bin.number, 0, 0);
      return resolve(by_count, threshold);
    }
    if (bin.number <= CAPACITY) {
      collect(f, bin.number, bin.count, bin.mass);
      return resolve(by_count, threshold);
    }
    return split(by_count, threshold, f, bin);
  }

  // Sums of the first window, before the second one.
  __device__ void end_of_window() {
    const uint32_t first = SHARE * threadIdx.x;
    uint64_t c = 0, m = 0;
    for (uint32_t j = 0; j < SHARE; j++) {
      c += sh.number[first + j];
      m += uint64_t(sh.high[first + j]) << 32 | sh.low[first + j];
    }
    window_count[1] = reduce_block(c, uint64_t(0), sh.scan[0], Add());
    window_mass[1] = reduce_block(m, uint64_t(0), sh.scan[1], Add());
    __syncthreads();
  }
};

// A random draw; `best` is the most probable candidate.
__device__ __forceinline__ uint32_t draw(const SampleParams& p, const Row& row, Shared& sh, uint64_t best, float lowest) {
  Search search(p, row, sh, unfalling(uint32_t(best >> 32)), lowest, row.number(TEMPERATURE));
  const float min_p = row.number(MIN_P), top_p = row.number(TOP_P);
  const uint32_t top_k = uint32_t(max(row.words[TOP_K], 0));
  uint64_t all, heavy;
  search.fill(0, min_p, all, heavy);
  all = reduce_block(all, uint64_t(0), sh.scan[0], Add());
  heavy = reduce_block(heavy, uint64_t(0), sh.scan[1], Add());
  __syncthreads();
  uint64_t mass = all;
  if (top_k != 0 && top_k < row.vocabulary) {
    const Found found = search.find(true, top_k);
    if (found.index != NONE) mass = found.mass;
  }
  if (top_p < 1.0f) {
    const Found found = search.find(false, max(uint64_t(1), uint64_t(ceil(double(top_p) * double(mass)))));
    if (found.index != NONE) mass = found.mass;
  }
  if (min_p > 0.0f) mass = max(min(mass, heavy), uint64_t(ONE));
  const float u = uniform(uint32_t(row.words[SEED_LOW]), uint32_t(row.words[SEED_HIGH]), uint32_t(row.words[CHOICE]),
                          uint32_t(row.output_index));
  const Found found = search.find(false, uint64_t(double(u) * double(mass)) + 1);
  return found.index != NONE ? found.index : uint32_t(best);
}

// What becomes of a draw; -1: the logits have a NaN.
__device__ __forceinline__ void put_token(const SampleParams& p, const Row& row, uint32_t s, int token) {
  at<int>(p.out)[s] = token;
  if (token < 0) return;
  row.words[LAST_TOKEN] = token;
  if (row.counting) {
    const uint32_t count = row.counts[token];
    row.counts[token] = uint16_t((count & IN_PROMPT) | min((count & ~IN_PROMPT) + 1, ~IN_PROMPT & 0xffffu));
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) yn_sample_draw(const __grid_constant__ SampleParams p) {
  after_prior();
  __shared__ Shared sh;
  const uint32_t s = blockIdx.x, t = threadIdx.x;
  const int index = sampler_row(p, s);
  uint64_t first = 0;
  if (p.firsts != 0 && t == 0) first = take_first(p.firsts, s);
  if (index < 0) {
    if (t == 0 && at<int>(p.rows)[s] >= 0) {
      fault(p.fault, SAMPLER_ROW, s, uint32_t(at<int>(p.rows)[s]));
      at<int>(p.out)[s] = -1;
    }
    return;
  }
  const Row row(p, s, uint32_t(index));
  if (row.takes_first) {
    if (t == 0) put_token(p, row, s, first == 0 ? -1 : int(uint32_t(first)));
    return;
  }
  const Scratch& scratch = at<Scratch>(p.scratch)[s];
  uint64_t best = ~uint64_t(0);
  float lowest = INFINITY;
  uint32_t has_nan = 0;
  for (uint32_t i = 0; i < p.parts; i++) {
    best = Min()(best, scratch.parts[i].best);
    lowest = Min()(lowest, scratch.parts[i].lowest);
    has_nan |= scratch.parts[i].has_nan;
  }
  const float largest = unfalling(uint32_t(best >> 32)), temperature = row.number(TEMPERATURE);
  uint32_t token = uint32_t(best);
  if (!has_nan && temperature > 0.0f && row.words[TOP_K] != 1 && isfinite(largest)) {
    token = draw(p, row, sh, best, lowest);
  }
  __syncthreads();
  if (t < row.num_masked && row.masks(t, 0, p.vocabulary)) row.logits[row.words[END_TOKENS + t]] = scratch.before_mask[t];
  __syncthreads();
  for (uint32_t i = t; i < row.num_biases; i += THREADS) {
    if (row.owns(i, 0, p.vocabulary)) row.logits[row.biases[2 * i]] = scratch.before_bias[i];
  }
  if (t == 0) put_token(p, row, s, has_nan ? -1 : int(token));
}
