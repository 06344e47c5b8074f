// A libcuda.so.1 of a GPU that isn't there: every call succeeds, and a launch is written down.
// Triton's own driver module, built against it, then packs a launch as it would for a GPU.

#include <stdint.h>
#include <string.h>

enum { MOST_PARAMETERS = 32 };

// The fields of the driver API's CUlaunchConfig.
struct launch_config {
    unsigned grid[3], block[3], shared_bytes;
    void* stream;
    void* attributes;
    unsigned attribute_count;
};

// Set by the test, read back by it; names as ctypes finds them.
int parameter_count = 0;
int launches = 0;
unsigned last_grid[3], last_block[3], last_shared_bytes;
uint64_t last_stream, last_function, last_parameters[MOST_PARAMETERS];

int cuLaunchKernelEx(const struct launch_config* config, void* function, void** parameters, void** extra) {
    (void)extra;
    ++launches;
    memcpy(last_grid, config->grid, sizeof last_grid);
    memcpy(last_block, config->block, sizeof last_block);
    last_shared_bytes = config->shared_bytes;
    last_stream = (uint64_t)config->stream;
    last_function = (uint64_t)function;
    // How wide each one is only the kernel knows: the test looks at the low half where that is all.
    for (int i = 0; i < parameter_count && i < MOST_PARAMETERS; ++i)
        memcpy(&last_parameters[i], parameters[i], sizeof(uint64_t));
    return 0;
}

static int nothing;

int cuInit(unsigned flags) { return (void)flags, 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    (void)attribute, (void)device;
    return *value = 227 * 1024, 0;  // asked for shared memory
}
int cuDevicePrimaryCtxRetain(void** context, int device) { return (void)device, *context = &nothing, 0; }
int cuCtxGetCurrent(void** context) { return *context = &nothing, 0; }
int cuCtxSetCurrent(void* context) { return (void)context, 0; }
int cuCtxGetDevice(int* device) { return *device = 0, 0; }
int cuCtxGetLimit(uint64_t* value, int limit) { return (void)limit, *value = 0, 0; }
int cuCtxSetLimit(int limit, uint64_t value) { return (void)limit, (void)value, 0; }
int cuStreamIsCapturing(void* stream, int* capturing) { return (void)stream, *capturing = 0, 0; }
int cuModuleLoadData(void** module, const void* image) { return (void)image, *module = &nothing, 0; }
int cuModuleUnload(void* module) { return (void)module, 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
    return (void)module, *function = (void*)strlen(name), 0;
}
int cuFuncGetAttribute(int* value, int attribute, void* function) {
    (void)attribute, (void)function;
    return *value = 1024, 0;  // asked for threads
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
    return (void)function, (void)attribute, (void)value, 0;
}
int cuFuncSetCacheConfig(void* function, int config) { return (void)function, (void)config, 0; }
int cuPointerGetAttribute(void* data, int attribute, uint64_t pointer) {
    (void)attribute;
    return memcpy(data, &pointer, sizeof pointer), 0;
}
int cuGetErrorString(int error, const char** text) { return (void)error, *text = "", 0; }
