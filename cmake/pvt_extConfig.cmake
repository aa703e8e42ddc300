# find_package(pvt_ext) gives
#   pvt_ext::ops      the operators (libpvt_ops.so) and LibTorch; <pvt_ext/ops.h>
#   pvt_ext::runtime  the runtime (libpvt_runtime.so), where it is installed; <pvt_ext/runtime.h>
# This file finds everything relative to itself: <prefix>/lib/cmake/pvt_ext, libraries in
# <prefix>/lib, headers in <prefix>/include. LibTorch is found as FindLibTorch.cmake says.
get_filename_component(_pvt_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
set(_pvt_ops "${_pvt_prefix}/lib/libpvt_ops.so")
set(_pvt_runtime "${_pvt_prefix}/lib/libpvt_runtime.so")
if(NOT EXISTS "${_pvt_ops}")
  set(pvt_ext_FOUND FALSE)
  set(pvt_ext_NOT_FOUND_MESSAGE "${_pvt_ops} does not exist")
  return()
endif()

# Not find_dependency: it returns from this file when nothing is found, with CMAKE_MODULE_PATH changed.
set(_pvt_quiet)
if(pvt_ext_FIND_QUIETLY)
  set(_pvt_quiet QUIET)
endif()
list(INSERT CMAKE_MODULE_PATH 0 "${CMAKE_CURRENT_LIST_DIR}")
find_package(LibTorch 2.10 ${_pvt_quiet})
list(REMOVE_AT CMAKE_MODULE_PATH 0)
if(NOT LibTorch_FOUND)
  set(pvt_ext_FOUND FALSE)
  set(pvt_ext_NOT_FOUND_MESSAGE "LibTorch of at least version 2.10 was not found")
  return()
endif()

if(NOT TARGET pvt_ext::ops)
  # For the rpath of programs in their build tree.
  add_library(pvt_ext::ops_library SHARED IMPORTED)
  set_target_properties(pvt_ext::ops_library PROPERTIES IMPORTED_LOCATION "${_pvt_ops}"
                                                        IMPORTED_NO_SONAME TRUE)
  # The operators register themselves when the library is loaded, and no symbol of it need be used;
  # so the linker is told to keep it, also through a static library, in one item that CMake cannot
  # reorder or break up.
  add_library(pvt_ext::ops INTERFACE IMPORTED)
  set_target_properties(
    pvt_ext::ops
    PROPERTIES
      INTERFACE_INCLUDE_DIRECTORIES "${_pvt_prefix}/include"
      INTERFACE_LINK_LIBRARIES
      "-Wl,--push-state,--no-as-needed,${_pvt_ops},--pop-state;pvt_ext::ops_library;pvt_ext::torch")
endif()

if(EXISTS "${_pvt_runtime}" AND NOT TARGET pvt_ext::runtime)
  add_library(pvt_ext::runtime SHARED IMPORTED)
  set_target_properties(
    pvt_ext::runtime
    PROPERTIES IMPORTED_LOCATION "${_pvt_runtime}"
               IMPORTED_SONAME libpvt_runtime.so
               INTERFACE_INCLUDE_DIRECTORIES "${_pvt_prefix}/include"
               INTERFACE_COMPILE_FEATURES cxx_std_17
               INTERFACE_LINK_LIBRARIES pvt_ext::torch)
endif()
set(pvt_ext_FOUND TRUE)
