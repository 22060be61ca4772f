// Elements of tensors: shapes, strides and dtypes.
#include "ops.h"

namespace dbl {

int64_t count(const Shape &shape) {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
}

std::string text(const Shape &shape) {
    std::string out = "[";
    for (size_t i = 0; i < shape.size(); i++) out += (i ? "," : "") + std::to_string(shape[i]);
    return out + "]";
}

// 0: a dtype the double does not know.
size_t size_of(aclDataType dtype) {
    switch (dtype) {
    case ACL_INT8:
    case ACL_UINT8:
    case ACL_BOOL: return 1;
    case ACL_FLOAT16:
    case ACL_BF16:
    case ACL_INT16:
    case ACL_UINT16: return 2;
    case ACL_FLOAT:
    case ACL_INT32:
    case ACL_UINT32: return 4;
    case ACL_INT64:
    case ACL_UINT64:
    case ACL_DOUBLE: return 8;
    default: return 0;
    }
}

const char *name_of(aclDataType dtype) {
    switch (dtype) {
    case ACL_FLOAT: return "float32";
    case ACL_FLOAT16: return "float16";
    case ACL_BF16: return "bfloat16";
    case ACL_INT8: return "int8";
    case ACL_UINT8: return "uint8";
    case ACL_BOOL: return "bool";
    case ACL_INT32: return "int32";
    case ACL_INT64: return "int64";
    case ACL_DOUBLE: return "float64";
    default: return "another dtype";
    }
}

bool Operand::contiguous() const {
    int64_t expected = 1;
    for (size_t i = t.dims.size(); i-- > 0;) {
        if (t.dims[i] != 1 && t.strides[i] != expected) return false;
        expected *= t.dims[i];
    }
    return true;
}

uint8_t *Operand::row(std::initializer_list<int64_t> index) const {
    int64_t element = 0;
    size_t i = 0;
    for (int64_t n : index) element += n * t.strides[i++];
    return at + size_t(element) * size_of(t.dtype);
}

void load_row(const uint8_t *at, aclDataType dtype, int64_t n, float *out) {
    const uint16_t *halves = reinterpret_cast<const uint16_t *>(at);
    switch (dtype) {
    case ACL_FLOAT: memcpy(out, at, size_t(n) * 4); return;
    case ACL_FLOAT16:
        for (int64_t i = 0; i < n; i++) out[i] = from_f16(halves[i]);
        return;
    case ACL_BF16:
        for (int64_t i = 0; i < n; i++) out[i] = from_bf16(halves[i]);
        return;
    default: return;
    }
}

void store_row(uint8_t *at, aclDataType dtype, int64_t n, const float *values) {
    uint16_t *halves = reinterpret_cast<uint16_t *>(at);
    switch (dtype) {
    case ACL_FLOAT: memcpy(at, values, size_t(n) * 4); return;
    case ACL_FLOAT16:
        for (int64_t i = 0; i < n; i++) halves[i] = to_f16(values[i]);
        return;
    case ACL_BF16:
        for (int64_t i = 0; i < n; i++) halves[i] = to_bf16(values[i]);
        return;
    default: return;
    }
}

namespace {

// Calls `at(first byte of a row, index of its first element)` for every run of the last dimension.
template <typename F> void rows(const Operand &x, F &&at) {
    int64_t n = x.elements(), width = x.rank() ? x.t.dims.back() : 1;
    if (!n) return;
    Shape index(x.t.dims.size(), 0);
    for (int64_t done = 0; done < n; done += width) {
        int64_t element = 0;
        for (size_t i = 0; i + 1 < index.size(); i++) element += index[i] * x.t.strides[i];
        at(x.at + size_t(element) * size_of(x.t.dtype), done);
        for (size_t i = index.size() - 1; i-- > 0 && i < index.size();) {
            if (++index[i] < x.t.dims[i]) break;
            index[i] = 0;
        }
    }
}

int64_t get_int(const uint8_t *at, aclDataType dtype) {
    switch (dtype) {
    case ACL_INT8: return *reinterpret_cast<const int8_t *>(at);
    case ACL_UINT8:
    case ACL_BOOL: return *at;
    case ACL_INT32: return *reinterpret_cast<const int32_t *>(at);
    case ACL_INT64: return *reinterpret_cast<const int64_t *>(at);
    default: return 0;
    }
}

void set_int(uint8_t *at, aclDataType dtype, int64_t value) {
    switch (dtype) {
    case ACL_INT8: *reinterpret_cast<int8_t *>(at) = int8_t(value); return;
    case ACL_UINT8: *at = uint8_t(value); return;
    case ACL_BOOL: *at = value != 0; return;
    case ACL_INT32: *reinterpret_cast<int32_t *>(at) = int32_t(value); return;
    case ACL_INT64: *reinterpret_cast<int64_t *>(at) = value; return;
    default: return;
    }
}

} // namespace

std::vector<float> load(const Operand &x) {
    std::vector<float> out(size_t(x.elements()));
    int64_t width = x.rank() ? x.t.dims.back() : 1, stride = x.rank() ? x.t.strides.back() : 1;
    size_t size = size_of(x.t.dtype);
    rows(x, [&](const uint8_t *at, int64_t done) {
        if (stride == 1) return load_row(at, x.t.dtype, width, &out[size_t(done)]);
        for (int64_t i = 0; i < width; i++) load_row(at + size_t(i * stride) * size, x.t.dtype, 1, &out[size_t(done + i)]);
    });
    return out;
}

void store(const Operand &x, const std::vector<float> &values) {
    int64_t width = x.rank() ? x.t.dims.back() : 1, stride = x.rank() ? x.t.strides.back() : 1;
    size_t size = size_of(x.t.dtype);
    rows(x, [&](uint8_t *at, int64_t done) {
        if (stride == 1) return store_row(at, x.t.dtype, width, &values[size_t(done)]);
        for (int64_t i = 0; i < width; i++) store_row(at + size_t(i * stride) * size, x.t.dtype, 1, &values[size_t(done + i)]);
    });
}

std::vector<int64_t> load_ints(const Operand &x) {
    std::vector<int64_t> out(size_t(x.elements()));
    int64_t width = x.rank() ? x.t.dims.back() : 1, stride = x.rank() ? x.t.strides.back() : 1;
    size_t size = size_of(x.t.dtype);
    rows(x, [&](const uint8_t *at, int64_t done) {
        for (int64_t i = 0; i < width; i++) out[size_t(done + i)] = get_int(at + size_t(i * stride) * size, x.t.dtype);
    });
    return out;
}

void store_ints(const Operand &x, const std::vector<int64_t> &values) {
    int64_t width = x.rank() ? x.t.dims.back() : 1, stride = x.rank() ? x.t.strides.back() : 1;
    size_t size = size_of(x.t.dtype);
    rows(x, [&](uint8_t *at, int64_t done) {
        for (int64_t i = 0; i < width; i++) set_int(at + size_t(i * stride) * size, x.t.dtype, values[size_t(done + i)]);
    });
}

} // namespace dbl
