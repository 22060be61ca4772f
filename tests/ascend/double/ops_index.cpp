// Gathers, rotations and writes to a paged cache.
#include "ops.h"
#include <algorithm>

using namespace dbl;

namespace {

// Rows of `table` by `ids`, which the device alone sees.
int gather(const char *op, const Operand &table, const Operand &ids, const Operand &out) {
    auto places = load_ints(ids);
    int64_t rows = table.dim(0), width = rows ? table.elements() / rows : 0;
    Operand row = table;
    row.t.dims[0] = 1;
    std::vector<float> values;
    values.reserve(places.size() * size_t(width));
    for (int64_t id : places) {
        if (id < 0 || id >= rows) return aicore("index-range", fmt("%s: index %ld of %ld rows", op, long(id), long(rows)));
        row.at = table.row({id});
        auto one = load(row);
        values.insert(values.end(), one.begin(), one.end());
    }
    return store(out, values), int(OK);
}

void rotate(const float *x, const float *cos, const float *sin, int64_t d, bool halves, float *out) {
    for (int64_t i = 0; i < d; i++) {
        int64_t other = halves ? (i < d / 2 ? i + d / 2 : i - d / 2) : i ^ 1;
        bool first = halves ? i < d / 2 : i % 2 == 0;
        out[i] = float(double(x[i]) * cos[i] + (first ? -double(x[other]) : double(x[other])) * sin[i]);
    }
}

// Rotates every row of x by the row of cos and sin in the same place, where a dimension of one counts for all.
void rotate_all(const Operand &x, const Operand &cos, const Operand &sin, bool halves, const Operand &out) {
    auto values = load(x), c = load(cos), s = load(sin);
    std::vector<float> turned(values.size());
    int64_t d = x.dim(3);
    for (int64_t row = 0; d && row < x.elements() / d; row++) {
        int64_t i2 = row % x.dim(2), i1 = row / x.dim(2) % x.dim(1), i0 = row / x.dim(2) / x.dim(1);
        auto at = [&](int64_t i, int64_t dim) { return cos.dim(dim) == 1 ? 0 : i; };
        int64_t angle = (at(i0, 0) * cos.dim(1) + at(i1, 1)) * cos.dim(2) + at(i2, 2);
        rotate(&values[size_t(row * d)], &c[size_t(angle * d)], &s[size_t(angle * d)], d, halves, &turned[size_t(row * d)]);
    }
    store(out, turned);
}

void check_angles(Op &op, const Operand &x, const Operand &cos, const Operand &sin) {
    op.need(x.rank() == 4 && cos.rank() == 4, "shape",
            fmt("%s is %s, cos %s: four dimensions each", x.what, text(x.t.dims).c_str(), text(cos.t.dims).c_str()));
    op.shape(sin, cos.t.dims);
    for (int64_t i = 0; i < 3; i++) {
        op.need(cos.dim(i) == 1 || cos.dim(i) == x.dim(i), "shape",
                fmt("cos %s does not fit %s %s", text(cos.t.dims).c_str(), x.what, text(x.t.dims).c_str()));
    }
    op.need(cos.dim(3) == x.dim(3), "shape",
            fmt("cos has %ld columns, %s %ld: all of D", long(cos.dim(3)), x.what, long(x.dim(3))));
    op.need(x.dim(3) % 2 == 0, "shape", fmt("D of %ld is odd", long(x.dim(3))));
}

// Layout 1: [B, S, N, 128] in place, with angles of [B, S, 1, 128].
void rotary_in_place(Op &op, aclTensor *query, aclTensor *key, const aclTensor *cos_, const aclTensor *sin_, int64_t layout,
                     bool halves) {
    Operand q = op.inout(query, "queryRef", FLOATS), k = op.inout(key, "keyRef", FLOATS);
    Operand cos = op.in(cos_, "cos", FLOATS), sin = op.in(sin_, "sin", FLOATS);
    op.same_dtype({q, k, cos, sin});
    op.need(layout == 1, "layout", fmt("layout %ld, the double knows 1 (BSND) only", long(layout)));
    check_angles(op, q, cos, sin), check_angles(op, k, cos, sin);
    op.need(q.dim(3) == 128, "head-dim", fmt("D is %ld, this op takes 128 only", long(q.dim(3))));
    op.shape(cos, {q.dim(0), q.dim(1), 1, q.dim(3)});
    op.runs(512, [=] {
        rotate_all(q, cos, sin, halves, q), rotate_all(k, cos, sin, halves, k);
        return int(OK);
    });
}

} // namespace

