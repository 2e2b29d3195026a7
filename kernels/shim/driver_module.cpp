// Modules, functions and launches.
#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <list>
#include <string>

#include <unistd.h>

#include "driver.h"
#include "execution.h"

namespace {

using namespace fake;

struct Function {
    std::string name;
    int max_dynamic_shared_bytes;
};
struct Module {
    std::string ptx; // empty for a binary image, whose functions cannot be told
    std::list<Function> functions;
};

// The word after a directive: `sm_90a` after `.target`.
std::string directive(const std::string& ptx, const char* name) {
    size_t at = ptx.find(std::string("\n") + name + " ");
    if (at == std::string::npos) return "";
    at += strlen(name) + 2;
    return ptx.substr(at, ptx.find_first_of(" ,\n", at) - at);
}

// PTX of a newer CUDA than the driver's is refused; 12.x reads 8.x, 11.x reads 7.x.
bool version_is_known(const std::string& ptx) {
    int major = 0, minor = 0;
    sscanf(directive(ptx, ".version").c_str(), "%d.%d", &major, &minor);
    Version driver = driver_version();
    return major < driver.major - 4 || (major == driver.major - 4 && minor <= driver.minor);
}

bool target_fits(const std::string& ptx) {
    int target = 0;
    char suffix = 0;
    sscanf(directive(ptx, ".target").c_str(), "sm_%d%c", &target, &suffix);
    int device = compute_capability().major * 10 + compute_capability().minor;
    return suffix == 'a' ? target == device : target <= device;
}

// A fault in a kernel ends the process, and says which one it was. Without fprintf, which takes more stack than signal
// handlers have.
void say_where(int signal) {
    std::string where = shim::where();
    if (!where.empty()) {
        where = "CUDA shim: " + where + ": touched memory that is not there\n";
        [[maybe_unused]] ssize_t written = write(STDERR_FILENO, where.data(), where.size());
    }
    std::signal(signal, SIG_DFL); // the fault comes again
}

// Where the process has a handler already (Rust's, for stack overflows), it was told of no kernels: ours comes first.
void watch_for_faults() {
    static const bool watched = [] {
        struct sigaction action = {};
        action.sa_handler = say_where;
        action.sa_flags = SA_ONSTACK;
        return sigaction(SIGSEGV, &action, nullptr) == 0 && sigaction(SIGBUS, &action, nullptr) == 0;
    }();
    (void)watched;
}

// Whether this launch is the one that FAKECUDA_FAIL_LAUNCH names.
bool must_fail() {
    static const long failing = getenv("FAKECUDA_FAIL_LAUNCH") ? atol(getenv("FAKECUDA_FAIL_LAUNCH")) : 0;
    static std::atomic<long> launches = 0;
    return ++launches == failing;
}

// Whether FAKECUDA_FAULT names the kernel.
bool has_fault(const char* kernel) {
    static const char* const fault = getenv("FAKECUDA_FAULT");
    return fault && strncmp(kernel, fault, strlen(fault)) == 0;
}

bool kernels_run() {
    static const bool run = !getenv("FAKECUDA_NO_KERNELS");
    return run;
}

} // namespace

API cuModuleLoadData(void** module, const void* image) {
    REQUIRE(ready_to_wait());
    auto* text = static_cast<const char*>(image);
    auto loaded = std::make_unique<Module>();
    bool is_ptx = text[0] == '/' || text[0] == '.' || text[0] == '\n';
    if (is_ptx) {
        loaded->ptx = "\n" + std::string(text);
        if (directive(loaded->ptx, ".target").empty()) return INVALID_PTX;
        if (!version_is_known(loaded->ptx)) return UNSUPPORTED_PTX_VERSION;
        if (!target_fits(loaded->ptx)) return INVALID_PTX;
    }
    *module = loaded.release();
    return OK;
}
API cuModuleUnload(void* module) {
    finish_all();
    delete static_cast<Module*>(module);
    return OK;
}
API cuModuleGetFunction(void** function, void* handle, const char* name) {
    REQUIRE(ready());
    auto* module = static_cast<Module*>(handle);
    bool declared = module->ptx.empty() || module->ptx.find(std::string(".entry ") + name + "(") != std::string::npos;
    if (!declared || !shim::kernels().count(name)) return NOT_FOUND;
    module->functions.push_back({name, 48 << 10});
    *function = &module->functions.back();
    return OK;
}

