// How a launch runs: one block after the other, each CUDA thread on a stack of its own from the moment it has to wait for
// others. One launch at a time in the whole process, so that shared memory and `threadIdx` are plain variables.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "vector_types.h"

namespace shim {

// Dynamic shared memory that a block can have, as on Hopper: 227 KB.
constexpr size_t MAX_SHARED_BYTES = 232448;
constexpr unsigned MAX_THREADS = 1024;

// A cp.async that was issued and not yet waited for. Sizes as the instruction has them: what is beyond `source_bytes`
// becomes zero.
struct PendingCopy {
    void* to;
    const void* from;
    unsigned bytes, source_bytes;
    unsigned group;
};

struct Thread {
    enum State : uint8_t { READY, AT_BARRIER, IN_WARP, DONE };
    uint3 index;
    unsigned linear;
    State state;
    const char* waits_for; // the operation's name, for messages
    unsigned barrier;      // which of the sixteen
    int barrier_result;
    unsigned mask;         // the lanes that its warp operation names
    void* exchange;        // what it brings to the warp operation, on its own stack
    void* stack_pointer;   // where it goes on; null before it started
    char* stack;
    std::vector<PendingCopy> copies;
    unsigned copy_group; // number of the group that the next cp.async belongs to
};

// Of the thread that runs. Hidden: read too often to be looked up each time.
#define SHIM_HIDDEN __attribute__((visibility("hidden")))
extern Thread* current SHIM_HIDDEN;
extern uint3 block_index SHIM_HIDDEN;
extern dim3 block_size SHIM_HIDDEN;
extern dim3 grid_size SHIM_HIDDEN;
extern char* dynamic_shared SHIM_HIDDEN;

// Ends the process with a message that names what each waiting thread waits for.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The kernel and the thread that run, in words; empty where the calling OS thread runs none.
std::string where();

// Waits until `count` threads (0: all that have not exited) have come to the barrier; the sum of their values.
int barrier(const char* name, unsigned id, unsigned count, int value);

// Waits until all lanes in `mask` have come with their `exchange`, and lets the last one run `all` on everybody's.
void converge(const char* name, unsigned mask, void* exchange, void (*all)(void** lanes, unsigned mask));

unsigned live_lanes();

// The blocks before `first_x` do not run.
void launch(const char* name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel, unsigned first_x = 0);

// Kernels by name. A binder copies the arguments as cuLaunchKernel gets them, when it is called, as the driver does.
struct Kernel {
    std::function<std::function<void()>(void**)> bind;
    std::vector<size_t> argument_bytes;
};
std::map<std::string, Kernel>& kernels();

template <class... A, size_t... I>
std::function<void()> bind_arguments(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    std::tuple<std::decay_t<A>...> copies(*reinterpret_cast<std::decay_t<A>*>(arguments[I])...);
    return [kernel, copies] { std::apply(kernel, copies); };
}

template <class... A> bool add_kernel(const char* name, void (*kernel)(A...)) {
    auto bind = [kernel](void** arguments) { return bind_arguments(kernel, arguments, std::index_sequence_for<A...>{}); };
    kernels()[name] = {bind, {sizeof(std::decay_t<A>)...}};
    return true;
}

} // namespace shim

#define SHIM_KERNEL(name) [[maybe_unused]] static const bool shim_kernel_##name = shim::add_kernel(#name, name)
// Exactly as large as the launch says, so that the address sanitizer sees what runs over.
#define DYN_SMEM(T, name) T* name = reinterpret_cast<T*>(shim::dynamic_shared)

#define threadIdx (shim::current->index)
#define blockIdx (shim::block_index)
#define blockDim (shim::block_size)
#define gridDim (shim::grid_size)
#define warpSize 32
