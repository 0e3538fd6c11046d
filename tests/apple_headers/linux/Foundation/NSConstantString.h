// The class of @"..." under -fconstant-string-class=NSConstantString. The layout is the compiler's.
#pragma once

@interface NSConstantString : NSString {
 @public
  const char* _bytes;
  unsigned int _length;
}
@end
