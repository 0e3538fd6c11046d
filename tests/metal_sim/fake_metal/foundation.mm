// Foundation on GNU's Objective-C runtime: reference counts, autorelease pools, strings, errors.
//
// The shared headers declare no instance variables, so classes whose objects hold something are
// class clusters: [NSString alloc] makes a SimString.
#include "foundation.h"

#include <objc/message.h>
#include <objc/runtime.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

// ---- object lifetime ----------------------------------------------------------------------------

// What an object becomes when its last reference is gone. Its memory is kept for a while, so that a
// message to it is caught instead of corrupting memory.
__attribute__((objc_root_class))
@interface ReleasedObject {
  Class isa;
}
@end
@implementation ReleasedObject
@end

namespace {

constexpr size_t kReleasedObjectsKept = 1 << 16;

struct Lifetimes {
  std::mutex mutex;
  std::map<Class, long> live;
  std::map<id, Class> released_class;
  std::deque<id> released_order;
};

Lifetimes& lifetimes() {
  static auto* instance = new Lifetimes;  // never destroyed: objects outlive static destructors
  return *instance;
}

// The count lives behind the instance variables, where class_createInstance was asked for room.
std::atomic<long>& reference_count(id object) {
  return *static_cast<std::atomic<long>*>(object_getIndexedIvars(object));
}

void note_created(Class cls) {
  std::lock_guard<std::mutex> lock(lifetimes().mutex);
  ++lifetimes().live[cls];
}

void note_released(id object, Class cls) {
  std::lock_guard<std::mutex> lock(lifetimes().mutex);
  Lifetimes& all = lifetimes();
  --all.live[cls];
  object_setClass(object, objc_getClass("ReleasedObject"));
  all.released_class[object] = cls;
  all.released_order.push_back(object);
  if (all.released_order.size() > kReleasedObjectsKept) {
    all.released_class.erase(all.released_order.front());
    object_dispose(all.released_order.front());
    all.released_order.pop_front();
  }
}

[[noreturn]] void die(const std::string& text) {
  std::fprintf(stderr, "simulated Metal: %s\n", text.c_str());
  std::fflush(stderr);
  std::abort();
}

// The runtime asks here when an object does not implement a message.
IMP handle_unknown_message(id receiver, SEL selector) {
  const std::string message = sel_getName(selector);
  Class cls = object_getClass(receiver);
  if (cls != objc_getClass("ReleasedObject")) {
    die("class " + std::string(class_getName(cls)) + " does not implement '" + message + "'");
  }
  std::string name = "an unknown class";
  {
    std::lock_guard<std::mutex> lock(lifetimes().mutex);
    auto found = lifetimes().released_class.find(receiver);
    if (found != lifetimes().released_class.end()) name = class_getName(found->second);
  }
  const bool over_release = message == "release" || message == "autorelease" || message == "drain";
  die((over_release ? "over-release: '" : "use after release: '") + message +
      "' sent to a released object of class " + name);
}

__attribute__((constructor)) void install_message_handler() {
  __objc_msg_forward2 = handle_unknown_message;
}

}  // namespace

std::vector<std::pair<std::string, long>> sim::live_objects() {
  std::lock_guard<std::mutex> lock(lifetimes().mutex);
  std::vector<std::pair<std::string, long>> result;
  for (auto [cls, count] : lifetimes().live) {
    if (count != 0) result.emplace_back(class_getName(cls), count);
  }
  return result;
}

// ---- autorelease pools --------------------------------------------------------------------------

namespace {

struct Pool {
  id owner;
  std::vector<id> objects;
};
thread_local std::vector<Pool> pools;

void add_to_pool(id object) {
  if (pools.empty()) {
    die("autorelease of a " + std::string(class_getName(object_getClass(object))) +
        " without an @autoreleasepool: it would leak");
  }
  pools.back().objects.push_back(object);
}

}  // namespace

