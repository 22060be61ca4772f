// Tensors, the two-phase protocol of ops, and what ops compute with.
#pragma once
#include "double.h"
#include "numbers.h"
#include <initializer_list>

namespace dbl {

using Shape = std::vector<int64_t>;

struct Tensor {
    Shape dims, strides, storage;
    int64_t offset = 0;
    aclDataType dtype = ACL_FLOAT;
    aclFormat format = ACL_FORMAT_ND;
    void *data = nullptr;
    // Its list destroys it.
    bool in_list = false;
};
struct Ints {
    std::vector<int64_t> values;
};
struct Scalar {
    aclDataType dtype;
    double value;
};
struct TensorList {
    std::vector<const void *> members;
};

int64_t count(const Shape &shape);
std::string text(const Shape &shape);
size_t size_of(aclDataType dtype);
const char *name_of(aclDataType dtype);

// A tensor as one op has it: checked, and where its first element can be touched.
struct Operand {
    Tensor t;
    uint8_t *at = nullptr;
    const char *what = "";

    int64_t dim(int64_t i) const { return t.dims[size_t(i < 0 ? i + rank() : i)]; }
    int64_t rank() const { return int64_t(t.dims.size()); }
    int64_t elements() const { return count(t.dims); }
    bool contiguous() const;
    uintptr_t address() const { return uintptr_t(t.data) + uintptr_t(t.offset) * size_of(t.dtype); }
    // First byte of the element at an index of the leading dimensions.
    uint8_t *row(std::initializer_list<int64_t> index) const;
};

// All elements in row-major order, as floats or as integers.
std::vector<float> load(const Operand &x);
std::vector<int64_t> load_ints(const Operand &x);
// Rounds once.
void store(const Operand &x, const std::vector<float> &values);
void store_ints(const Operand &x, const std::vector<int64_t> &values);
// `n` neighbours of one dtype.
void load_row(const uint8_t *at, aclDataType dtype, int64_t n, float *out);
void store_row(uint8_t *at, aclDataType dtype, int64_t n, const float *values);

struct Refused {
    int code;
};

struct Executor {
    std::string op;
    int device;
    uint64_t workspace;
    bool repeatable = false;
    std::vector<Range> ranges;
    // Tensors, lists and arrays that have to live until phase 2.
    std::vector<const void *> uses;
    std::function<int()> run;
    bool marks = true;
};

using Types = std::initializer_list<aclDataType>;
extern const Types FLOATS, HALVES, INDICES;

// Phase 1 of an op: takes operands apart and refuses what the op's rules refuse, by throwing.
class Op {
  public:
    Op(const char *name, int device) { plan_.op = name, plan_.device = device, plan_.workspace = 0; }

    Operand in(const aclTensor *tensor, const char *what, Types dtypes) { return take(tensor, what, dtypes, false); }
    // Written, and so contiguous: the double does not know which ops would take another one.
    Operand out(const aclTensor *tensor, const char *what, Types dtypes);
    // Read and written.
    Operand inout(const aclTensor *tensor, const char *what, Types dtypes) { return take(tensor, what, dtypes, true); }
    // The only member of a list.
    Operand only(const aclTensorList *list, const char *what, Types dtypes);
    std::vector<int64_t> ints(const aclIntArray *array, const char *what);
    double scalar(const aclScalar *scalar, const char *what);
    void absent(const void *argument, const char *what);
    void need(bool holds, const char *kind, const std::string &otherwise);
    void same_dtype(std::initializer_list<Operand> operands);
    void shape(const Operand &x, const Shape &expected);
    // Says what phase 2 does. `marks`: all that is written counts as written.
    void runs(uint64_t workspace, std::function<int()> run, bool marks = true);
    const char *name() const { return plan_.op.c_str(); }
    Executor take_plan();

  private:
    Operand take(const aclTensor *tensor, const char *what, Types dtypes, bool write);
    void check_slab() const;

    Executor plan_;
    std::vector<Operand> operands_;
};

aclnnStatus phase1(const char *name, uint64_t *workspace, aclOpExecutor **executor, const std::function<void(Op &)> &plan);
aclnnStatus phase2(const char *name, void *workspace, uint64_t bytes, aclOpExecutor *executor, aclrtStream stream);
// A misuse that only the device sees: ends the stream.
int aicore(const char *kind, const std::string &text);

} // namespace dbl

#define PHASE2(name)                                                                                                           \
    ABI aclnnStatus name(void *workspace, uint64_t bytes, aclOpExecutor *executor, aclrtStream stream) {                       \
        return dbl::phase2(#name, workspace, bytes, executor, stream);                                                         \
    }
