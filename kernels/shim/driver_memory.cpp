// Memory of the device and pinned memory of the host, and copies between them.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>

#include "driver.h"

namespace fake {
namespace {

struct Allocation {
    size_t bytes;
    int device;
    char* mapping;
    size_t mapping_bytes;
};

std::mutex lock;
std::map<Pointer, Allocation> allocations; // of devices
std::map<Pointer, size_t> pinned;
std::map<int, size_t> used_bytes;

constexpr size_t ALIGNMENT = 256; // as cuMemAlloc promises
constexpr unsigned char FILL = 0xff;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Ends at a page that cannot be touched; up to ALIGNMENT bytes before that are watched by `overrun`.
bool allocate(size_t bytes, Pointer* at) {
    size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    size_t padded = round_up(bytes, ALIGNMENT), mapping_bytes = round_up(padded, page) + page;
    void* mapping = mmap(nullptr, mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return false;
    char* end = static_cast<char*>(mapping) + mapping_bytes - page;
    mprotect(end, page, PROT_NONE);
    memset(end - padded, FILL, padded);
    *at = reinterpret_cast<Pointer>(end - padded);
    allocations[*at] = {bytes, current_device(), static_cast<char*>(mapping), mapping_bytes};
    return true;
}

bool overrun(Pointer at, const Allocation& allocation) {
    size_t padded = round_up(allocation.bytes, ALIGNMENT);
    for (size_t i = allocation.bytes; i < padded; i++)
        if (reinterpret_cast<unsigned char*>(at)[i] != FILL) return true;
    return false;
}

template <class Map, class Size> bool inside(const Map& map, Pointer at, size_t bytes, Size size) {
    auto next = map.upper_bound(at);
    if (next == map.begin()) return false;
    auto& [start, value] = *--next;
    return at + bytes <= start + size(value);
}

} // namespace

bool is_device_memory(Pointer at, size_t bytes) {
    std::lock_guard guard(lock);
    return inside(allocations, at, bytes, [](const Allocation& allocation) { return allocation.bytes; });
}

bool is_pinned(const void* at, size_t bytes) {
    std::lock_guard guard(lock);
    return inside(pinned, reinterpret_cast<Pointer>(at), bytes, [](size_t bytes) { return bytes; });
}

} // namespace fake

using namespace fake;

API cuMemAlloc_v2(Pointer* at, size_t bytes) {
    REQUIRE(ready_to_wait());
    if (bytes == 0) return INVALID_VALUE;
    std::lock_guard guard(lock);
    size_t& used = used_bytes[current_device()];
    if (bytes > device_memory_bytes() - used || !allocate(bytes, at)) return OUT_OF_MEMORY;
    used += bytes;
    return OK;
}

// Waits for the device first, as the driver does: kernels that are under way may still use it.
API cuMemFree_v2(Pointer at) {
    REQUIRE(ready_to_wait());
    finish_all();
    std::lock_guard guard(lock);
    auto found = allocations.find(at);
    if (found == allocations.end()) return INVALID_VALUE;
    if (overrun(at, found->second)) {
        fprintf(stderr, "fake driver: somebody wrote past the end of an allocation of %zu bytes\n", found->second.bytes);
        abort();
    }
    used_bytes[found->second.device] -= found->second.bytes;
    munmap(found->second.mapping, found->second.mapping_bytes);
    allocations.erase(found);
    return OK;
}

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    REQUIRE(ready());
    std::lock_guard guard(lock);
    *total = device_memory_bytes();
    *free = *total - used_bytes[current_device()];
    return OK;
}

API cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    REQUIRE(ready_to_wait());
    if (bytes == 0) return INVALID_VALUE;
    *at = aligned_alloc(4096, round_up(bytes, 4096));
    if (!*at) return OUT_OF_MEMORY;
    std::lock_guard guard(lock);
    pinned[reinterpret_cast<Pointer>(*at)] = bytes;
    return OK;
}
API cuMemFreeHost(void* at) {
    REQUIRE(ready_to_wait());
    finish_all();
    std::lock_guard guard(lock);
    if (!pinned.erase(reinterpret_cast<Pointer>(at))) return INVALID_VALUE;
    free(at);
    return OK;
}

// --- in the order of a stream

API cuMemsetD8Async(Pointer to, unsigned char value, size_t bytes, void* stream) {
    REQUIRE(ready());
    if (!is_device_memory(to, bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] { memset(reinterpret_cast<void*>(to), value, bytes); });
}
API cuMemsetD32Async(Pointer to, unsigned value, size_t words, void* stream) {
    REQUIRE(ready());
    if (to % 4 != 0 || !is_device_memory(to, 4 * words)) return INVALID_VALUE;
    return enqueue(stream, [=] {
        for (size_t i = 0; i < words; i++) reinterpret_cast<unsigned*>(to)[i] = value;
    });
}

// From pinned memory the copy is made when its turn comes. Other memory may be used again when the call returns, so the
// driver takes a copy of its own; that cannot be part of a graph.
API cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, void* stream) {
    REQUIRE(ready());
    if (!is_device_memory(to, bytes)) return INVALID_VALUE;
    if (is_pinned(from, bytes)) return enqueue(stream, [=] { memcpy(reinterpret_cast<void*>(to), from, bytes); });
    if (is_capturing(stream)) return CAPTURE_UNSUPPORTED;
    auto copy = std::make_shared<std::unique_ptr<char[]>>(new char[bytes]);
    memcpy(copy->get(), from, bytes);
    return enqueue(stream, [=] { memcpy(reinterpret_cast<void*>(to), copy->get(), bytes); });
}
// To pinned memory likewise; to other memory the call itself waits.
API cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, void* stream) {
    REQUIRE(ready());
    if (!is_device_memory(from, bytes)) return INVALID_VALUE;
    if (!is_pinned(to, bytes)) {
        if (is_capturing(stream)) return CAPTURE_UNSUPPORTED;
        finish(stream);
        REQUIRE(ready(nullptr));
        memcpy(to, reinterpret_cast<void*>(from), bytes);
        return OK;
    }
    return enqueue(stream, [=] { memcpy(to, reinterpret_cast<void*>(from), bytes); });
}
API cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void* stream) {
    REQUIRE(ready());
    if (!is_device_memory(to, bytes) || !is_device_memory(from, bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] { memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
}
