// Descriptions of tensors, and executors: what phase 1 makes and phase 2 uses up.
#include "ops.h"
#include <algorithm>
#include <cstring>

namespace dbl {

namespace {

Table<Tensor> &tensors = *new Table<Tensor>;
Table<Scalar> &scalars = *new Table<Scalar>;
Table<Ints> &arrays = *new Table<Ints>;
Table<TensorList> &lists = *new Table<TensorList>;
Table<Executor> &executors = *new Table<Executor>;

template <typename T> T *as(void *handle) { return static_cast<T *>(handle); }

bool lives(const void *handle) {
    return tensors.live.count(handle) || scalars.live.count(handle) || arrays.live.count(handle) || lists.live.count(handle);
}

// First and last element of the view, counted from the data.
void extent(const Tensor &t, int64_t *first, int64_t *last) {
    *first = *last = t.offset;
    for (size_t i = 0; i < t.dims.size(); i++) *last += (t.dims[i] - 1) * t.strides[i];
}

} // namespace

const Types FLOATS = {ACL_FLOAT, ACL_FLOAT16, ACL_BF16};
const Types HALVES = {ACL_FLOAT16, ACL_BF16};
const Types INDICES = {ACL_INT32, ACL_INT64};

int aicore(const char *kind, const std::string &text) { return fault(AICORE, kind, text); }

void Op::need(bool holds, const char *kind, const std::string &otherwise) {
    if (!holds) throw Refused{fault(NN_PARAM, kind, std::string(name()) + ": " + otherwise)};
}

Operand Op::take(const aclTensor *handle, const char *what, Types dtypes, bool write) {
    std::string who = std::string(name()) + ", " + what;
    auto found = tensors.get(handle);
    if (!found) {
        const char *kind = handle ? "tensor-destroyed" : "null";
        throw Refused{fault(NN_NULLPTR, kind, who + (handle ? ": no such tensor" : ": NULL"))};
    }
    Operand x{*found, nullptr, what};
    const Tensor &t = x.t;
    need(std::find(dtypes.begin(), dtypes.end(), t.dtype) != dtypes.end(), "dtype", fmt("%s is %s", what, name_of(t.dtype)));
    need(t.format == ACL_FORMAT_ND, "format", fmt("%s has format %d, not ND", what, int(t.format)));
    plan_.uses.push_back(handle);
    int64_t first, last;
    extent(t, &first, &last);
    size_t size = size_of(t.dtype);
    if (x.elements() > 0) {
        need(first >= 0 && last < count(t.storage), "storage",
             fmt("%s %s with offset %ld reaches element %ld of a storage of %s", what, text(t.dims).c_str(), long(t.offset),
                 long(last), text(t.storage).c_str()));
        need(uintptr_t(t.data) % 32 == 0, "alignment", fmt("%s at %p, not a multiple of 32", what, t.data));
        std::string why;
        const char *kind = "";
        uint8_t *at = translate(t.data, size_t(count(t.storage)) * size, plan_.device, &why, &kind);
        need(at != nullptr, kind, std::string(what) + ": " + why);
        x.at = at + size_t(t.offset) * size;
        uintptr_t from = uintptr_t(t.data) + size_t(first) * size;
        plan_.ranges.push_back({from, size_t(last - first + 1) * size, write, what});
    }
    operands_.push_back(x);
    return x;
}

Operand Op::out(const aclTensor *tensor, const char *what, Types dtypes) {
    Operand x = take(tensor, what, dtypes, true);
    need(x.contiguous(), "contiguity", fmt("%s is not contiguous", what));
    return x;
}

Operand Op::only(const aclTensorList *handle, const char *what, Types dtypes) {
    auto list = lists.get(handle);
    if (!list)
        throw Refused{fault(NN_NULLPTR, handle ? "tensor-destroyed" : "null", fmt("%s, %s: no such list", name(), what))};
    plan_.uses.push_back(handle);
    need(list->members.size() == 1, "list", fmt("%s is a list of %zu tensors, not of one", what, list->members.size()));
    return take(static_cast<const aclTensor *>(list->members[0]), what, dtypes, false);
}

std::vector<int64_t> Op::ints(const aclIntArray *handle, const char *what) {
    auto found = arrays.get(handle);
    if (!found)
        throw Refused{fault(NN_NULLPTR, handle ? "tensor-destroyed" : "null", fmt("%s, %s: no such array", name(), what))};
    plan_.uses.push_back(handle);
    return found->values;
}

double Op::scalar(const aclScalar *handle, const char *what) {
    auto found = scalars.get(handle);
    if (!found)
        throw Refused{fault(NN_NULLPTR, handle ? "tensor-destroyed" : "null", fmt("%s, %s: no such scalar", name(), what))};
    plan_.uses.push_back(handle);
    return found->value;
}

void Op::absent(const void *argument, const char *what) { need(!argument, "unsupported", fmt("%s is given", what)); }

void Op::same_dtype(std::initializer_list<Operand> all) {
    const Operand &first = *all.begin();
    for (const Operand &x : all) {
        need(x.t.dtype == first.t.dtype, "dtype",
             fmt("%s is %s, %s is %s", x.what, name_of(x.t.dtype), first.what, name_of(first.t.dtype)));
    }
}

void Op::shape(const Operand &x, const Shape &expected) {
    need(x.t.dims == expected, "shape", fmt("%s is %s, not %s", x.what, text(x.t.dims).c_str(), text(expected).c_str()));
}

void Op::runs(uint64_t workspace, std::function<int()> run, bool marks) {
    plan_.workspace = workspace, plan_.run = std::move(run), plan_.marks = marks;
}

// Pieces of one allocation: each is followed by 32 bytes behind its end rounded up to 32. Storages that overlap are one piece.
void Op::check_slab() const {
    for (const Operand &a : operands_) {
        for (const Operand &b : operands_) {
            if (!a.at || !b.at || block_of(uintptr_t(a.t.data)) != block_of(uintptr_t(b.t.data))) continue;
            uintptr_t end = uintptr_t(a.t.data) + size_t(count(a.t.storage)) * size_of(a.t.dtype);
            uintptr_t next = (end + 31) / 32 * 32 + 32, from = uintptr_t(b.t.data);
            if (from < end || from >= next) continue;
            throw Refused{fault(NN_PARAM, "slab",
                                fmt("%s: %s begins %zu bytes behind the end of %s, 32 and what rounding to 32 "
                                    "adds are to stay free",
                                    name(), b.what, size_t(from - end), a.what))};
        }
    }
}

Executor Op::take_plan() {
    check_slab();
    std::string line = "  ";
    for (const Operand &x : operands_) line += fmt("%s %s%s ", x.what, name_of(x.t.dtype), text(x.t.dims).c_str());
    trace(line);
    return std::move(plan_);
}

aclnnStatus phase1(const char *name, uint64_t *workspace, aclOpExecutor **out, const std::function<void(Op &)> &plan) {
    Lock lock(mu);
    if (!workspace || !out) return fault(NN_NULLPTR, "null", std::string(name) + ": workspaceSize or executor is NULL");
    int code;
    auto context = current(name, &code);
    if (!context) return NN_RUNTIME;
    try {
        Op op(name, context->device);
        plan(op);
        auto executor = std::make_shared<Executor>(op.take_plan());
        *workspace = executor->workspace;
        *out = as<aclOpExecutor>(executors.add(EXECUTOR, executor));
        return OK;
    } catch (const Refused &refused) {
        return refused.code;
    }
}

namespace {

int check_workspace(const Executor &plan, void *workspace, uint64_t bytes) {
    const char *op = plan.op.c_str();
    if (bytes < plan.workspace) {
        return fault(NN_PARAM, "workspace-small",
                     fmt("%s: a workspace of %zu bytes, %zu are needed", op, size_t(bytes), size_t(plan.workspace)));
    }
    if (!plan.workspace) return OK;
    std::string why;
    const char *kind = "";
    if (!translate(workspace, bytes, plan.device, &why, &kind))
        return fault(NN_PARAM, kind, fmt("%s, workspace: %s", op, why.c_str()));
    if (uintptr_t(workspace) % 32) return fault(NN_PARAM, "alignment", fmt("%s: workspace at %p", op, workspace));
    for (const Range &range : plan.ranges) {
        if (uintptr_t(workspace) < range.at + range.bytes && range.at < uintptr_t(workspace) + bytes) {
            return fault(NN_PARAM, "workspace-overlap", fmt("%s: the workspace lies on %s", op, range.what));
        }
    }
    return OK;
}

} // namespace

aclnnStatus phase2(const char *name, void *workspace, uint64_t bytes, aclOpExecutor *handle, aclrtStream stream_handle) {
    int planted = enter(name, fmt("%p, %zu, %p, %p", workspace, size_t(bytes), (void *)handle, stream_handle));
    Lock lock(mu);
    auto plan = executors.get(handle);
    // Whatever phase 2 answers, a plain executor is gone.
    if (plan && !plan->repeatable) executors.live.erase(handle);
    if (planted) return planted;
    if (!plan)
        return fault(NN_INNER_NULL, "executor-twice", std::string(name) + ": the executor was used before, or never was one");
    if (plan->op != name) return fault(NN_INNER_NULL, "executor-op", std::string(name) + " with an executor of " + plan->op);
    for (const void *used : plan->uses) {
        if (!lives(used))
            return fault(NN_NULLPTR, "tensor-destroyed", std::string(name) + ": an argument was destroyed between the phases");
    }
    if (int code = check_workspace(*plan, workspace, bytes)) return code;
    int code;
    auto stream = find_stream(stream_handle, name, &code);
    if (!stream) return NN_RUNTIME;
    if (stream_device(stream) != plan->device) {
        return fault(NN_RUNTIME, "wrong-device",
                     fmt("%s: planned on device %d, run on device %d", name, plan->device, stream_device(stream)));
    }
    Task task{name, plan->ranges, plan->run};
    task.marks = plan->marks;
    if (plan->workspace) {
        task.ranges.push_back({uintptr_t(workspace), size_t(plan->workspace), true, "workspace"});
        std::string why;
        const char *kind = "";
        uint8_t *scratch = translate(workspace, plan->workspace, plan->device, &why, &kind);
        auto run = plan->run;
        size_t size = plan->workspace;
        task.run = [=] { return memset(scratch, 0xFF, size), run(); };
    }
    enqueue(stream, std::move(task));
    return OK;
}

void tensor_leaks(std::string &out) {
    for (auto &[handle, t] : tensors.live) {
        if (!t->in_list) out += fmt("tensor %s%s\n", name_of(t->dtype), text(t->dims).c_str());
    }
    for (auto &[handle, s] : scalars.live) out += fmt("scalar %g\n", s->value);
    for (auto &[handle, a] : arrays.live) out += fmt("array of %zu integers\n", a->values.size());
    for (auto &[handle, l] : lists.live) out += fmt("list of %zu tensors\n", l->members.size());
    for (auto &[handle, e] : executors.live) out += "executor of " + e->op + "\n";
}

void tensor_reset() {
    Lock lock(mu);
    tensors.live.clear();
    scalars.live.clear();
    arrays.live.clear();
    lists.live.clear();
    executors.live.clear();
}

} // namespace dbl

