// Products, element-wise ops and casts.
#include "ops.h"
#include <algorithm>

using namespace dbl;

namespace {

// Sixteen running sums, added up in one order.
float dot(const float *a, const float *b, int64_t n) {
    float sums[16] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int64_t j = 0; j < 16; j++) sums[j] += a[i + j] * b[i + j];
    }
    float sum = 0;
    for (; i < n; i++) sum += a[i] * b[i];
    for (float s : sums) sum += s;
    return sum;
}

void matmul(Op &op, const aclTensor *self, const aclTensor *mat2, const aclTensor *result, int8_t cube) {
    Operand a = op.in(self, "self", FLOATS), b = op.in(mat2, "mat2", FLOATS), out = op.out(result, "out", FLOATS);
    op.need(cube == 0, "cube-math", fmt("cubeMathType %d, the double knows KEEP_DTYPE (0) only", cube));
    op.same_dtype({a, b, out});
    op.need(a.rank() == 2 && b.rank() == 2, "shape", "self and mat2 have two dimensions");
    op.need(a.dim(1) == b.dim(0), "shape", fmt("self is %s, mat2 %s", text(a.t.dims).c_str(), text(b.t.dims).c_str()));
    op.shape(out, {a.dim(0), b.dim(1)});
    int64_t m = a.dim(0), k = a.dim(1), n = b.dim(1);
    op.runs(uint64_t(512 + (m + 15) / 16 * 1024), [=] {
        Operand turned = b;
        std::swap(turned.t.dims[0], turned.t.dims[1]);
        std::swap(turned.t.strides[0], turned.t.strides[1]);
        std::vector<float> x = load(a), w = load(turned), y(size_t(m * n));
        for (int64_t j = 0; j < n; j++) {
            for (int64_t i = 0; i < m; i++) y[size_t(i * n + j)] = dot(&x[size_t(i * k)], &w[size_t(j * k)], k);
        }
        return store(out, y), int(OK);
    });
}

// `x` seen with the dimensions of `shape`: of one element where it has less.
Operand broadcast(Op &op, Operand x, const Shape &shape) {
    op.need(x.t.dims.size() <= shape.size(), "shape", fmt("%s is %s", x.what, text(x.t.dims).c_str()));
    size_t more = shape.size() - x.t.dims.size();
    x.t.dims.insert(x.t.dims.begin(), more, 1);
    x.t.strides.insert(x.t.strides.begin(), more, 0);
    for (size_t i = 0; i < shape.size(); i++) {
        if (x.t.dims[i] == shape[i]) continue;
        op.need(x.t.dims[i] == 1, "shape", fmt("%s does not broadcast to %s", x.what, text(shape).c_str()));
        x.t.dims[i] = shape[i], x.t.strides[i] = 0;
    }
    return x;
}

template <typename F> void two(Op &op, const aclTensor *self, const aclTensor *other, const aclTensor *result, F compute) {
    const Types known = {ACL_FLOAT, ACL_FLOAT16, ACL_BF16, ACL_INT32, ACL_INT64};
    Operand a = op.in(self, "self", known), b = op.in(other, "other", known), out = op.out(result, "out", known);
    op.same_dtype({a, b, out});
    a = broadcast(op, a, out.t.dims), b = broadcast(op, b, out.t.dims);
    bool whole = a.t.dtype == ACL_INT32 || a.t.dtype == ACL_INT64;
    op.runs(0, [=] {
        if (whole) {
            auto x = load_ints(a), y = load_ints(b);
            for (size_t i = 0; i < x.size(); i++) x[i] = compute(x[i], y[i]);
            return store_ints(out, x), int(OK);
        }
        auto x = load(a), y = load(b);
        for (size_t i = 0; i < x.size(); i++) x[i] = compute(x[i], y[i]);
        return store(out, x), int(OK);
    });
}

} // namespace

ABI aclnnStatus aclnnMatmulGetWorkspaceSize(const aclTensor *self, const aclTensor *mat2, aclTensor *out, int8_t cube,
                                            uint64_t *workspace, aclOpExecutor **executor) {
    ENTER("");
    return phase1("aclnnMatmul", workspace, executor, [=](Op &op) { matmul(op, self, mat2, out, cube); });
}
PHASE2(aclnnMatmul)

ABI aclnnStatus aclnnMmGetWorkspaceSize(const aclTensor *self, const aclTensor *mat2, aclTensor *out, int8_t cube,
                                        uint64_t *workspace, aclOpExecutor **executor) {
    ENTER("");
    return phase1("aclnnMm", workspace, executor, [=](Op &op) { matmul(op, self, mat2, out, cube); });
}
PHASE2(aclnnMm)

