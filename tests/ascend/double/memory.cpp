// Device and page-locked memory. A device's addresses come from one reservation that the host cannot touch and are never used
// twice; tasks read and write the same bytes through a second mapping. New memory is full of 0xFF: NaNs and ids of -1.
#include "double.h"
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace dbl {

namespace {

constexpr size_t PAGE = 4096, SHIFT = 64;
// Addresses of a device; a machine that has fewer for a process says so.
const size_t SPACE = size_t(setting("YN_DOUBLE_SPACE_GIB", 1024)) << 30;
constexpr int POISON = 0xFF;

struct Space {
    uint8_t *seen = nullptr;  // what addresses mean
    uint8_t *bytes = nullptr; // where they are readable
    int file = -1;
    size_t used = 0;
    size_t taken = 0;
};
std::map<int, Space> &spaces = *new std::map<int, Space>;
std::map<uintptr_t, Block> &blocks = *new std::map<uintptr_t, Block>;
std::map<uintptr_t, size_t> &pinned = *new std::map<uintptr_t, size_t>;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
size_t total_bytes() { return size_t(setting("YN_DOUBLE_MEMORY", 1l << 30)); }
// As the runtime pads what it is asked for.
size_t padded(size_t bytes) { return round_up(bytes, 32) + 32; }

Space *space_of(int device) {
    Space &space = spaces[device];
    if (space.seen) return &space;
    space.file = memfd_create("ascend-double", MFD_CLOEXEC);
    if (space.file < 0 || ftruncate(space.file, off_t(SPACE))) return nullptr;
    void *seen = mmap(nullptr, SPACE, PROT_NONE, MAP_SHARED | MAP_NORESERVE, space.file, 0);
    void *bytes = mmap(nullptr, SPACE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, space.file, 0);
    if (seen == MAP_FAILED || bytes == MAP_FAILED) return nullptr;
    madvise(bytes, SPACE, MADV_DONTDUMP);
    space.seen = static_cast<uint8_t *>(seen);
    space.bytes = static_cast<uint8_t *>(bytes);
    return &space;
}

const Space *space_at(uintptr_t at, int *device) {
    for (auto &[number, space] : spaces) {
        uintptr_t from = uintptr_t(space.seen);
        if (space.seen && at >= from && at < from + SPACE) return *device = number, &space;
    }
    return nullptr;
}

void release(const Block &block) {
    Space &space = spaces[block.device];
    size_t offset = block.base - uintptr_t(space.seen);
    size_t from = offset / PAGE * PAGE, to = round_up(offset + padded(block.bytes), PAGE);
    fallocate(space.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off_t(from), off_t(to - from));
    space.taken -= padded(block.bytes);
}

} // namespace

bool is_device(const void *at) {
    int device;
    return space_at(uintptr_t(at), &device) != nullptr;
}

uintptr_t address_of(const void *host, int device) {
    auto found = spaces.find(device);
    if (found == spaces.end()) return 0;
    uintptr_t at = uintptr_t(host), from = uintptr_t(found->second.bytes);
    return at >= from && at < from + SPACE ? uintptr_t(found->second.seen) + (at - from) : 0;
}

Block *block_of(uintptr_t at) {
    auto found = blocks.upper_bound(at);
    if (found == blocks.begin()) return nullptr;
    Block &block = (--found)->second;
    return at < block.base + padded(block.bytes) ? &block : nullptr;
}

uint8_t *translate(const void *address, size_t bytes, int device, std::string *why, const char **kind) {
    uintptr_t at = uintptr_t(address);
    int owner = -1;
    const Space *space = space_at(at, &owner);
    *kind = "not-device";
    if (!space) return *why = fmt("%p is not device memory", address), nullptr;
    Block *block = block_of(at);
    *kind = "use-after-free";
    if (!block) return *why = fmt("%p is device memory that was freed or never allocated", address), nullptr;
    *kind = "out-of-bounds";
    if (at + bytes > block->base + block->bytes) {
        *why =
            fmt("%zu bytes at %p end behind their allocation of %zu bytes at %#zx", bytes, address, block->bytes, block->base);
        return nullptr;
    }
    *kind = "wrong-device";
    if (device >= 0 && owner != device) {
        return *why = fmt("%p is memory of device %d, the work is device %d's", address, owner, device), nullptr;
    }
    return space->bytes + (at - uintptr_t(space->seen));
}

bool is_pinned(const void *address, size_t bytes) {
    uintptr_t at = uintptr_t(address);
    auto found = pinned.upper_bound(at);
    return found != pinned.begin() && (--found, at + bytes <= found->first + found->second);
}

void mark_written(uintptr_t at, size_t bytes) {
    Block *block = block_of(at);
    if (!block || !bytes) return;
    if (block->written.empty()) block->written.resize(padded(block->bytes) / 32 + 1);
    size_t from = (at - block->base) / 32, to = (at - block->base + bytes - 1) / 32;
    for (size_t i = from; i <= to && i < block->written.size(); i++) block->written[i] = true;
}

bool all_written(uintptr_t at, size_t bytes) {
    Block *block = block_of(at);
    if (!block || !bytes) return false;
    if (block->written.empty()) return false;
    for (size_t i = (at - block->base) / 32; i <= (at - block->base + bytes - 1) / 32; i++) {
        if (!block->written[i]) return false;
    }
    return true;
}

void memory_leaks(std::string &out) {
    for (auto &[base, block] : blocks)
        out += fmt("device memory: %zu bytes at %#zx of device %d\n", block.bytes, base, block.device);
    for (auto &[base, bytes] : pinned) out += fmt("host memory: %zu bytes at %#zx\n", bytes, base);
}

void memory_reset() {
    Lock lock(mu);
    for (auto &[base, block] : blocks) release(block);
    blocks.clear();
    for (auto &[base, bytes] : pinned) free(reinterpret_cast<void *>(base));
    pinned.clear();
}

} // namespace dbl

