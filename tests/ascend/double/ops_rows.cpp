// Ops along the last dimension: norms, softmax, largest elements.
#include "ops.h"
#include <algorithm>
#include <numeric>

using namespace dbl;

namespace {

// Of each row of n elements: divides by the root of the mean square, multiplies by gamma.
void norm_rows(std::vector<float> &x, const std::vector<float> &gamma, double epsilon, std::vector<float> *rstd) {
    size_t n = gamma.size();
    for (size_t row = 0; n && row < x.size() / n; row++) {
        double sum = 0;
        for (size_t i = 0; i < n; i++) sum += double(x[row * n + i]) * x[row * n + i];
        double scale = 1 / std::sqrt(sum / double(n) + epsilon);
        rstd->push_back(float(scale));
        for (size_t i = 0; i < n; i++) x[row * n + i] = float(x[row * n + i] * scale * gamma[i]);
    }
}

// gamma is the last dimensions of x; rstd has ones in their place.
void check_norm(Op &op, const Operand &x, const Operand &gamma, const Operand &rstd) {
    size_t normed = gamma.t.dims.size(), rank = x.t.dims.size();
    bool last =
        normed > 0 && normed <= rank && std::equal(gamma.t.dims.begin(), gamma.t.dims.end(), x.t.dims.end() - long(normed));
    op.need(last, "shape", fmt("gamma is %s, x %s", text(gamma.t.dims).c_str(), text(x.t.dims).c_str()));
    Shape expected = x.t.dims;
    std::fill(expected.end() - long(normed), expected.end(), 1);
    op.shape(rstd, expected);
}

int64_t axis(Op &op, const Operand &x, int64_t dim) {
    op.need(dim >= -x.rank() && dim < x.rank(), "dim", fmt("dim %ld of %s", long(dim), text(x.t.dims).c_str()));
    int64_t at = dim < 0 ? dim + x.rank() : dim;
    op.need(at == x.rank() - 1, "dim",
            fmt("dim %ld of %s, the double takes the last one only", long(dim), text(x.t.dims).c_str()));
    return at;
}

} // namespace

ABI aclnnStatus aclnnRmsNormGetWorkspaceSize(const aclTensor *x_, const aclTensor *gamma_, double epsilon, const aclTensor *y_,
                                             const aclTensor *rstd_, uint64_t *workspace, aclOpExecutor **executor) {
    ENTER("epsilon %g", epsilon);
    return phase1("aclnnRmsNorm", workspace, executor, [=](Op &op) {
        Operand x = op.in(x_, "x", FLOATS), gamma = op.in(gamma_, "gamma", FLOATS), y = op.out(y_, "yOut", FLOATS);
        Operand rstd = op.out(rstd_, "rstdOut", {ACL_FLOAT});
        op.same_dtype({x, gamma, y});
        op.shape(y, x.t.dims);
        check_norm(op, x, gamma, rstd);
        op.runs(1024, [=] {
            std::vector<float> values = load(x), scales;
            norm_rows(values, load(gamma), epsilon, &scales);
            store(y, values), store(rstd, scales);
            return int(OK);
        });
    });
}
PHASE2(aclnnRmsNorm)

ABI aclnnStatus aclnnAddRmsNormGetWorkspaceSize(const aclTensor *x1, const aclTensor *x2, const aclTensor *gamma_,
                                                double epsilon, aclTensor *y_, aclTensor *rstd_, aclTensor *sum_,
                                                uint64_t *workspace, aclOpExecutor **executor) {
    ENTER("epsilon %g", epsilon);
    return phase1("aclnnAddRmsNorm", workspace, executor, [=](Op &op) {
        Operand a = op.in(x1, "x1", FLOATS), b = op.in(x2, "x2", FLOATS), gamma = op.in(gamma_, "gamma", FLOATS);
        Operand y = op.out(y_, "yOut", FLOATS), rstd = op.out(rstd_, "rstdOut", {ACL_FLOAT}),
                sum = op.out(sum_, "xOut", FLOATS);
        op.same_dtype({a, b, gamma, y, sum});
        op.shape(b, a.t.dims), op.shape(y, a.t.dims), op.shape(sum, a.t.dims);
        check_norm(op, a, gamma, rstd);
        op.runs(1024, [=] {
            std::vector<float> values = load(a), more = load(b), scales;
            for (size_t i = 0; i < values.size(); i++) values[i] += more[i];
            store(sum, values);
            values = load(sum);
            norm_rows(values, load(gamma), epsilon, &scales);
            store(y, values), store(rstd, scales);
            return int(OK);
        });
    });
}
PHASE2(aclnnAddRmsNorm)

