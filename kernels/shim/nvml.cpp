// A libnvidia-ml.so.1 for tests: cards that have drawn 300 W since the process began.
//
// FAKENVML_NO_COUNTER=1   a card that tells its power only
#include <chrono>
#include <cstdint>
#include <cstdlib>

#define API extern "C" __attribute__((visibility("default")))

static constexpr unsigned POWER_MW = 300000;
static constexpr int OK = 0, NOT_SUPPORTED = 3;
static const auto start = std::chrono::steady_clock::now();
static int card;

API int nvmlInit_v2() { return OK; }
API int nvmlShutdown() { return OK; }
API const char* nvmlErrorString(int) { return "an error of the NVML for tests"; }
API int nvmlDeviceGetHandleByPciBusId_v2(const char*, void** device) {
    *device = &card;
    return OK;
}
API int nvmlDeviceGetPowerUsage(void*, unsigned* mw) {
    *mw = POWER_MW;
    return OK;
}
API int nvmlDeviceGetTotalEnergyConsumption(void*, unsigned long long* mj) {
    if (getenv("FAKENVML_NO_COUNTER")) return NOT_SUPPORTED;
    std::chrono::duration<double> running = std::chrono::steady_clock::now() - start;
    *mj = static_cast<unsigned long long>(running.count() * POWER_MW);
    return OK;
}
