// Devices, contexts, and the names of errors.
#include <cstdio>
#include <cstring>

#include "driver.h"
#include "execution.h"

namespace fake {
namespace {

const char* setting(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value ? value : otherwise;
}

Version version(const char* text) {
    Version version{};
    if (sscanf(text, "%d.%d", &version.major, &version.minor) != 2) {
        fprintf(stderr, "fake driver: `%s` is no version: two numbers with a dot between, like 9.0\n", text);
        abort();
    }
    return version;
}

int devices() { return getenv("FAKECUDA_NODEV") ? 0 : atoi(setting("FAKECUDA_DEVICES", "1")); }

// Adds a call to the trace, where one was asked for; it is written when the process ends.
void note(const char* call) {
    static FILE* const trace = getenv("FAKECUDA_TRACE") ? fopen(getenv("FAKECUDA_TRACE"), "w") : nullptr;
    if (trace && call) fprintf(trace, "%s\n", call);
}

// Contexts are told apart by address; there is one a device.
char contexts[64];
thread_local void* context = nullptr;

} // namespace

Version compute_capability() {
    static const Version capability = version(setting("FAKECUDA_CC", "9.0"));
    return capability;
}
Version driver_version() {
    static const Version driver = version(setting("FAKECUDA_DRIVER", "13.0"));
    return driver;
}
size_t device_memory_bytes() {
    static const size_t bytes = strtoull(setting("FAKECUDA_MEMORY_BYTES", "4294967296"), nullptr, 10);
    return bytes;
}
int current_device() { return context ? static_cast<int>(static_cast<char*>(context) - contexts) : -1; }

Result ready(const char* call) {
    note(call);
    return !context ? INVALID_CONTEXT : has_failed() ? LAUNCH_FAILED : OK;
}

Result ready_to_wait(const char* call) {
    REQUIRE(ready(call));
    if (!thread_captures()) return OK;
    invalidate_captures_of_thread();
    return CAPTURE_UNSUPPORTED;
}

} // namespace fake

using namespace fake;

API cuInit(unsigned) { return devices() ? OK : NO_DEVICE; }
API cuDriverGetVersion(int* version) {
    *version = driver_version().major * 1000 + driver_version().minor * 10;
    return OK;
}
API cuDeviceGetCount(int* count) {
    *count = devices();
    return OK;
}
API cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal >= 0 && ordinal < devices() ? OK : INVALID_DEVICE;
}
API cuDeviceGetName(char* name, int bytes, int) {
    snprintf(name, static_cast<size_t>(bytes), "CPU shim");
    return OK;
}
API cuDeviceGetUuid_v2(unsigned char* uuid, int device) {
    memset(uuid, device, 16);
    return OK;
}
API cuDeviceGetPCIBusId(char* id, int bytes, int device) {
    snprintf(id, static_cast<size_t>(bytes), "0000:%02x:00.0", device + 1);
    return OK;
}
API cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = device_memory_bytes();
    return OK;
}

// The few that are asked for, by the driver's numbers; Hopper's values.
API cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 1: *value = 1024; break;                       // threads a block
        case 2: case 3: *value = 1024; break;               // block x, y
        case 4: *value = 64; break;                         // block z
        case 5: *value = 2147483647; break;                 // grid x
        case 6: case 7: *value = 65535; break;              // grid y, z
        case 8: *value = 48 << 10; break;                   // shared memory a block
        case 10: *value = 32; break;                        // warp
        case 12: *value = 65536; break;                     // registers a block
        case 16: *value = 4; break;                         // multiprocessors: few, so that grids of one wave wrap
        case 38: *value = 50 << 20; break;                  // L2
        case 39: *value = 2048; break;                      // threads a multiprocessor
        case 75: *value = compute_capability().major; break;
        case 76: *value = compute_capability().minor; break;
        case 81: *value = 233472; break;                    // shared memory a multiprocessor
        case 82: *value = 65536; break;                     // registers a multiprocessor
        case 95: *value = 1; break;                         // cooperative launches
        case 97: *value = static_cast<int>(shim::MAX_SHARED_BYTES); break; // with the attribute set
        case 106: *value = 32; break;                       // blocks a multiprocessor
        case 111: *value = 1024; break;                     // shared memory that each block costs beside its own
        case 115: *value = 1; break;                        // memory pools
        default: *value = 0; break;
    }
    return OK;
}

API cuDevicePrimaryCtxRetain(void** made, int device) {
    *made = &contexts[device];
    return OK;
}
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API cuCtxGetCurrent(void** current) {
    *current = context;
    return OK;
}
API cuCtxSetCurrent(void* current) {
    context = current;
    return OK;
}
API cuCtxGetDevice(int* device) {
    *device = current_device();
    return context ? OK : INVALID_CONTEXT;
}
API cuCtxSetFlags(unsigned) { return ready(); }
API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return ready();
}
API cuCtxSynchronize() {
    REQUIRE(ready_to_wait());
    finish_all();
    return ready(nullptr);
}

static const char* error_name(int error) {
    switch (error) {
        case OK: return "CUDA_SUCCESS";
        case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
        case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
        case NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
        case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
        case INVALID_CONTEXT: return "CUDA_ERROR_INVALID_CONTEXT";
        case NO_BINARY_FOR_GPU: return "CUDA_ERROR_NO_BINARY_FOR_GPU";
        case INVALID_PTX: return "CUDA_ERROR_INVALID_PTX";
        case UNSUPPORTED_PTX_VERSION: return "CUDA_ERROR_UNSUPPORTED_PTX_VERSION";
        case INVALID_HANDLE: return "CUDA_ERROR_INVALID_HANDLE";
        case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
        case NOT_READY: return "CUDA_ERROR_NOT_READY";
        case LAUNCH_OUT_OF_RESOURCES: return "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES";
        case LAUNCH_FAILED: return "CUDA_ERROR_LAUNCH_FAILED";
        case CAPTURE_UNSUPPORTED: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
        case CAPTURE_INVALIDATED: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
        case CAPTURE_UNMATCHED: return "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED";
        default: return "CUDA_ERROR_UNKNOWN";
    }
}
API cuGetErrorName(int error, const char** name) {
    *name = error_name(error);
    return OK;
}
API cuGetErrorString(int error, const char** text) { return cuGetErrorName(error, text); }
