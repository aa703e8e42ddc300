# LibTorch as the target pvt_ext::torch, and LibTorch_VERSION, LibTorch_LIBRARY_DIR.
#
# Searched: Torch_DIR and CMAKE_PREFIX_PATH as for find_package(Torch), then the torch of the Python
# on PATH. TorchConfig.cmake itself is not used: that of a CUDA build needs a CUDA toolkit even for
# a program that compiles no CUDA, and only headers and libraries are needed here.
set(_hints ${Torch_DIR} ${CMAKE_PREFIX_PATH} $ENV{CMAKE_PREFIX_PATH} $ENV{Torch_DIR})
string(REPLACE ":" ";" _hints "${_hints}")
set(_suffixes "" Torch share/cmake/Torch)

find_path(LibTorch_CONFIG_DIR TorchConfig.cmake HINTS ${_hints} PATH_SUFFIXES ${_suffixes}
          NO_DEFAULT_PATH)
if(NOT LibTorch_CONFIG_DIR)
  find_program(LibTorch_PYTHON NAMES python3 python)
  if(LibTorch_PYTHON)
    execute_process(
      COMMAND ${LibTorch_PYTHON} -c "import torch; print(torch.utils.cmake_prefix_path)"
      OUTPUT_VARIABLE _hints OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    find_path(LibTorch_CONFIG_DIR TorchConfig.cmake HINTS ${_hints} PATH_SUFFIXES ${_suffixes})
  endif()
endif()

if(LibTorch_CONFIG_DIR)
  # <root>/share/cmake/Torch
  get_filename_component(LibTorch_ROOT "${LibTorch_CONFIG_DIR}/../../.." ABSOLUTE)
  set(LibTorch_LIBRARY_DIR "${LibTorch_ROOT}/lib")
  include("${LibTorch_CONFIG_DIR}/TorchConfigVersion.cmake")
  string(REGEX MATCH "^[0-9.]+" LibTorch_VERSION "${PACKAGE_VERSION}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  LibTorch
  REQUIRED_VARS LibTorch_CONFIG_DIR LibTorch_VERSION
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE
    "no LibTorch of at least version 2.10. `pip install torch` gets one, found through the python3 on PATH. Otherwise pass -DCMAKE_PREFIX_PATH=DIR, the folder of an unpacked LibTorch or torch.utils.cmake_prefix_path of a Python")

if(LibTorch_FOUND AND NOT TARGET pvt_ext::torch)
  foreach(_name c10 torch_cpu torch)
    add_library(pvt_ext::${_name}_library SHARED IMPORTED)
    set_target_properties(pvt_ext::${_name}_library PROPERTIES IMPORTED_LOCATION
                          "${LibTorch_LIBRARY_DIR}/lib${_name}.so")
  endforeach()
  add_library(pvt_ext::torch INTERFACE IMPORTED)
  set_target_properties(
    pvt_ext::torch
    PROPERTIES
      INTERFACE_INCLUDE_DIRECTORIES
      "${LibTorch_ROOT}/include;${LibTorch_ROOT}/include/torch/csrc/api/include"
      # Since 2.7 every LibTorch has the C++11 ABI, which a compiler's default may not be.
      INTERFACE_COMPILE_DEFINITIONS "_GLIBCXX_USE_CXX11_ABI=1"
      INTERFACE_LINK_LIBRARIES "pvt_ext::torch_cpu_library;pvt_ext::c10_library"
      # torch's own dependencies lie beside it or, in a wheel, in folders that its rpath names.
      INTERFACE_LINK_OPTIONS "LINKER:--allow-shlib-undefined")
endif()
mark_as_advanced(LibTorch_CONFIG_DIR LibTorch_PYTHON)