@implementation NSObject
+ (void)initialize {
}
+ (instancetype)alloc {
  id object = class_createInstance(self, sizeof(std::atomic<long>));
  reference_count(object) = 1;
  note_created(self);
  return object;
}
+ (instancetype)new {
  return [[self alloc] init];
}
+ (Class)class {
  return self;
}
+ (Class)superclass {
  return class_getSuperclass(self);
}
+ (BOOL)instancesRespondToSelector:(SEL)selector {
  return class_respondsToSelector(self, selector);
}
- (instancetype)init {
  return self;
}
- (void)dealloc {
  note_released(self, object_getClass(self));
}
- (id)copy {
  return [self retain];  // everything here is immutable, or copied where it is used
}
- (instancetype)retain {
  ++reference_count(self);
  return self;
}
- (oneway void)release {
  if (--reference_count(self) == 0) [self dealloc];
}
- (instancetype)autorelease {
  add_to_pool(self);
  return self;
}
- (NSUInteger)retainCount {
  return static_cast<NSUInteger>(reference_count(self).load());
}
- (BOOL)isEqual:(id)object {
  return self == object;
}
- (NSUInteger)hash {
  return reinterpret_cast<NSUInteger>(self);
}
- (Class)superclass {
  return class_getSuperclass(object_getClass(self));
}
- (Class)class {
  return object_getClass(self);
}
- (instancetype)self {
  return self;
}
- (BOOL)isKindOfClass:(Class)cls {
  for (Class c = object_getClass(self); c; c = class_getSuperclass(c)) {
    if (c == cls) return YES;
  }
  return NO;
}
- (BOOL)isMemberOfClass:(Class)cls {
  return object_getClass(self) == cls;
}
- (BOOL)conformsToProtocol:(Protocol*)protocol {
  return class_conformsToProtocol(object_getClass(self), protocol);
}
- (BOOL)respondsToSelector:(SEL)selector {
  return class_respondsToSelector(object_getClass(self), selector);
}
- (NSString*)description {
  return sim::make_string(class_getName(object_getClass(self)));
}
@end

@implementation NSAutoreleasePool
- (instancetype)init {
  pools.push_back({self, {}});
  return self;
}
- (void)drain {
  [self release];
}
- (void)dealloc {
  // Pools that an exception left behind lie above this one.
  while (!pools.empty()) {
    Pool pool = std::move(pools.back());
    pools.pop_back();
    for (id object : pool.objects) [object release];
    if (pool.owner == self) break;
  }
  [super dealloc];
}
@end

// ---- strings ------------------------------------------------------------------------------------

@interface SimString : NSString {
  char* _text;
  NSUInteger _length;
}
@end

@implementation NSString
@dynamic length, UTF8String;
+ (instancetype)alloc {
  return self == [NSString class] ? (id)[SimString alloc] : [super alloc];
}
+ (instancetype)stringWithUTF8String:(const char*)text {
  return [[[self alloc] initWithUTF8String:text] autorelease];
}
+ (instancetype)stringWithCString:(const char*)text encoding:(NSStringEncoding)encoding {
  return [self stringWithUTF8String:text];
}
- (instancetype)initWithUTF8String:(const char*)text {
  return [self initWithBytes:text length:std::strlen(text) encoding:NSUTF8StringEncoding];
}
- (instancetype)initWithBytes:(const void*)bytes
                       length:(NSUInteger)length
                     encoding:(NSStringEncoding)encoding {
  return self;
}
- (BOOL)isEqual:(id)object {
  return [object isKindOfClass:[NSString class]] && [self isEqualToString:object];
}
- (BOOL)isEqualToString:(NSString*)other {
  return std::strcmp(self.UTF8String, other.UTF8String) == 0;
}
- (BOOL)hasPrefix:(NSString*)prefix {
  return std::strncmp(self.UTF8String, prefix.UTF8String, prefix.length) == 0;
}
- (NSUInteger)hash {
  return std::hash<std::string>()(self.UTF8String);
}
- (NSString*)description {
  return self;
}
- (id)copyWithZone:(NSZone*)zone {
  return [self retain];
}
@end

@implementation SimString
- (instancetype)initWithBytes:(const void*)bytes
                       length:(NSUInteger)length
                     encoding:(NSStringEncoding)encoding {
  _text = static_cast<char*>(std::malloc(length + 1));
  std::memcpy(_text, bytes, length);
  _text[length] = '\0';
  _length = length;
  return self;
}
- (void)dealloc {
  std::free(_text);
  [super dealloc];
}
- (const char*)UTF8String {
  return _text;
}
- (NSUInteger)length {
  return _length;
}
@end

// The compiler makes these objects, without room for a reference count.
@implementation NSConstantString
- (const char*)UTF8String {
  return _bytes;
}
- (NSUInteger)length {
  return _length;
}
- (instancetype)retain {
  return self;
}
- (oneway void)release {
}
- (instancetype)autorelease {
  return self;
}
@end

NSString* sim::make_string(const std::string& text) {
  return [[[SimString alloc] initWithBytes:text.data()
                                    length:text.size()
                                  encoding:NSUTF8StringEncoding] autorelease];
}