ABI aclnnStatus aclnnAddGetWorkspaceSize(const aclTensor *self, const aclTensor *other, const aclScalar *alpha, aclTensor *out,
                                         uint64_t *workspace, aclOpExecutor **executor) {
    ENTER("");
    return phase1("aclnnAdd", workspace, executor, [=](Op &op) {
        double times = op.scalar(alpha, "alpha");
        two(op, self, other, out, [=](auto a, auto b) { return decltype(a)(a + decltype(a)(times) * b); });
    });
}
PHASE2(aclnnAdd)

ABI aclnnStatus aclnnMulGetWorkspaceSize(const aclTensor *self, const aclTensor *other, aclTensor *out, uint64_t *workspace,
                                         aclOpExecutor **executor) {
    ENTER("");
    return phase1("aclnnMul", workspace, executor,
                  [=](Op &op) { two(op, self, other, out, [](auto a, auto b) { return decltype(a)(a * b); }); });
}
PHASE2(aclnnMul)

ABI aclnnStatus aclnnCastGetWorkspaceSize(const aclTensor *self, const aclDataType dtype, aclTensor *result,
                                          uint64_t *workspace, aclOpExecutor **executor) {
    ENTER("to dtype %d", int(dtype));
    return phase1("aclnnCast", workspace, executor, [=](Op &op) {
        const Types known = {ACL_FLOAT, ACL_FLOAT16, ACL_BF16, ACL_INT32, ACL_INT64, ACL_INT8, ACL_UINT8, ACL_BOOL};
        // The documentation lists views on both sides.
        Operand x = op.in(self, "self", known), y = op.inout(result, "out", known);
        op.need(y.t.dtype == dtype, "dtype", fmt("dtype says %s, out is %s", name_of(dtype), name_of(y.t.dtype)));
        op.shape(y, x.t.dims);
        auto real = [](const Operand &o) { return size_of(o.t.dtype) > 1 && o.t.dtype != ACL_INT32 && o.t.dtype != ACL_INT64; };
        op.runs(0, [=] {
            if (real(x) && real(y)) return store(y, load(x)), int(OK);
            if (!real(x) && !real(y)) return store_ints(y, load_ints(x)), int(OK);
            if (real(x)) {
                auto from = load(x);
                return store_ints(y, std::vector<int64_t>(from.begin(), from.end())), int(OK);
            }
            auto from = load_ints(x);
            return store(y, std::vector<float>(from.begin(), from.end())), int(OK);
        });
    });
}
PHASE2(aclnnCast)

namespace {

float silu(float x) { return x / (1 + std::exp(-x)); }

} // namespace

ABI aclnnStatus aclnnSiluGetWorkspaceSize(const aclTensor *self, aclTensor *result, uint64_t *workspace,
                                          aclOpExecutor **executor) {
    ENTER("");
    return phase1("aclnnSilu", workspace, executor, [=](Op &op) {
        Operand x = op.in(self, "self", FLOATS), y = op.out(result, "out", FLOATS);
        op.same_dtype({x, y});
        op.shape(y, x.t.dims);
        op.runs(0, [=] {
            auto values = load(x);
            for (float &v : values) v = silu(v);
            return store(y, values), int(OK);
        });
    });
}
PHASE2(aclnnSilu)

ABI aclnnStatus aclnnSwiGluGetWorkspaceSize(const aclTensor *self, int64_t dim, const aclTensor *result, uint64_t *workspace,
                                            aclOpExecutor **executor) {
    ENTER("dim %ld", long(dim));
    return phase1("aclnnSwiGlu", workspace, executor, [=](Op &op) {
        Operand x = op.in(self, "x", FLOATS), y = op.out(result, "out", FLOATS);
        op.same_dtype({x, y});
        op.need(x.contiguous(), "contiguity", "x is not contiguous");
        op.need(dim == -1 || dim == x.rank() - 1, "dim", fmt("dim %ld, the double halves the last one only", long(dim)));
        Shape half = x.t.dims;
        op.need(x.rank() > 0 && half.back() % 2 == 0, "shape", fmt("x is %s, its halves are equal", text(half).c_str()));
        half.back() /= 2;
        op.shape(y, half);
        size_t n = size_t(half.back());
        op.runs(0, [=] {
            auto both = load(x);
            std::vector<float> out(both.size() / 2);
            for (size_t i = 0; i < out.size(); i++) {
                const float *row = &both[i / n * 2 * n];
                out[i] = silu(row[i % n]) * row[n + i % n];
            }
            return store(y, out), int(OK);
        });
    });
}
PHASE2(aclnnSwiGlu)