ABI aclnnStatus aclnnEmbeddingGetWorkspaceSize(const aclTensor *weight, const aclTensor *indices, const aclTensor *result,
                                               uint64_t *workspace, aclOpExecutor **executor) {
    ENTER("");
    return phase1("aclnnEmbedding", workspace, executor, [=](Op &op) {
        Operand table = op.in(weight, "weight", FLOATS), ids = op.in(indices, "indices", INDICES);
        Operand out = op.out(result, "out", FLOATS);
        op.same_dtype({table, out});
        op.need(table.rank() == 2, "shape", fmt("weight is %s", text(table.t.dims).c_str()));
        Shape expected = ids.t.dims;
        expected.push_back(table.dim(1));
        op.shape(out, expected);
        op.runs(0, [=] { return gather("aclnnEmbedding", table, ids, out); });
    });
}
PHASE2(aclnnEmbedding)

ABI aclnnStatus aclnnIndexSelectGetWorkspaceSize(const aclTensor *self, int64_t dim, const aclTensor *index, aclTensor *result,
                                                 uint64_t *workspace, aclOpExecutor **executor) {
    ENTER("dim %ld", long(dim));
    return phase1("aclnnIndexSelect", workspace, executor, [=](Op &op) {
        Operand x = op.in(self, "self", FLOATS), ids = op.in(index, "index", INDICES), out = op.out(result, "out", FLOATS);
        op.same_dtype({x, out});
        op.need(dim == 0 && x.rank() > 0, "dim", fmt("dim %ld, the double takes the first one only", long(dim)));
        op.need(ids.rank() == 1, "shape", fmt("index is %s", text(ids.t.dims).c_str()));
        Shape expected = x.t.dims;
        expected[0] = ids.dim(0);
        op.shape(out, expected);
        op.runs(512, [=] { return gather("aclnnIndexSelect", x, ids, out); });
    });
}
PHASE2(aclnnIndexSelect)

ABI aclnnStatus aclnnRotaryPositionEmbeddingGetWorkspaceSize(const aclTensor *x_, const aclTensor *cos_, const aclTensor *sin_,
                                                             int64_t mode, aclTensor *result, uint64_t *workspace,
                                                             aclOpExecutor **executor) {
    ENTER("mode %ld", long(mode));
    return phase1("aclnnRotaryPositionEmbedding", workspace, executor, [=](Op &op) {
        Operand x = op.in(x_, "x", FLOATS), cos = op.in(cos_, "cos", FLOATS), sin = op.in(sin_, "sin", FLOATS);
        Operand out = op.out(result, "out", FLOATS);
        op.same_dtype({x, cos, sin, out});
        op.shape(out, x.t.dims);
        op.need(mode == 0 || mode == 1, "mode", fmt("mode %ld, not 0 (halves) or 1 (interleaved)", long(mode)));
        check_angles(op, x, cos, sin);
        op.runs(512, [=] { return rotate_all(x, cos, sin, mode == 0, out), int(OK); });
    });
}
PHASE2(aclnnRotaryPositionEmbedding)

ABI aclnnStatus aclnnApplyRotaryPosEmbGetWorkspaceSize(aclTensor *query, aclTensor *key, const aclTensor *cos,
                                                       const aclTensor *sin, int64_t layout, uint64_t *workspace,
                                                       aclOpExecutor **executor) {
    ENTER("layout %ld", long(layout));
    return phase1("aclnnApplyRotaryPosEmb", workspace, executor,
                  [=](Op &op) { rotary_in_place(op, query, key, cos, sin, layout, true); });
}
PHASE2(aclnnApplyRotaryPosEmb)

ABI aclnnStatus aclnnApplyRotaryPosEmbV2GetWorkspaceSize(aclTensor *query, aclTensor *key, const aclTensor *cos,
                                                         const aclTensor *sin, int64_t layout, char *mode, uint64_t *workspace,
                                                         aclOpExecutor **executor) {
    ENTER("layout %ld, mode %s", long(layout), mode ? mode : "NULL");
    return phase1("aclnnApplyRotaryPosEmbV2", workspace, executor, [=](Op &op) {
        std::string name = mode ? mode : "NULL";
        op.need(name == "half" || name == "interleave", "mode", "rotaryMode is " + name);
        rotary_in_place(op, query, key, cos, sin, layout, name == "half");
    });
}
PHASE2(aclnnApplyRotaryPosEmbV2)

