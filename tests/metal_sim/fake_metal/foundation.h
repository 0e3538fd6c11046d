// The simulator's own side of Foundation.
#pragma once

#import <Foundation/Foundation.h>

#include <string>
#include <vector>

namespace sim {

// Objective-C objects that exist right now, by class name.
std::vector<std::pair<std::string, long>> live_objects();

NSString* make_string(const std::string& text);                           // autoreleased
NSArray* make_string_array(const std::vector<std::string>& elements);     // autoreleased
NSError* make_error(const std::string& domain, const std::string& text);  // autoreleased
std::string to_string(NSString* text);

}  // namespace sim
