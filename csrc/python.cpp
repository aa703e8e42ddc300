// The Python module pvt_ext._C: only what an operator cannot carry. The operators themselves are in
// libpvt_ops.so, which has no Python in it.
#include <pybind11/pybind11.h>

#include "pvt_ops.h"

PYBIND11_MODULE(_C, m) {
  m.def("version", &pvt_version);
  m.def("ops_version", &pvt_ops_version);
  m.def("cpu_level", &pvt_cpu_level, "The instruction set in use.");
  m.def(
      "build_info",
      [] { return pybind11::module_::import("json").attr("loads")(pvt_build_info()); },
      "What this library was built with.");
}
