// clang gives every Objective-C++ function of the GNU runtime the personality routine
// __gnu_objc_personality_v0, which knows nothing of typed C++ handlers and noexcept. Nothing here
// throws Objective-C objects, so C++'s routine takes its place.
#include <unwind.h>

extern "C" {

_Unwind_Reason_Code __gxx_personality_v0(int, _Unwind_Action, _Unwind_Exception_Class,
                                         _Unwind_Exception*, _Unwind_Context*);

__attribute__((visibility("default"))) _Unwind_Reason_Code __gnu_objc_personality_v0(
    int version, _Unwind_Action actions, _Unwind_Exception_Class exception_class,
    _Unwind_Exception* exception, _Unwind_Context* context) {
  return __gxx_personality_v0(version, actions, exception_class, exception, context);
}
}