std::string sim::to_string(NSString* text) {
  return text ? text.UTF8String : "";
}

// ---- errors -------------------------------------------------------------------------------------

@interface SimError : NSError {
 @public
  NSString* _domain;
  NSString* _text;
}
@end

@implementation NSError
@dynamic domain, code, localizedDescription;
- (id)copyWithZone:(NSZone*)zone {
  return [self retain];
}
@end

@implementation SimError
- (NSErrorDomain)domain {
  return _domain;
}
- (NSInteger)code {
  return 1;
}
- (NSString*)localizedDescription {
  return _text;
}
- (NSString*)description {
  return _text;
}
- (void)dealloc {
  [_domain release];
  [_text release];
  [super dealloc];
}
@end

NSError* sim::make_error(const std::string& domain, const std::string& text) {
  SimError* error = [[[SimError alloc] init] autorelease];
  error->_domain = [make_string(domain) retain];
  error->_text = [make_string(text) retain];
  return error;
}

// ---- collections --------------------------------------------------------------------------------

@interface SimArray : NSArray {
 @public
  std::vector<id>* _objects;
}
@end

@implementation NSArray
@dynamic count;
+ (instancetype)alloc {
  return self == [NSArray class] ? (id)[SimArray alloc] : [super alloc];
}
+ (instancetype)arrayWithObjects:(const id[])objects count:(NSUInteger)count {
  SimArray* array = [[[SimArray alloc] init] autorelease];
  for (NSUInteger i = 0; i < count; ++i) array->_objects->push_back([objects[i] retain]);
  return array;
}
- (id)objectAtIndex:(NSUInteger)index {
  return [self objectAtIndexedSubscript:index];
}
- (id)objectAtIndexedSubscript:(NSUInteger)index {
  return nil;
}
- (NSUInteger)countByEnumeratingWithState:(NSFastEnumerationState*)state
                                  objects:(id[])buffer
                                    count:(NSUInteger)length {
  static unsigned long never_mutated = 0;
  NSUInteger copied = 0;
  while (copied < length && state->state < self.count) {
    buffer[copied++] = [self objectAtIndexedSubscript:state->state++];
  }
  state->itemsPtr = buffer;
  state->mutationsPtr = &never_mutated;
  return copied;
}
- (id)copyWithZone:(NSZone*)zone {
  return [self retain];
}
@end

@implementation SimArray
- (instancetype)init {
  _objects = new std::vector<id>;
  return self;
}
- (void)dealloc {
  for (id object : *_objects) [object release];
  delete _objects;
  [super dealloc];
}
- (NSUInteger)count {
  return _objects->size();
}
- (id)objectAtIndexedSubscript:(NSUInteger)index {
  if (index >= _objects->size()) die("NSArray index is out of bounds");
  return (*_objects)[index];
}
@end

NSArray* sim::make_string_array(const std::vector<std::string>& elements) {
  std::vector<id> strings;
  for (const auto& element : elements) strings.push_back(make_string(element));
  return [NSArray arrayWithObjects:strings.data() count:strings.size()];
}

@interface SimDictionary : NSDictionary {
 @public
  std::vector<std::pair<id, id>>* _entries;
}
@end

@implementation NSDictionary
@dynamic count;
+ (instancetype)dictionaryWithObjects:(const id[])objects
                              forKeys:(const id<NSCopying>[])keys
                                count:(NSUInteger)count {
  SimDictionary* dictionary = [[[SimDictionary alloc] init] autorelease];
  for (NSUInteger i = 0; i < count; ++i) {
    dictionary->_entries->emplace_back([(id)keys[i] retain], [objects[i] retain]);
  }
  return dictionary;
}
- (id)objectForKey:(id)key {
  return [self objectForKeyedSubscript:key];
}
- (id)objectForKeyedSubscript:(id)key {
  return nil;
}
- (id)copyWithZone:(NSZone*)zone {
  return [self retain];
}
@end

@implementation SimDictionary
- (instancetype)init {
  _entries = new std::vector<std::pair<id, id>>;
  return self;
}
- (void)dealloc {
  for (auto [key, value] : *_entries) {
    [key release];
    [value release];
  }
  delete _entries;
  [super dealloc];
}
- (NSUInteger)count {
  return _entries->size();
}
- (id)objectForKeyedSubscript:(id)key {
  for (auto [known, value] : *_entries) {
    if ([known isEqual:key]) return value;
  }
  return nil;
}
@end