API cuFuncSetAttribute(void* function, int attribute, int value) {
    REQUIRE(ready());
    if (attribute != 8) return OK;
    if (value < 0 || value > static_cast<int>(shim::MAX_SHARED_BYTES)) return INVALID_VALUE;
    static_cast<Function*>(function)->max_dynamic_shared_bytes = value;
    return OK;
}
API cuFuncGetAttribute(int* value, int attribute, void* function) {
    REQUIRE(ready());
    switch (attribute) {
        case 0: *value = static_cast<int>(shim::MAX_THREADS); break;
        case 4: *value = 32; break; // registers
        case 8: *value = static_cast<Function*>(function)->max_dynamic_shared_bytes; break;
        default: *value = 0; break;
    }
    return OK;
}
API cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* bytes) {
    auto& sizes = shim::kernels().at(static_cast<Function*>(function)->name).argument_bytes;
    if (index >= sizes.size()) return INVALID_VALUE;
    *offset = 0;
    for (size_t i = 0; i < index; i++) *offset = (*offset + sizes[i] + 7) / 8 * 8;
    *bytes = sizes[index];
    return OK;
}

// By threads and shared memory alone, as registers are not known here.
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int threads, size_t shared_bytes) {
    REQUIRE(ready());
    size_t by_threads = 2048 / static_cast<size_t>(threads), by_shared = 233472 / (shared_bytes + 1024);
    *blocks = static_cast<int>(std::min<size_t>({by_threads, by_shared, 32}));
    return OK;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void* function, int threads, size_t shared_bytes, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared_bytes);
}

API cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, void* stream, void** arguments, void**) {
    REQUIRE(ready());
    watch_for_faults();
    auto* function = static_cast<Function*>(handle);
    dim3 grid(grid_x, grid_y, grid_z), block(block_x, block_y, block_z);
    uint64_t threads = uint64_t{block_x} * block_y * block_z;
    if (!grid_x || !grid_y || !grid_z || grid_x > 2147483647 || grid_y > 65535 || grid_z > 65535) return INVALID_VALUE;
    if (!threads || threads > shim::MAX_THREADS || block_z > 64) return INVALID_VALUE;
    if (static_cast<int>(shared_bytes) > function->max_dynamic_shared_bytes) return INVALID_VALUE;
    auto work = shim::kernels().at(function->name).bind(arguments); // copies them now, as the driver does
    const char* name = function->name.c_str();
    return enqueue(stream, [=] {
        if (must_fail()) return set_failed();
        if (kernels_run()) shim::launch(name, grid, block, shared_bytes, work, has_fault(name));
    });
}

struct LaunchAttribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        struct { unsigned x, y, z; } cluster;
    } value;
};
struct LaunchConfiguration {
    unsigned grid[3], block[3], shared_bytes;
    void* stream;
    LaunchAttribute* attributes;
    unsigned attribute_count;
};
// Programmatic dependent launch changes when a kernel begins, never what it computes: streams stay in order here.
API cuLaunchKernelEx(const LaunchConfiguration* launch, void* function, void** arguments, void** extra) {
    constexpr int CLUSTER_DIMENSION = 4;
    for (unsigned i = 0; i < launch->attribute_count; i++) {
        const LaunchAttribute& attribute = launch->attributes[i];
        auto& cluster = attribute.value.cluster;
        if (attribute.id == CLUSTER_DIMENSION && cluster.x * cluster.y * cluster.z != 1) return INVALID_VALUE;
    }
    auto &grid = launch->grid, &block = launch->block;
    return cuLaunchKernel(function, grid[0], grid[1], grid[2], block[0], block[1], block[2], launch->shared_bytes,
                          launch->stream, arguments, extra);
}
