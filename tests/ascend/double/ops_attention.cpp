// Fused attention over a paged cache or over keys that lie side by side.
#include "ops.h"
#include <algorithm>

using namespace dbl;

namespace {

struct Attention {
    Operand query, key, value, mask, table, out;
    bool tnd, paged, causal;
    int64_t heads, kv_heads, dim, block_size;
    double scale;
    // Per sequence: where its queries start in the rows of query, how many, and how many keys it has; where those start when
    // they are not paged.
    struct Sequence {
        int64_t first, queries, keys, first_key;
    };
    std::vector<Sequence> sequences;
};

// Lengths that count from the first sequence on, as `total` of them.
std::vector<int64_t> apart(Op &op, const std::vector<int64_t> &sums, int64_t total, const char *what) {
    std::vector<int64_t> out;
    int64_t before = 0;
    for (int64_t sum : sums) {
        op.need(sum >= before, "lengths",
                fmt("%s falls from %ld to %ld, it is cumulative in TND", what, long(before), long(sum)));
        out.push_back(sum - before);
        before = sum;
    }
    op.need(before == total, "lengths",
            fmt("%s ends at %ld of %ld tokens, it is cumulative in TND", what, long(before), long(total)));
    return out;
}

void check_block_size(Op &op, const Attention &a, int64_t queries) {
    int64_t n = a.block_size;
    op.need(a.key.dim(1) == n, "block-size", fmt("blockSize is %ld, the cache has blocks of %ld", long(n), long(a.key.dim(1))));
    bool few = !a.tnd && queries == 1;
    bool fits = a.tnd ? n % 16 == 0 && n >= 16 && n <= 128
                : few ? n % 16 == 0 && n >= 16 && n <= 512
                      : n % 128 == 0 && n >= 128 && n <= 512;
    const char *rule = a.tnd ? "a multiple of 16 up to 128 in TND"
                       : few ? "a multiple of 16 up to 512 for one query"
                             : "128, 256, 384 or 512 for several queries";
    op.need(fits, "block-size", fmt("blockSize %ld, it is %s", long(n), rule));
}

void check_heads(Op &op, const Attention &a) {
    op.need(a.heads > 0 && a.kv_heads > 0 && a.heads % a.kv_heads == 0 && a.heads / a.kv_heads <= 64, "heads",
            fmt("%ld query heads, %ld key heads", long(a.heads), long(a.kv_heads)));
    op.need(a.dim <= 256 && a.dim % 16 == 0, "head-dim", fmt("D is %ld, it is a multiple of 16 up to 256", long(a.dim)));
    op.need(a.kv_heads * a.dim <= 65535, "head-dim",
            fmt("%ld key heads of %ld are more than 65535", long(a.kv_heads), long(a.dim)));
    for (const Operand *x : {&a.query, &a.key, &a.value})
        op.need(x->contiguous(), "contiguity", fmt("%s is not contiguous", x->what));
}

void check_caches(Op &op, const Attention &a) {
    if (a.paged) {
        op.need(a.key.rank() == 3 && a.key.dim(2) == a.kv_heads * a.dim, "shape",
                fmt("key is %s, a paged one is [blocks,size,%ld]", text(a.key.t.dims).c_str(), long(a.kv_heads * a.dim)));
    } else {
        op.need(a.tnd, "unsupported", "the double knows keys without blocks in TND only");
        op.shape(a.key, {a.key.dim(0), a.kv_heads, a.dim});
    }
    op.shape(a.value, a.key.t.dims);
}

// One length for each sequence; in TND those of queries, and of keys without blocks, add up.
void take_lengths(Op &op, Attention &a, const aclIntArray *q_, const aclIntArray *kv_) {
    std::vector<int64_t> q, kv = op.ints(kv_, "actualSeqLengthsKv");
    int64_t batch = int64_t(kv.size()), rows = a.query.dim(0);
    if (a.tnd) {
        q = apart(op, op.ints(q_, "actualSeqLengths"), rows, "actualSeqLengths");
        op.need(batch <= 4096, "lengths", fmt("%ld sequences, 4096 are the most in TND", long(batch)));
    } else {
        q = q_ ? op.ints(q_, "actualSeqLengths") : std::vector<int64_t>(size_t(rows), a.query.dim(1));
        for (int64_t n : q)
            op.need(n >= 0 && n <= a.query.dim(1), "lengths",
                    fmt("a query length of %ld of %ld", long(n), long(a.query.dim(1))));
        op.need(int64_t(q.size()) == rows, "lengths", fmt("%zu query lengths for a batch of %ld", q.size(), long(rows)));
    }
    op.need(q.size() == kv.size(), "lengths", fmt("%zu lengths of queries, %zu of keys", q.size(), kv.size()));
    if (!a.paged) kv = apart(op, kv, a.key.dim(0), "actualSeqLengthsKv");
    if (a.paged) op.shape(a.table, {batch, a.table.dim(1)});
    int64_t first = 0, first_key = 0;
    for (size_t i = 0; i < q.size(); i++) {
        int64_t room = a.paged ? a.table.dim(1) * a.block_size : kv[i];
        op.need(kv[i] >= 0 && kv[i] <= room, "lengths",
                fmt("sequence %zu has %ld keys, its blocks hold %ld", i, long(kv[i]), long(room)));
        op.need(!a.causal || q[i] <= kv[i], "lengths",
                fmt("sequence %zu has %ld queries and %ld keys", i, long(q[i]), long(kv[i])));
        a.sequences.push_back({a.tnd ? first : int64_t(i) * a.query.dim(1), q[i], kv[i], first_key});
        first += q[i], first_key += kv[i];
    }
}

void take_mask(Op &op, Attention &a, const aclTensor *mask, int64_t sparse) {
    op.need(sparse == 0 || sparse == 3, "sparse-mode", fmt("sparseMode %ld, the double knows 0 and 3", long(sparse)));
    a.causal = sparse == 3;
    if (!a.causal) return op.absent(mask, "attenMask with sparseMode 0");
    a.mask = op.in(mask, "attenMask", {ACL_INT8, ACL_UINT8, ACL_BOOL});
    op.shape(a.mask, {2048, 2048});
    op.need(a.mask.contiguous(), "contiguity", "attenMask is not contiguous");
}

// Some places of the mask, both sides of its diagonal with them.
int check_mask(const Attention &a) {
    uint32_t state = 12345;
    for (int64_t i = 0; i < 2048; i++) {
        for (int64_t j : {i, i + 1, int64_t((state = state * 1664525 + 1013904223) >> 21)}) {
            if (j < 2048 && *(a.mask.at + i * 2048 + j) != (j > i)) {
                return aicore("mask", fmt("attenMask[%ld][%ld] is %d; above the diagonal it is 1, else 0", long(i), long(j),
                                          a.mask.at[i * 2048 + j]));
            }
        }
    }
    return OK;
}

// Where the keys of each block of a sequence begin, in elements. Not OK where the table says what is not so.
int block_starts(const Attention &a, size_t s, const std::vector<int64_t> &table, std::vector<int64_t> *starts) {
    int64_t per_row = a.table.dim(1), width = a.kv_heads * a.dim;
    size_t size = size_of(a.key.t.dtype);
    bool whole = option("unwritten_kv");
    for (int64_t done = 0; done < a.sequences[s].keys; done += a.block_size) {
        int64_t id = table[s * size_t(per_row) + size_t(done / a.block_size)];
        if (id < 0 || id >= a.key.dim(0)) {
            return aicore("block-range",
                          fmt("attention: block %ld of %ld in the table of sequence %zu", long(id), long(a.key.dim(0)), s));
        }
        starts->push_back(id * a.block_size * width);
        size_t bytes = size_t(std::min(a.block_size, a.sequences[s].keys - done) * width) * size;
        size_t offset = size_t(starts->back()) * size;
        Lock lock(mu);
        if (!whole && (!all_written(a.key.address() + offset, bytes) || !all_written(a.value.address() + offset, bytes))) {
            return aicore("kv-unwritten",
                          fmt("attention: sequence %zu of %ld keys reads some of block %ld that nothing has written", s,
                              long(a.sequences[s].keys), long(id)));
        }
    }
    return OK;
}

// Keys or values of one head of a sequence, as floats side by side.
std::vector<float> gather_head(const Attention &a, const Operand &x, size_t s, int64_t head,
                               const std::vector<int64_t> &starts) {
    const auto &sequence = a.sequences[s];
    std::vector<float> out(size_t(sequence.keys * a.dim));
    int64_t width = a.kv_heads * a.dim;
    for (int64_t i = 0; i < sequence.keys; i++) {
        int64_t row = a.paged ? starts[size_t(i / a.block_size)] + i % a.block_size * width : (sequence.first_key + i) * width;
        load_row(x.at + size_t(row + head * a.dim) * size_of(x.t.dtype), x.t.dtype, a.dim, &out[size_t(i * a.dim)]);
    }
    return out;
}

float dot(const float *a, const float *b, int64_t n) {
    float sums[8] = {};
    for (int64_t i = 0; i < n; i += 8) {
        for (int64_t j = 0; j < 8; j++) sums[j] += a[i + j] * b[i + j];
    }
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

void attend(const Attention &a, const float *q, const float *k, const float *v, int64_t n, std::vector<float> &scores,
            float *out) {
    float top = -INFINITY;
    for (int64_t i = 0; i < n; i++) top = std::max(top, scores[size_t(i)] = dot(q, k + i * a.dim, a.dim) * float(a.scale));
    double sum = 0;
    std::fill(out, out + a.dim, 0.0f);
    for (int64_t i = 0; i < n; i++) {
        float p = std::exp(scores[size_t(i)] - top);
        sum += p;
        for (int64_t d = 0; d < a.dim; d++) out[d] += p * v[i * a.dim + d];
    }
    for (int64_t d = 0; d < a.dim && n; d++) out[d] = float(out[d] / sum);
}

int run(const Attention &a) {
    if (a.causal) {
        if (int code = check_mask(a)) return code;
    }
    auto table = a.paged ? load_ints(a.table) : std::vector<int64_t>();
    size_t size = size_of(a.query.t.dtype);
    // Rows behind a sequence's end hold nothing that means anything.
    memset(a.out.at, 0xFF, size_t(a.out.elements()) * size);
    for (size_t s = 0; s < a.sequences.size(); s++) {
        const auto &sequence = a.sequences[s];
        std::vector<int64_t> starts;
        int code = a.paged ? block_starts(a, s, table, &starts) : int(OK);
        if (code) return code;
        std::vector<float> scores(size_t(sequence.keys)), q(static_cast<size_t>(a.dim)), out(q.size());
        for (int64_t head = 0; head < a.kv_heads; head++) {
            auto k = gather_head(a, a.key, s, head, starts), v = gather_head(a, a.value, s, head, starts);
            int64_t group = a.heads / a.kv_heads;
            for (int64_t i = 0; i < sequence.queries * group; i++) {
                int64_t row = i / group, at = ((sequence.first + row) * a.heads + head * group + i % group) * a.dim;
                int64_t seen = a.causal ? sequence.keys - sequence.queries + row + 1 : sequence.keys;
                load_row(a.query.at + size_t(at) * size, a.query.t.dtype, a.dim, q.data());
                attend(a, q.data(), k.data(), v.data(), seen, scores, out.data());
                store_row(a.out.at + size_t(at) * size, a.out.t.dtype, a.dim, out.data());
            }
        }
    }
    return OK;
}

} // namespace

ABI aclnnStatus aclnnFusedInferAttentionScoreV3GetWorkspaceSize(
    const aclTensor *query, const aclTensorList *key, const aclTensorList *value, const aclTensor *pse, const aclTensor *mask,
    const aclIntArray *q_lens, const aclIntArray *kv_lens, const aclTensor *deq1, const aclTensor *quant1,
    const aclTensor *deq2, const aclTensor *quant2, const aclTensor *quant_offset2, const aclTensor *antiquant_scale,
    const aclTensor *antiquant_offset, const aclTensor *table, const aclTensor *query_padding, const aclTensor *kv_padding,
    const aclTensor *key_scale, const aclTensor *key_offset, const aclTensor *value_scale, const aclTensor *value_offset,
    const aclTensor *key_prefix, const aclTensor *value_prefix, const aclIntArray *prefix_lens, const aclTensor *query_rope,
    const aclTensor *key_rope, const aclTensor *key_rope_scale, int64_t heads, double scale, int64_t pre_tokens,
    int64_t next_tokens, char *layout, int64_t kv_heads, int64_t sparse, int64_t precise, int64_t block_size, int64_t antiquant,
    bool lse_flag, int64_t key_antiquant, int64_t value_antiquant, const aclTensor *result, const aclTensor *lse,
    uint64_t *workspace, aclOpExecutor **executor) {
    std::string name = layout ? layout : "NULL";
    ENTER("layout %s, heads %ld, kv heads %ld, sparse %ld, block %ld, tokens %ld %ld", name.c_str(), long(heads),
          long(kv_heads), long(sparse), long(block_size), long(pre_tokens), long(next_tokens));
    if (name == "TND" && table && option("refuse_tnd_paged")) {
        return fail(NN_PARAM, "aclnnFusedInferAttentionScoreV3: no block table in TND, as older versions say");
    }
    return phase1("aclnnFusedInferAttentionScoreV3", workspace, executor, [&](Op &op) {
        for (const void *unused : {pse,           deq1,          quant1,          deq2,
                                   quant2,        quant_offset2, antiquant_scale, antiquant_offset,
                                   query_padding, kv_padding,    key_scale,       key_offset,
                                   value_scale,   value_offset,  key_prefix,      value_prefix,
                                   query_rope,    key_rope,      key_rope_scale,  lse}) {
            op.absent(unused, "an argument for quantized keys, prefixes, padding, rope or softmaxLse");
        }
        op.absent(prefix_lens, "actualSharedPrefixLen");
        op.need(!lse_flag && antiquant == 0 && key_antiquant == 0 && value_antiquant == 0, "unsupported",
                "softmaxLseFlag or an antiquant mode");
        op.need(name == "TND" || name == "BSND", "layout", "inputLayout " + name + ", the double knows TND and BSND");
        op.need(precise == 0 || precise == 1, "inner-precise", fmt("innerPrecise %ld", long(precise)));
        Attention a;
        a.tnd = name == "TND", a.paged = table != nullptr;
        a.heads = heads, a.kv_heads = kv_heads, a.scale = scale, a.block_size = block_size;
        a.query = op.in(query, "query", HALVES), a.key = op.only(key, "key", HALVES), a.value = op.only(value, "value", HALVES);
        a.out = op.out(result, "attentionOut", HALVES);
        if (table) a.table = op.in(table, "blockTable", {ACL_INT32});
        op.need(!table || a.table.rank() == 2, "shape", "blockTable has two dimensions");
        op.same_dtype({a.query, a.key, a.value, a.out});
        a.dim = a.query.rank() ? a.query.dim(-1) : 0;
        if (a.tnd) op.shape(a.query, {a.query.dim(0), heads, a.dim});
        else
            op.need(a.query.rank() == 4 && a.query.dim(2) == heads, "shape",
                    fmt("query is %s in BSND", text(a.query.t.dims).c_str()));
        op.shape(a.out, a.query.t.dims);
        check_heads(op, a), check_caches(op, a);
        if (table) check_block_size(op, a, a.tnd ? 0 : a.query.dim(1));
        take_mask(op, a, mask, sparse);
        take_lengths(op, a, q_lens, kv_lens);
        op.runs(uint64_t(65536 + a.query.elements() * 4), [a] { return run(a); });
    });
}
PHASE2(aclnnFusedInferAttentionScoreV3)