using namespace dbl;

ABI aclTensor *aclCreateTensor(const int64_t *dims, uint64_t rank, aclDataType dtype, const int64_t *strides, int64_t offset,
                               aclFormat format, const int64_t *storage, uint64_t storage_rank, void *data) {
    if (enter(__func__, fmt("rank %zu, dtype %d, offset %ld, %p", size_t(rank), int(dtype), long(offset), data)))
        return nullptr;
    Lock lock(mu);
    if ((rank && (!dims || !strides)) || (storage_rank && !storage) || rank > 8 || storage_rank > 8) {
        return fault(NN_NULLPTR, "null", "aclCreateTensor: no dims, strides or storage, or more than 8 dimensions"), nullptr;
    }
    if (!size_of(dtype)) return fault(NN_PARAM, "dtype", fmt("aclCreateTensor: dtype %d", int(dtype))), nullptr;
    auto t = std::make_shared<Tensor>();
    t->dims.assign(dims, dims + rank);
    t->strides.assign(strides, strides + rank);
    t->storage.assign(storage, storage + storage_rank);
    t->offset = offset, t->dtype = dtype, t->format = format, t->data = data;
    auto negative = [](const Shape &s) { return std::any_of(s.begin(), s.end(), [](int64_t n) { return n < 0; }); };
    if (negative(t->dims) || negative(t->strides) || negative(t->storage) || offset < 0) {
        return fault(NN_PARAM, "shape", "aclCreateTensor: a negative dimension, stride or offset"), nullptr;
    }
    return as<aclTensor>(tensors.add(TENSOR, t));
}

