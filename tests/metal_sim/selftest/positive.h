// Shared by positive.metal and, in spirit, by a host file: indices as enum constants.
#pragma once

enum PositiveBuffer : int { kIn = 0, kOut = kIn + 1, kArgs = 1 + 1 };
enum PositiveConstant : int { kMode = 7 };