namespace {

int scatter(const Operand &from, const Operand &cache, const std::vector<int64_t> &slots) {
    int64_t size = cache.dim(1);
    size_t bytes = size_t(cache.dim(2) * cache.dim(3)) * size_of(cache.t.dtype);
    for (size_t i = 0; i < slots.size(); i++) {
        uint8_t *to = cache.row({slots[i] / size, slots[i] % size});
        const uint8_t *source = from.row({int64_t(i)});
        size_t head = size_t(cache.dim(3)) * size_of(cache.t.dtype);
        for (int64_t n = 0; n < cache.dim(2); n++)
            memcpy(to + size_t(n) * head, source + size_t(n * from.t.strides[1]) * size_of(from.t.dtype), head);
        Lock lock(mu);
        mark_written(cache.address() + size_t(to - cache.at), bytes);
    }
    return OK;
}

int check_slots(const std::vector<int64_t> &slots, int64_t room) {
    auto sorted = slots;
    std::sort(sorted.begin(), sorted.end());
    for (size_t i = 0; i < sorted.size(); i++) {
        if (sorted[i] < 0 || sorted[i] >= room) {
            return aicore("slot-range", fmt("aclnnScatterPaKvCache: slot %ld of %ld", long(sorted[i]), long(room)));
        }
        if (i && sorted[i] == sorted[i - 1])
            return aicore("slot-repeated", fmt("aclnnScatterPaKvCache: slot %ld twice", long(sorted[i])));
    }
    return OK;
}

// A cache of [blocks, size, heads, D], dense inside.
void check_cache(Op &op, const Operand &x, const Operand &cache) {
    op.need(x.rank() == 3 && cache.rank() == 4, "shape",
            fmt("%s is %s, %s %s: [T,N,D] and [blocks,size,N,D]", x.what, text(x.t.dims).c_str(), cache.what,
                text(cache.t.dims).c_str()));
    op.shape(cache, {cache.dim(0), cache.dim(1), x.dim(1), x.dim(2)});
    op.need(cache.contiguous(), "contiguity", fmt("%s is not contiguous", cache.what));
    op.need(cache.dim(1) % 16 == 0, "block-size", fmt("blocks of %ld tokens, not of a multiple of 16", long(cache.dim(1))));
    size_t width = size_t(x.dim(2)) * size_of(x.t.dtype);
    op.need(width % 32 == 0, "head-dim", fmt("a head of %zu bytes, not of a multiple of 32", width));
}

} // namespace

ABI aclnnStatus aclnnScatterPaKvCacheGetWorkspaceSize(const aclTensor *key_, aclTensor *key_cache, const aclTensor *slots_,
                                                      const aclTensor *value_, aclTensor *value_cache,
                                                      const aclTensor *compress, const aclTensor *compress_offset,
                                                      const aclTensor *lens, char *cache_mode, char *scatter_mode,
                                                      const aclIntArray *strides, const aclIntArray *offsets,
                                                      uint64_t *workspace, aclOpExecutor **executor) {
    ENTER("cacheMode %s, scatterMode %s", cache_mode ? cache_mode : "NULL", scatter_mode ? scatter_mode : "NULL");
    return phase1("aclnnScatterPaKvCache", workspace, executor, [=](Op &op) {
        const Types known = {ACL_FLOAT16, ACL_BF16, ACL_INT8};
        Operand key = op.in(key_, "key", known), keys = op.inout(key_cache, "keyCacheRef", known);
        Operand slots = op.in(slots_, "slotMapping", INDICES);
        Operand value = op.in(value_, "value", known), values = op.inout(value_cache, "valueCacheRef", known);
        op.absent(compress, "compressLens"), op.absent(compress_offset, "compressSeqOffset"), op.absent(lens, "seqLens");
        op.need(cache_mode && !strcmp(cache_mode, "Norm"), "mode", "cacheMode is not Norm");
        op.need(scatter_mode && !strcmp(scatter_mode, "None"), "mode", "scatterMode is not None");
        op.need(op.ints(strides, "strides") == Shape{1, 1}, "mode", "strides are not {1,1}");
        op.need(op.ints(offsets, "offsets") == Shape{0, 0}, "mode", "offsets are not {0,0}");
        op.same_dtype({key, keys, value, values});
        check_cache(op, key, keys), check_cache(op, value, values);
        op.shape(slots, {key.dim(0)}), op.shape(value, {key.dim(0), value.dim(1), value.dim(2)});
        op.need(keys.dim(0) == values.dim(0) && keys.dim(1) == values.dim(1), "shape",
                "keys and values have caches of other shapes");
        op.need(key.t.strides[2] == 1 && value.t.strides[2] == 1, "contiguity", "a head's elements are not neighbours");
        auto run = [=] {
            auto places = load_ints(slots);
            int code = check_slots(places, keys.dim(0) * keys.dim(1));
            if (!code) scatter(key, keys, places), scatter(value, values, places);
            return code;
        };
        op.runs(512, run, false);
    });
}
PHASE2(aclnnScatterPaKvCache)