ABI aclScalar *aclCreateScalar(void *value, aclDataType dtype) {
    if (enter(__func__, fmt("%p, dtype %d", value, int(dtype)))) return nullptr;
    Lock lock(mu);
    if (!value) return fault(NN_NULLPTR, "null", "aclCreateScalar of NULL"), nullptr;
    double number = 0;
    switch (dtype) {
    case ACL_FLOAT: number = *static_cast<float *>(value); break;
    case ACL_DOUBLE: number = *static_cast<double *>(value); break;
    case ACL_INT32: number = *static_cast<int32_t *>(value); break;
    case ACL_INT64: number = double(*static_cast<int64_t *>(value)); break;
    default: return fault(NN_PARAM, "dtype", fmt("aclCreateScalar: dtype %d", int(dtype))), nullptr;
    }
    return as<aclScalar>(scalars.add(SCALAR, std::make_shared<Scalar>(Scalar{dtype, number})));
}

ABI aclIntArray *aclCreateIntArray(const int64_t *values, uint64_t n) {
    if (enter(__func__, fmt("%p, %zu", (const void *)values, size_t(n)))) return nullptr;
    Lock lock(mu);
    if (!values && n) return fault(NN_NULLPTR, "null", "aclCreateIntArray of NULL"), nullptr;
    auto array = std::make_shared<Ints>();
    array->values.assign(values, values + n);
    return as<aclIntArray>(arrays.add(INTS, array));
}

