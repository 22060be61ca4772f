#include "double.h"
namespace dbl { void hccl_leaks(std::string &) {} void hccl_reset() {} }
