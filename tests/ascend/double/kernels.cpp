#include "double.h"
namespace dbl { void kernel_leaks(std::string &) {} void kernel_reset() {} }