ABI aclnnStatus aclnnSoftmaxGetWorkspaceSize(const aclTensor *self, int64_t dim, aclTensor *result, uint64_t *workspace,
                                             aclOpExecutor **executor) {
    ENTER("dim %ld", long(dim));
    return phase1("aclnnSoftmax", workspace, executor, [=](Op &op) {
        Operand x = op.in(self, "self", FLOATS), y = op.out(result, "out", FLOATS);
        op.same_dtype({x, y});
        op.shape(y, x.t.dims);
        axis(op, x, dim);
        size_t n = size_t(x.dim(-1));
        op.runs(512, [=] {
            auto values = load(x);
            for (size_t row = 0; n && row < values.size() / n; row++) {
                float *v = &values[row * n], top = *std::max_element(v, v + n);
                double sum = 0;
                for (size_t i = 0; i < n; i++) sum += std::exp(double(v[i]) - top);
                for (size_t i = 0; i < n; i++) v[i] = float(std::exp(double(v[i]) - top) / sum);
            }
            return store(y, values), int(OK);
        });
    });
}
PHASE2(aclnnSoftmax)

ABI aclnnStatus aclnnArgMaxGetWorkspaceSize(const aclTensor *self, int64_t dim, bool keep, aclTensor *result,
                                            uint64_t *workspace, aclOpExecutor **executor) {
    ENTER("dim %ld, keepdim %d", long(dim), keep);
    return phase1("aclnnArgMax", workspace, executor, [=](Op &op) {
        Operand x = op.in(self, "self", FLOATS), y = op.out(result, "out", INDICES);
        axis(op, x, dim);
        Shape expected = x.t.dims;
        if (keep) expected.back() = 1;
        else expected.pop_back();
        op.shape(y, expected);
        size_t n = size_t(x.dim(-1));
        op.need(n > 0, "shape", "self has an empty last dimension");
        op.runs(512, [=] {
            auto values = load(x);
            std::vector<int64_t> out;
            // The first of the largest; a NaN is larger than all.
            auto less = [](float a, float b) { return !std::isnan(a) && (std::isnan(b) || a < b); };
            for (auto at = values.begin(); at != values.end(); at += long(n)) {
                out.push_back(std::max_element(at, at + long(n), less) - at);
            }
            return store_ints(y, out), int(OK);
        });
    });
}
PHASE2(aclnnArgMax)

ABI aclnnStatus aclnnTopkGetWorkspaceSize(const aclTensor *self, int64_t k, int64_t dim, bool largest, bool sorted,
                                          aclTensor *values_, aclTensor *indices_, uint64_t *workspace,
                                          aclOpExecutor **executor) {
    ENTER("k %ld, dim %ld, largest %d, sorted %d", long(k), long(dim), largest, sorted);
    return phase1("aclnnTopk", workspace, executor, [=](Op &op) {
        Operand x = op.in(self, "self", FLOATS), values = op.out(values_, "values", FLOATS);
        Operand indices = op.out(indices_, "indices", {ACL_INT64});
        op.same_dtype({x, values});
        axis(op, x, dim);
        int64_t n = x.dim(-1);
        op.need(k >= 0 && k <= n, "k", fmt("k %ld of %ld", long(k), long(n)));
        Shape expected = x.t.dims;
        expected.back() = k;
        op.shape(values, expected), op.shape(indices, expected);
        op.runs(512, [=] {
            auto all = load(x);
            std::vector<float> kept;
            std::vector<int64_t> places;
            for (size_t row = 0; n && row < all.size() / size_t(n); row++) {
                const float *v = &all[row * size_t(n)];
                std::vector<int64_t> order(static_cast<size_t>(n));
                std::iota(order.begin(), order.end(), 0);
                auto before = [=](int64_t a, int64_t b) { return v[a] != v[b] ? (v[a] > v[b]) == largest : a < b; };
                std::partial_sort(order.begin(), order.begin() + k, order.end(), before);
                for (int64_t i = 0; i < k; i++) kept.push_back(v[order[size_t(i)]]), places.push_back(order[size_t(i)]);
            }
            store(values, kept), store_ints(indices, places);
            return int(OK);
        });
    });
}
PHASE2(aclnnTopk)