using namespace dbl;

ABI aclError aclrtMalloc(void **out, size_t bytes, aclrtMemMallocPolicy policy) {
    ENTER("%zu, policy %d", bytes, int(policy));
    Lock lock(mu);
    int code;
    auto context = current("aclrtMalloc", &code);
    if (!context) return code;
    if (!out || !bytes) return fault(INVALID_PARAM, "malloc", fmt("aclrtMalloc of %zu bytes into %p", bytes, (void *)out));
    if (int(policy) < 0 || int(policy) > 7) return fault(INVALID_PARAM, "malloc", fmt("aclrtMalloc: policy %d", int(policy)));
    Space *space = space_of(context->device);
    size_t room = round_up(padded(bytes) + SHIFT, PAGE) + PAGE;
    if (!space || space->taken + padded(bytes) > total_bytes() || space->used + room > SPACE || planted_oom(bytes)) {
        return fail(DEVICE_OOM, fmt("no memory for %zu bytes on device %d", bytes, context->device));
    }
    // Aligned to 64 bytes and to nothing larger: more is not promised.
    size_t offset = space->used + SHIFT;
    space->used += room;
    space->taken += padded(bytes);
    memset(space->bytes + offset, POISON, padded(bytes));
    uintptr_t base = uintptr_t(space->seen) + offset;
    blocks[base] = Block{context->device, base, bytes, {}};
    *out = reinterpret_cast<void *>(base);
    return OK;
}

ABI aclError aclrtFree(void *at) {
    ENTER("%p", at);
    Lock lock(mu);
    int code;
    auto context = current("aclrtFree", &code);
    if (!context) return code;
    auto found = blocks.find(uintptr_t(at));
    if (found == blocks.end()) return fault(RT_PARAM, "free", fmt("aclrtFree of %p, which is no live allocation", at));
    if (found->second.device != context->device) {
        return fault(RT_PARAM, "wrong-device",
                     fmt("aclrtFree of memory of device %d in a context of device %d", found->second.device, context->device));
    }
    release(found->second);
    blocks.erase(found);
    return OK;
}

ABI aclError aclrtMallocHost(void **out, size_t bytes) {
    ENTER("%zu", bytes);
    Lock lock(mu);
    int code;
    if (!current("aclrtMallocHost", &code)) return code;
    if (!out || !bytes) return fault(INVALID_PARAM, "malloc", fmt("aclrtMallocHost of %zu bytes into %p", bytes, (void *)out));
    void *at = aligned_alloc(PAGE, round_up(bytes, PAGE));
    if (!at) return fail(DEVICE_OOM, fmt("no host memory for %zu bytes", bytes));
    memset(at, POISON, bytes);
    pinned[uintptr_t(at)] = bytes;
    *out = at;
    return OK;
}

ABI aclError aclrtFreeHost(void *at) {
    ENTER("%p", at);
    Lock lock(mu);
    int code;
    if (!current("aclrtFreeHost", &code)) return code;
    auto found = pinned.find(uintptr_t(at));
    if (found == pinned.end()) return fault(RT_PARAM, "free", fmt("aclrtFreeHost of %p, which is no live allocation", at));
    std::string task = pending_conflict(uintptr_t(at), found->second, true);
    if (!task.empty()) {
        code = fault(RT_PARAM, "host-free-pending", "aclrtFreeHost of a buffer that a pending " + task + " uses");
        return code;
    }
    pinned.erase(found);
    free(at);
    return OK;
}

ABI aclError aclrtGetMemInfo(aclrtMemAttr attribute, size_t *free_bytes, size_t *total) {
    ENTER("%d", int(attribute));
    Lock lock(mu);
    int code;
    auto context = current("aclrtGetMemInfo", &code);
    if (!context) return code;
    if (!free_bytes || !total) return fault(INVALID_PARAM, "null", "aclrtGetMemInfo: a NULL argument");
    bool hbm = attribute == ACL_HBM_MEM;
    *total = hbm ? total_bytes() : 0;
    *free_bytes = hbm ? total_bytes() - spaces[context->device].taken : 0;
    return OK;
}
