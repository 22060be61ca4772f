# The imported target yinian::yinian: libyinian.so, yinian.h and yinian.hpp (C++17), wherever this tree has been moved to.
get_filename_component(_yinian_prefix "${CMAKE_CURRENT_LIST_DIR}" REALPATH)
get_filename_component(_yinian_prefix "${_yinian_prefix}/../../@UP@" ABSOLUTE)

foreach(_yinian_file include/yinian.h include/yinian.hpp @LIBDIR@/libyinian.so.@VERSION@)
  if(NOT EXISTS "${_yinian_prefix}/${_yinian_file}")
    set(yinian_FOUND FALSE)
    set(yinian_NOT_FOUND_MESSAGE "${_yinian_prefix}/${_yinian_file} is not there")
    return()
  endif()
endforeach()

if(NOT TARGET yinian::yinian)
  add_library(yinian::yinian SHARED IMPORTED)
  set_target_properties(yinian::yinian PROPERTIES
    IMPORTED_LOCATION "${_yinian_prefix}/@LIBDIR@/libyinian.so.@VERSION@"
    IMPORTED_SONAME libyinian.so.@MINOR@
    INTERFACE_INCLUDE_DIRECTORIES "${_yinian_prefix}/include")
endif()
unset(_yinian_file)
unset(_yinian_prefix)
