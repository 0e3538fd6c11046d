// What <ATen/mps/MPSStream.h> needs of MetalPerformanceShaders. See ../README.md.
#pragma once

#include <Metal/Metal.h>

@interface MPSCommandBuffer : NSObject <MTLCommandBuffer>
@property(readonly, nonnull, nonatomic) id<MTLCommandBuffer> commandBuffer;
@property(readonly, nonnull, nonatomic) id<MTLCommandBuffer> rootCommandBuffer;
+ (nonnull instancetype)commandBufferFromCommandQueue:(nonnull id<MTLCommandQueue>)commandQueue;
+ (nonnull instancetype)commandBufferWithCommandBuffer:(nonnull id<MTLCommandBuffer>)commandBuffer;
- (void)commitAndContinue;
@end