namespace {

// Keeps the k largest, of their probabilities the first that reach p together, and takes the largest of probability / noise.
int64_t draw(const float *v, int64_t n, int64_t k, float p, const float *noise, float eps, float *kept) {
    std::vector<int64_t> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [=](int64_t a, int64_t b) { return v[a] > v[b]; });
    if (k >= 1 && k <= 1024) order.resize(size_t(std::min(k, n)));
    std::vector<double> odds;
    double sum = 0, reached = 0;
    for (int64_t i : order) odds.push_back(std::exp(double(v[i]) - v[order[0]])), sum += odds.back();
    int64_t best = order[0];
    double highest = -1;
    for (int64_t i = 0; i < n; i++) kept[i] = -INFINITY;
    for (size_t i = 0; i < order.size() && (i == 0 || reached < double(p)); i++) {
        double odd = odds[i] / sum, score = noise ? odd / (double(noise[order[i]]) + eps) : odd;
        reached += odd;
        kept[order[i]] = v[order[i]];
        if (score > highest) highest = score, best = order[i];
    }
    return best;
}

} // namespace

ABI aclnnStatus aclnnTopKTopPSampleGetWorkspaceSize(const aclTensor *logits_, const aclTensor *k_, const aclTensor *p_,
                                                    const aclTensor *q_, double eps, bool need_logits, int64_t guess,
                                                    const aclTensor *index_, const aclTensor *kept_, uint64_t *workspace,
                                                    aclOpExecutor **executor) {
    ENTER("eps %g, isNeedLogits %d, topKGuess %ld", eps, need_logits, long(guess));
    return phase1("aclnnTopKTopPSample", workspace, executor, [=](Op &op) {
        Operand x = op.in(logits_, "logits", HALVES), k = op.in(k_, "topK", {ACL_INT32}), p = op.in(p_, "topP", HALVES);
        Operand noise = q_ ? op.in(q_, "q", {ACL_FLOAT}) : Operand{};
        Operand index = op.out(index_, "logitsSelectIdx", {ACL_INT64}), kept = op.out(kept_, "logitsTopKPSelect", {ACL_FLOAT});
        op.need(x.rank() == 2 && x.dim(1) <= 1 << 20, "shape", fmt("logits is %s", text(x.t.dims).c_str()));
        op.same_dtype({x, p});
        int64_t rows = x.dim(0), n = x.dim(1);
        op.shape(k, {rows}), op.shape(p, {rows}), op.shape(index, {rows}), op.shape(kept, {rows, n});
        if (q_) op.shape(noise, {rows, n});
        op.runs(uint64_t(rows * n * 4 + 512), [=] {
            auto v = load(x), top_p = load(p), q = q_ ? load(noise) : std::vector<float>();
            auto top_k = load_ints(k);
            std::vector<float> left(v.size());
            std::vector<int64_t> out;
            for (int64_t row = 0; row < rows; row++) {
                size_t at = size_t(row * n);
                out.push_back(
                    draw(&v[at], n, top_k[size_t(row)], top_p[size_t(row)], q_ ? &q[at] : nullptr, float(eps), &left[at]));
            }
            store_ints(index, out);
            if (need_logits) store(kept, left);
            return int(OK);
        });
    });
}
PHASE2(aclnnTopKTopPSample)