ABI aclTensorList *aclCreateTensorList(const aclTensor *const *members, uint64_t n) {
    if (enter(__func__, fmt("%zu", size_t(n)))) return nullptr;
    Lock lock(mu);
    auto list = std::make_shared<TensorList>();
    for (uint64_t i = 0; members && i < n; i++) {
        auto t = tensors.get(members[i]);
        if (!t || t->in_list)
            return fault(NN_NULLPTR, "list", "aclCreateTensorList: no tensor, or one of another list"), nullptr;
        list->members.push_back(members[i]);
    }
    for (const void *member : list->members) tensors.get(member)->in_list = true;
    return as<aclTensorList>(lists.add(LIST, list));
}

ABI aclnnStatus aclDestroyTensor(const aclTensor *handle) {
    ENTER("%p", (const void *)handle);
    Lock lock(mu);
    auto t = tensors.get(handle);
    if (!t) return fault(NN_NULLPTR, "destroyed-twice", "aclDestroyTensor: no such tensor");
    if (t->in_list) return fault(NN_PARAM, "list-member", "aclDestroyTensor of a tensor that its list owns");
    tensors.live.erase(handle);
    return OK;
}

ABI aclnnStatus aclDestroyScalar(const aclScalar *handle) {
    ENTER("%p", (const void *)handle);
    Lock lock(mu);
    return scalars.live.erase(handle) ? int(OK) : fault(NN_NULLPTR, "destroyed-twice", "aclDestroyScalar: no such scalar");
}

ABI aclnnStatus aclDestroyIntArray(const aclIntArray *handle) {
    ENTER("%p", (const void *)handle);
    Lock lock(mu);
    return arrays.live.erase(handle) ? int(OK) : fault(NN_NULLPTR, "destroyed-twice", "aclDestroyIntArray: no such array");
}

ABI aclnnStatus aclDestroyTensorList(const aclTensorList *handle) {
    ENTER("%p", (const void *)handle);
    Lock lock(mu);
    auto list = lists.get(handle);
    if (!list) return fault(NN_NULLPTR, "destroyed-twice", "aclDestroyTensorList: no such list");
    for (const void *member : list->members) tensors.live.erase(member);
    lists.live.erase(handle);
    return OK;
}

ABI aclnnStatus aclSetAclOpExecutorRepeatable(aclOpExecutor *handle) {
    ENTER("%p", (void *)handle);
    Lock lock(mu);
    auto executor = executors.get(handle);
    if (!executor) return fault(NN_INNER_NULL, "executor-twice", "aclSetAclOpExecutorRepeatable: no such executor");
    executor->repeatable = true;
    return OK;
}

ABI aclnnStatus aclDestroyAclOpExecutor(aclOpExecutor *handle) {
    ENTER("%p", (void *)handle);
    Lock lock(mu);
    auto executor = executors.get(handle);
    if (!executor) return fault(NN_INNER_NULL, "executor-twice", "aclDestroyAclOpExecutor: no such executor");
    if (!executor->repeatable)
        return fault(NN_PARAM, "executor-destroy", "aclDestroyAclOpExecutor: the executor is not repeatable");
    executors.live.erase(handle);
    return OK;
}
