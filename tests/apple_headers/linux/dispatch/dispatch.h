// The part of libdispatch that PyTorch's MPS headers and an extension use, for targets without it.
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
// As with the real library an exception that leaves a block ends the process.
#define DISPATCH_NOTHROW noexcept
#else
#define DISPATCH_NOTHROW __attribute__((nothrow))
#endif

typedef struct dispatch_queue_s* dispatch_queue_t;
typedef struct dispatch_queue_attr_s* dispatch_queue_attr_t;
typedef struct dispatch_data_s* dispatch_data_t;
typedef void* dispatch_object_t;  // any of the above

#define DISPATCH_QUEUE_SERIAL ((dispatch_queue_attr_t)0)

dispatch_queue_t dispatch_queue_create(const char* label,
                                       dispatch_queue_attr_t attr) DISPATCH_NOTHROW;
void dispatch_retain(dispatch_object_t object) DISPATCH_NOTHROW;
void dispatch_release(dispatch_object_t object) DISPATCH_NOTHROW;

#ifdef __BLOCKS__
typedef void (^dispatch_block_t)(void);

void dispatch_sync(dispatch_queue_t queue, dispatch_block_t block) DISPATCH_NOTHROW;
void dispatch_async(dispatch_queue_t queue, dispatch_block_t block) DISPATCH_NOTHROW;

// The default destructor means: copy the bytes.
#define DISPATCH_DATA_DESTRUCTOR_DEFAULT ((dispatch_block_t)0)
dispatch_data_t dispatch_data_create(const void* buffer, size_t size, dispatch_queue_t queue,
                                     dispatch_block_t destructor) DISPATCH_NOTHROW;
size_t dispatch_data_get_size(dispatch_data_t data) DISPATCH_NOTHROW;
#endif

#ifdef __cplusplus
}
#endif
